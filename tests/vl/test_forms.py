"Forms of the embeddings' half and the reading of columns: one gradient on any ranks, and views that are apart."
import functools
import json

import pytest
import torch
from torch.nn.functional import gelu
from torch.testing import assert_close

from cuts import assert_same, assert_same_gradient, gradient
from mmjepa.core import UserError, make_generator
from mmjepa.encoders import EncoderConfig
from mmjepa.predictive import PredictiveObjective, cosine_distance
from mmjepa.vl.hybrid import VLJEPAObjective, picture_views, read_pictures, read_texts, two_views, view_indices
from mmjepa.vl.model import VLJEPA, VLJEPAConfig, ViewsConfig, image_states, load_vl_jepa, reading_targets
from mmjepa.vl.packing import collate_rows
from ranks import on_ranks

VISION = EncoderConfig(8, 4, 3, num_classes=0, emb_dim=12, depth=1, num_heads=2, drop_path=0.)
SHAPE = VLJEPAConfig(VISION, 20, 12, hidden_size=16, num_layers=1, fusion_depth=1, embedding_dim=8,
                     views=ViewsConfig(6, 10, queries=2), ctc=True)
FORMS = {'views': two_views, 'pictures': picture_views}


def documents(kinds, g):
    """A row of documents: p a prompt with its answer, i a picture with its text, b a picture with prompt and text,
    t a text alone, n a picture without a word; padded to 12 tokens."""
    text, document, answer, owner = [], [], [], []
    for number, kind in enumerate(kinds):
        prompt, own = {'p': (2, 2), 'i': (0, 3), 'b': (1, 2), 't': (0, 3), 'n': (1, 0)}[kind]
        text += torch.randint(1, 20, (prompt + own,), generator=g).tolist()
        document += [number] * (prompt + own)
        answer += [False] * prompt + [True] * own
        owner += [number] * (kind in 'ibn')
    pad, k = 12 - len(text), len(owner)
    document, images = torch.tensor(document + [-1] * pad), torch.randn(k, 2, 3, 8, 8, generator=g)
    text, answer = torch.tensor(text + [0] * pad), torch.tensor(answer + [False] * pad)
    follows = torch.cat([document[1:] == document[:-1], torch.tensor([False])]) & (document >= 0)
    return {'text': text, 'text_mask': document >= 0, 'document': document, 'answer': answer,
            'labels': torch.where(follows, text.roll(-1), -100), 'image': images[:, 0], 'image_views': images,
            'image_document': torch.tensor(owner, dtype=torch.int64)}


ROWS = {'mixed': ['pi', 'ib', 'tip', 'ppi', 'n', 'bi'],
        'pictures on one rank': ['iip', 'b', 'pi', 'pt', 't', 'pp'],
        'prompts on one rank': ['pi', 'pp', 'ip', 'i', 'bt', 'ni'],
        'nothing on one rank': ['pip', 'ii', 'pp', 't', 't', 't']}


def make(form, rows='mixed', alpha=1., beta=0., ctc=0., distance=None):
    torch.manual_seed(0)
    model = VLJEPA(SHAPE)
    options = {} if distance is None else {'distance': distance}
    objective = VLJEPAObjective(alpha, beta, ctc=ctc, views=PredictiveObjective(num_slices=16, **options))
    for part in (model, objective): vars(part).update(alpha=alpha, beta=beta, ctc=ctc, form=FORMS.get(form, part.form))
    g = make_generator('forms')
    return model, objective, [collate_rows([documents(kinds, g)]) for kinds in ROWS[rows]]


def joined(rows):
    "Rows of one, as a batch."
    def single(row): return {k: x if k.startswith('image') else x[0] for k, x in row.items() if k != 'image_row'}
    return collate_rows([single(row) for row in rows])


