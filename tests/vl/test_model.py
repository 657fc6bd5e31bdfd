"The vision-language JEPA on two ranks equals one process with the whole batch; compiled, it is one graph."
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from mmjepa.core import make_generator
from mmjepa.encoders import EncoderConfig
from mmjepa.vl.hybrid import JointMasks, VLJEPAObjective, next_token_labels
from mmjepa.losses import lm_loss
from mmjepa.masking import JEPAMasking
from mmjepa.vl.model import VLJEPA, VLJEPAConfig, following, load_vl_jepa, token_indices
from mmjepa.vl.packing import slice_rows
from ranks import on_ranks

ROWS, TOKENS, WORDS = 9, 10, 40
OF_ROW = 1, 1, 3, 4, 6, 6, 7  # of each picture
SHARE = 3  # rows of rank 0; the rest are rank 1's
VISION = EncoderConfig(12, 4, 3, num_classes=0, emb_dim=16, depth=1, num_heads=2, drop_path=0.)
CONFIG = VLJEPAConfig(VISION, WORDS, TOKENS, hidden_size=16, num_layers=1, fusion_depth=1, embedding_dim=12)
EMA = replace(CONFIG, target='ema', momentum=.9)
TIED = replace(CONFIG, tie_embeddings=True)
CASES = {'hybrid': (CONFIG, .3, .7), 'tokens': (CONFIG, 0., 1.), 'embeddings': (CONFIG, 1., 0.),
         'tied': (TIED, .3, .7), 'slow copy': (EMA, .3, .7)}
SHARDED = 'hybrid', 'slow copy'


def data(rank=0, world=1, share=SHARE):
    "Rows with none, one or two pictures; one is two packed documents, all on the second rank are padded."
    g = make_generator('rows')
    text = torch.randint(WORDS, (ROWS, TOKENS), generator=g)
    real = torch.arange(TOKENS) < torch.tensor([TOKENS] * SHARE + [TOKENS - 3] * (ROWS - SHARE))[:, None]
    document = torch.zeros_like(text)
    document[1, 6:] = 1
    batch = {'text': text, 'text_mask': real, 'document': document, 'labels': next_token_labels(text, real, document),
             'image': torch.randn(len(OF_ROW), 3, 12, 12, generator=g), 'image_row': torch.tensor(OF_ROW)}
    batch['image_document'] = torch.tensor([0, 1] + [0] * (len(OF_ROW) - 2))
    batch = JointMasks(JEPAMasking(.3, span=3, min_size=2), patches=9)(batch, g)
    if world == 1: return batch
    return slice_rows(batch, 0, share) if rank == 0 else slice_rows(batch, share, ROWS - share)


def build(config, alpha, beta):
    torch.manual_seed(0)
    model = VLJEPA(config)
    model.alpha, model.beta = alpha, beta
    return model


def step(name, rank=0, world=1, wrap=None):
    "Loss, logs that are the same on all ranks, gradients, and the weights of the slow copy after one step."
    config, alpha, beta = CASES[name]
    model, batch = build(config, alpha, beta), data(rank, world)
    wrapped = wrap(model) if wrap else model
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    terms, logs = VLJEPAObjective(alpha, beta, sigreg_weight=.1, num_slices=16)(wrapped(batch), batch)
    loss = sum(terms.values())
    loss.backward()
    grads = {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    with following(model): opt.step()
    copy = {n: whole(p) for n, p in model.named_parameters() if n.startswith('target.')}
    return loss.detach(), {k: x for k, x in logs.items() if not k.startswith('watch')}, grads, copy


def whole(x):
    "A sharded tensor from all ranks, as a plain one."
    return (x.full_tensor() if hasattr(x, 'full_tensor') else x).detach().clone()


def ddp(model): return DistributedDataParallel(model, find_unused_parameters=True)


def fsdp(model):
    "Shards of each layer, and of what is left."
    layers = *model.language_encoder.layers, *model.vision_encoder.blocks, *model.cross_modal_fusion.blocks
    for layer in layers: fully_shard(layer)
    return fully_shard(model)


def losses(rank, world):
    "`lm_loss` where rank 0 has 1, all or none of the tokens that count; and where nobody has any."
    found, g = [], make_generator('states')
    hidden, weight = torch.randn(4, 6, 5, generator=g), torch.randn(11, 5, generator=g)
    targets = torch.randint(11, (4, 6), generator=g)
    for mine, others in ((1, 18), (6, 0), (0, 5), (0, 0)):
        y = targets.clone()
        y[:1].view(-1)[mine:] = -100
        y[1:].view(-1)[others:] = -100
        h, y = (x.split([1, 3])[rank] if world > 1 else x for x in (hidden, y))
        layer = nn.Linear(5, 11, bias=False)
        with torch.no_grad(): layer.weight.copy_(weight)
        wrapped = DistributedDataParallel(Head(layer)) if world > 1 else Head(layer)
        value = wrapped(h, y)
        value.backward()
        found.append([value.detach(), layer.weight.grad.clone()])
    return found


class Head(nn.Module):
    "The loss inside of a module, as in the model."
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, h, y): return lm_loss(h, self.layer.weight, y, chunk=4)


