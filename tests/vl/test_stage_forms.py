"A curriculum in all forms of its embeddings' half: from pictures alone to words, stopped and resumed, on two ranks."
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mmjepa import training
from mmjepa.checkpoint import list_checkpoints
from mmjepa.core import UserError
from mmjepa.data.records import digit_pairs
from mmjepa.data.text import ByteTokenizer
from mmjepa.runs import RunConfig
from mmjepa.vl.config import make_curriculum, step_counts, step_place
from mmjepa.vl.curriculum import build_curriculum, open_sources, run_curriculum
from mmjepa.vl.verdict import control_of
from curricula import silent, small_curriculum, write_lines
from ranks import on_ranks
from test_curriculum import SHARDED

STAGES = [{'name': 'pictures', 'jepa': 'pictures', 'alpha': 1, 'beta': 0, 'mixture': {'shown': 1}},
          {'name': 'views', 'jepa': 'views', 'alpha': 1, 'beta': 0},
          {'name': 'words', 'jepa': 'views', 'alpha': .5, 'beta': .5, 'jepa_batches': .5, 'ctc': .2},
          {'name': 'masked', 'alpha': .3, 'beta': .7, 'jepa_batches': 1}]


@pytest.fixture(scope='module')
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp('stages')
    digit_pairs(root, 60)
    records = [json.loads(line) for line in (root/'pairs.jsonl').read_text().splitlines()]
    write_lines(root/'shown.jsonl', [{'image': r['image']} for r in records])
    return root


def settings(root, stages=STAGES, micro=4):
    made = small_curriculum(root, 1536, 4, views={'dim': 8, 'hidden': 16})
    made['training'] |= {'micro_batch_size': micro, 'gradient_accumulation_steps': 1,
                         'scheduler': {'warmup_tokens': 100, 'min_lr': 1e-4}}
    made['sources']['shown'] = {'path': 'shown.jsonl', 'topic': 'vision', 'weight': 0}
    rates = {'lr': [3e-3, 3e-3], 'share': 1 / len(stages)}
    return made | {'stages': [rates | s for s in stages]}


def parts(config, root):
    return [open_sources(config, ByteTokenizer(), part, root=root, say=silent) for part in (False, True)]


def train(folder, root, world=1, *, resume=False, control=False):
    training.prune_checkpoints = lambda *_: None
    config = make_curriculum(settings(root, micro=4 // world), ranks=world)
    if control: config = control_of(config)
    sources, held = parts(config, root)
    table = run_curriculum(config, RunConfig(folder, resume=resume), ByteTokenizer(), sources=sources, held=held,
                           epochs=sum(step_counts(config)), precision='fp32')
    return [] if table is None else table[['stage', 'loss_total', 'val_loss_lm']].fillna(-1).values.tolist()


def weights(folder): return load_file(folder/'model/model.safetensors')


@pytest.fixture(scope='module')
def single(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')/'run'
    return folder, torch.tensor(train(folder, material))


def test_a_run_through_all_forms_is_resumed_to_the_last_bit(single, material, tmp_path):
    "From the middle of each stage, also between a step of words and one of embeddings."
    folder, table = single
    assert step_counts(make_curriculum(settings(material))) == [3, 3, 5, 6] and len(table) == 17
    assert {1, 2, 3, 4} == {*table[:, 0].tolist()} and table.isfinite().all()
    for step in (2, 5, 8, 9, 14):
        again = tmp_path/f'{step}'
        shutil.copytree(folder, again)
        for path in list_checkpoints(again/'checkpoints')[step:]: shutil.rmtree(path)
        shutil.rmtree(again/'model')
        assert torch.tensor(train(again, material, resume=True)).equal(table)
        assert all(x.equal(y) for x, y in zip(weights(again).values(), weights(folder).values()))


def train_on_rank(rank, world, folder, root, env):
    os.environ.update(env)
    return train(folder, root, world)


@pytest.mark.parametrize('env', [{}, SHARDED], ids=['ddp', 'fsdp'])
def test_two_ranks_go_through_all_forms(single, material, tmp_path, env):
    "Heads that a stage does not use wait for no rank. Versions of pictures are drawn by each rank for itself."
    table, _ = on_ranks(train_on_rank, 2, tmp_path/'run', material, env)
    table = torch.tensor(table)
    assert table.isfinite().all() and table[:, 0].equal(single[1][:, 0])


def test_words_keep_all_their_tokens(material):
    "With steps of embeddings in between as without; these read further rows."
    counts = []
    for share in (None, .5):
        stage = STAGES[2] | {'jepa_batches': share}
        config = make_curriculum(settings(material, [stage]))
        sources, held = parts(config, material)
        *_, loader, _ = build_curriculum(config, ByteTokenizer(), sources, held=held, epochs=1)
        batches = [(step_place(config, config.stages[0], i)[1], b['text_mask'].sum().item())
                   for i, b in enumerate(loader)]
        counts.append((sum(n for alone, n in batches if not alone), sum(loader.tokens_read(0).values())))
        extra = 0 if share is None else round(step_counts(config)[0] / 3)
        assert sum(alone for alone, _ in batches) == extra
    assert abs(counts[0][0] - counts[1][0]) < .05 * counts[0][0] and all(a == b for a, b in counts)


def test_the_control_learns_as_many_words(material, tmp_path):
    config = make_curriculum(settings(material))
    control = control_of(config)
    assert [s.name for s in control.stages] == ['words', 'masked'] and step_counts(control) == [3, 3]
    assert [s.tokens for s in control.stages] == [s.tokens for s in config.stages[2:]]
    assert [(s.alpha, s.beta, s.ctc) for s in control.stages] == [(0, 1, .2), (0, 1, 0)]
    assert len(train(tmp_path, material, control=True)) == 6
    alone = make_curriculum(settings(material, STAGES[:2]))
    with pytest.raises(UserError, match='beta is 0 in every stage; expected a hybrid'): control_of(alone)


def test_views_in_several_pieces_are_refused_before_a_run(material):
    with pytest.raises(UserError, match='has jepa pictures, which compares all rows of a step; expected micro'):
        make_curriculum(settings(material, micro=2))