CASES = {'two views': ('views', 'mixed'), 'with words and columns': ('views', 'mixed', .5, .3, .2),
         'cosine': ('views', 'mixed', 1., 0., 0., cosine_distance), 'versions': ('pictures', 'mixed'),
         'pictures on one rank': ('views', 'pictures on one rank'),
         'versions on one rank': ('pictures', 'pictures on one rank', .3, .7),
         'prompts on one rank': ('views', 'prompts on one rank'),
         'nothing on one rank': ('views', 'nothing on one rank'), 'idle heads': ('none', 'mixed', 0., 1.)}


def without_pictures(row):
    "As a loader of texts alone hands it out."
    return {k: x for k, x in row.items() if not k.startswith('image')}


def _gradients(rank, world):
    found = {}
    for name, case in CASES.items():
        model, objective, rows = make(*case)
        found[name] = gradient(model, objective, rows[3 * rank:3 * rank + 3], size=3, join=joined)
    model, objective, rows = make('views', 'pictures on one rank')
    rows = rows[:3] if rank == 0 else [without_pictures(r) for r in rows[3:]]
    found['no key'] = gradient(model, objective, rows, size=3, join=joined if rank == 0 else _stacked)
    return found


def _stacked(rows): return {k: torch.cat([r[k] for r in rows]) for k in rows[0]}


def test_the_gradient_of_a_step_on_two_ranks():
    "Also where a rank has no pictures, no prompts, or nothing to compare."
    for found in on_ranks(_gradients, 2):
        for name, case in (CASES | {'no key': CASES['pictures on one rank']}).items():
            model, objective, rows = make(*case)
            assert_same(found[name], gradient(model, objective, rows, size=6, join=joined), name)


def test_columns_cut_into_parts():
    "The step is that of all words, though rows have unequally many, and some pictures none."
    assert_same_gradient(functools.partial(eight, 'mixed', beta=.6, ctc=.4), join=joined, ranks=False)
    assert_same_gradient(functools.partial(eight, 'pictures on one rank', ctc=1.), join=joined)


def eight(rows, **weights):
    model, objective, rows = make('views', rows, alpha=0., **weights)
    return model, objective, [*rows, *rows[:2]]


@pytest.mark.parametrize('form', FORMS)
def test_views_of_a_step_in_parts_are_refused(form):
    model, objective, rows = make(form)
    with pytest.raises(UserError, match='accumulate is 2, and views are compared over all rows of a step; expected'):
        gradient(model, objective, rows, size=3, join=joined)


def embeddings(model, batch):
    at = view_indices(batch)
    answers, prompts = read_texts(model, batch, at)
    return read_pictures(model, image_states(model, batch)), answers, prompts


@pytest.mark.parametrize('queries', [0, 1, 3])
def test_a_view_does_not_see_the_other(queries):
    torch.manual_seed(1)
    model = VLJEPA(VLJEPAConfig(**vars(SHAPE) | {'views': ViewsConfig(6, 10, queries=queries)})).eval()
    batch = joined(make('views')[2])
    pictures, answers, prompts = embeddings(model, batch)
    assert (len(pictures), len(answers), len(prompts)) == (8, 12, 4)
    other = torch.randint(1, 20, batch['text'].shape, generator=make_generator('other'))
    changed = {k: batch | {'text': torch.where(of, other, batch['text'])}
               for k, of in (('answer', batch['answer']), ('prompt', ~batch['answer']))}
    changed['picture'] = batch | {'image': batch['image'].flip(0)}
    same = {'answer': (True, False, True), 'prompt': (True, True, False), 'picture': (False, True, True)}
    for name, expected in same.items():
        found = [x.equal(y) for x, y in zip(embeddings(model, changed[name]), (pictures, answers, prompts))]
        assert tuple(found) == expected, name