def on_each(rank, world):
    "All that this file asks of two ranks, because starting them takes longer than the work."
    averaged = {name: step(name, rank, world, ddp) for name in CASES}
    return losses(rank, world), averaged, {name: step(name, rank, world, fsdp) for name in SHARDED}


@pytest.fixture(scope='module')
def ranks(): return on_ranks(on_each, 2)


def test_language_loss_on_two_ranks(ranks):
    for found, *_ in ranks: assert_close(found, losses(0, 1), rtol=1e-5, atol=1e-6)
    values = [value.item() for value, _ in losses(0, 1)]
    assert values[-1] == 0 and min(values[:-1]) > .5


@pytest.mark.parametrize('name,kind', [*((name, 'ddp') for name in CASES), *((name, 'fsdp') for name in SHARDED)])
def test_a_step_on_two_ranks_equals_one_process(ranks, name, kind):
    loss, logs, grads, copy = step(name)
    for r in ranks:
        found = r[1 + (kind == 'fsdp')][name]
        assert_close(found[0], loss, rtol=1e-4, atol=1e-5)
        assert_close(found[1], logs, rtol=1e-4, atol=1e-5)
        assert found[2].keys() >= grads.keys() and not any(found[2][n].any() for n in found[2].keys() - grads.keys())
        for n, g in grads.items(): assert (found[2][n] - g).norm() < 1e-4 * g.norm() + 1e-6, f'{name}: gradient of {n}'
        assert found[3].keys() == copy.keys()
        for n, p in copy.items(): assert_close(found[3][n], p, rtol=1e-4, atol=1e-6)


def test_the_comparison_compares_something():
    for name, (_, alpha, beta) in CASES.items():
        loss, logs, grads, copy = step(name)
        expected = {'vision_encoder', 'language_encoder', 'cross_modal_fusion'}
        if alpha: expected.add('jepa_head')
        if beta and name != 'tied': expected.add('autoregressive_head')
        assert {n.split('.')[0] for n, g in grads.items() if g.any()} == expected and loss > 0
        assert bool(copy) == (name == 'slow copy')
        assert ('loss_sigreg' in logs) == bool(alpha and name != 'slow copy')


@pytest.fixture
def fresh():
    "What was compiled before is forgotten, and what is compiled here."
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize('name', CASES)
def test_the_forward_pass_is_one_graph(fresh, name):
    config, alpha, beta = CASES[name]
    model = build(replace(config, vision=replace(VISION, drop_path=.1)), alpha, beta).train()
    found = torch._dynamo.explain(model)(token_indices(data(), config.prediction_steps))
    assert (found.graph_count, found.graph_break_count) == (1, 0), [r.reason for r in found.break_reasons]


def test_a_compiled_model_learns_the_same(fresh):
    "However many tokens are hidden: the first batch makes a graph, the second one for any number, further ones none."
    config, alpha, beta = CASES['hybrid']
    models = [build(config, alpha, beta) for _ in range(2)]
    compiled, graphs = torch.compile(models[0], backend='aot_eager', fullgraph=True), []
    for i, ratio in enumerate((.3, .2, .5, .6)):
        masks = JointMasks(JEPAMasking(ratio, span=3, min_size=2), patches=9, steps=config.prediction_steps)
        batch = masks(data(), make_generator('compiled', i))
        for run in (compiled, models[1]):
            sum(VLJEPAObjective(alpha, beta, num_slices=16)(run(batch), batch)[0].values()).backward()
        graphs.append(torch._dynamo.utils.counters['stats']['unique_graphs'])
    assert graphs[1] == graphs[-1]
    for (n, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), n
        if p.grad is not None: assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_a_compiled_model_is_saved_as_the_plain_one(fresh, tmp_path):
    "And runs on a batch without indices, which it makes by itself."
    model, batch = build(*CASES['slow copy']), data()
    compiled = torch.compile(model, backend='eager')
    assert_close(compiled(batch)['predictions'], model(token_indices(batch, 3))['predictions'])
    compiled.save_pretrained(tmp_path)
    again, plain = load_vl_jepa(tmp_path).state_dict(), model.state_dict()
    assert again.keys() == plain.keys() and all(torch.equal(again[k], x) for k, x in plain.items())