@pytest.mark.parametrize('queries', [0, 2])
def test_pictures_read_against_a_reference(queries):
    "Blocks of timm on the image states and the predictor tokens, with a mask that is written out."
    torch.manual_seed(2)
    model = VLJEPA(VLJEPAConfig(**vars(SHAPE) | {'views': ViewsConfig(6, 10, queries=queries)})).double().eval()
    fusion, batch = model.cross_modal_fusion, joined(make('views')[2])
    states = image_states(model, batch | {'image': batch['image'].double()})
    n = states.shape[1]
    for z, own in zip(read_pictures(model, states), states):
        x = fusion.image_in(own)
        if queries: x = torch.cat([x, model.view_heads.queries])
        s = n + queries
        seen = torch.tensor([[j < n or n <= j <= i for j in range(s)] for i in range(s)])
        for block in fusion.blocks:
            q, k, v = block.attn.qkv(block.norm1(x)).view(s, 3, 2 * 2, 4).unbind(1)
            scores = torch.einsum('ihd,jhd->hij', q, k) / 2
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            x = x + block.attn.proj(torch.einsum('hij,jhd->ihd', weights, v).flatten(1))
            x = x + block.mlp.fc2(gelu(block.mlp.fc1(block.norm2(x))))
        x = fusion.norm(x)
        assert_close(x[-1] if queries else x.mean(0), z)


def test_the_loss_of_two_views_by_its_formula():
    "LeVLJEPA's in float64: each kind by itself, targets stopped, SIGReg of each modality beside the squared distance."
    model, objective, rows = make('views')
    batch = {k: x.double() if x.is_floating_point() else x for k, x in joined(rows).items()}
    model.double()
    terms, logs = objective(model(batch), batch)
    at = view_indices(batch)
    pictures, answers, prompts = embeddings(model, batch)
    total = 0
    shown, told = at['image_pairs'].T
    kinds = {('image', 'text'): (pictures[shown], answers[told]),
             ('prompt', 'answer'): (prompts, answers[at['prompt_pairs'][:, 1]])}
    for names, views in kinds.items():
        heads = model.view_heads.pairs[names[0]]
        z = [heads.projectors[name](x) for name, x in zip(names, views)]
        for a, b, name, other in zip(z, z[::-1], names, names[::-1]):
            distance = (heads.predictors[name](a) - b).square().mean()
            assert_close(logs[f'loss_{name}_to_{other}'], distance.detach(), rtol=1e-9, atol=1e-12)
            total = total + .48 * distance + .02 * logs[f'loss_sigreg_{name}']
    assert_close(terms['views'], total, rtol=1e-9, atol=1e-12)


def test_targets_of_the_columns():
    "Against a loop through documents."
    batch = joined(make('views')[2])
    words, length = reading_targets(batch)
    for i, (row, number) in enumerate(zip(batch['image_row'], batch['image_document'])):
        places = (batch['document'][row] == number).nonzero()[:, 0].tolist()
        expected = [batch['text'][row, j].item() for j in places[1:] if batch['answer'][row, j]]
        assert words[i, :length[i]].tolist() == expected


def test_heads_are_saved_and_loaded(tmp_path):
    model, _, rows = make('views')
    model.save_pretrained(tmp_path)
    again, batch = load_vl_jepa(tmp_path), joined(rows)
    assert again.config == SHAPE
    for part in (model, again): vars(part).update(alpha=1., beta=0., ctc=1., form=two_views)
    expected, found = model.eval()(batch), again(batch)
    assert_close(found['ctc'], expected['ctc'], rtol=0, atol=0)
    assert_close(found['views'], expected['views'], rtol=0, atol=0)


def test_a_model_from_before_is_loaded(tmp_path):
    plain = VLJEPA(VLJEPAConfig(**vars(SHAPE) | {'views': ViewsConfig(), 'ctc': False}))
    plain.save_pretrained(tmp_path)
    about = json.loads((tmp_path/'config.json').read_text())
    assert about.pop('views')['dim'] == 0 and about.pop('ctc') is False
    (tmp_path/'config.json').write_text(json.dumps(about))
    assert load_vl_jepa(tmp_path).config == plain.config


