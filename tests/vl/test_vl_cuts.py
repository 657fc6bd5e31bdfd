"A step of every stage has one gradient, however its rows are cut into micro-batches and over ranks."
import copy
import functools
import itertools

import pytest
import torch

from cuts import assert_same_gradient, gradient, join
from mmjepa.core import make_generator
from mmjepa.encoders import EncoderConfig
from mmjepa.masking import JEPAMasking
from mmjepa.vl.hybrid import JointMasks, VLJEPAObjective, next_token_labels
from mmjepa.vl.model import VLJEPA, VLJEPAConfig, token_indices
from mmjepa.vl.packing import slice_rows

VISION = EncoderConfig(12, 4, 3, num_classes=0, emb_dim=16, depth=1, num_heads=2, drop_path=0.)
SHAPE = VLJEPAConfig(VISION, 40, 32, hidden_size=16, num_layers=1, fusion_depth=1, embedding_dim=12)
STAGES = {'embeddings': (1., 0., 'stop_gradient'), 'words': (0., 1., 'stop_gradient'),
          'hybrid': (.3, .7, 'stop_gradient'), 'slow copy': (.3, .7, 'ema')}
LENGTHS = 12, 24, 32, 17, 5, 32, 9, 2


def joined(rows):
    "Rows with the indices of the whole."
    first = itertools.accumulate([0, *(len(row['text']) for row in rows)])
    moved = [row | {'image_row': row['image_row'] + n} for row, n in zip(rows, first)]
    return token_indices(join(moved), 3)


def make(stage, drop_path=0., lengths=LENGTHS):
    "Rows of unequal length, with none, one or two pictures, one row with nothing to learn from its words."
    alpha, beta, target = STAGES[stage]
    torch.manual_seed(0)
    vision = VISION.__class__(**{**vars(VISION), 'drop_path': drop_path, 'depth': 2})
    model = VLJEPA(VLJEPAConfig(**{**vars(SHAPE), 'target': target, 'vision': vision}))
    model.alpha, model.beta = alpha, beta
    g = make_generator('rows')
    text, b = torch.randint(40, (len(lengths), 32), generator=g), len(lengths)
    real = torch.arange(32) < torch.tensor(lengths)[:, None]
    labels = next_token_labels(text, real)
    labels[4] = -100
    row = torch.arange(b).repeat_interleave(torch.arange(b) % 3)
    batch = {'text': text, 'text_mask': real, 'labels': labels, 'image': torch.randn(len(row), 3, 12, 12, generator=g),
             'image_row': row}
    batch = JointMasks(JEPAMasking(.3, span=3, min_size=2), patches=9)(batch, g)
    rows = [slice_rows(batch, i, 1) for i in range(b)]
    return model, VLJEPAObjective(alpha, beta, sigreg_weight=.1, num_slices=16), rows


@pytest.mark.parametrize('stage', STAGES)
def test_the_gradient_is_that_of_the_step(stage):
    assert_same_gradient(functools.partial(make, stage), join=joined)


def test_a_step_of_the_issue():
    "Rows with 11, 23, 31 and 16 words to predict: as means of means the length was another one."
    model, objective, rows = make('words', lengths=(12, 24, 32, 17, 2))
    rows = rows[:4]
    assert [int((r['labels'] != -100).sum()) for r in rows] == [11, 23, 31, 16]
    whole, parts = (gradient(copy.deepcopy(model), objective, rows, size=size, join=joined) for size in (4, 1))
    assert abs(whole.norm() / parts.norm() - 1) < 1e-5


def test_paths_are_dropped_alike_in_both_passes():
    "With gradient caching a batch is encoded twice; what is dropped is the same, or the gradient would be of no loss."
    model, objective, rows = make('embeddings', drop_path=.5)
    seen = []
    def look(module, args, out): seen.append(out.detach())
    model.jepa_head.embed.register_forward_hook(look)
    def encoded(t): t.embedded = seen
    gradient(model, objective, rows[:4], size=2, join=joined, callbacks={'after_step': encoded})
    # made: two without gradient, then for each part the embeddings of the unmasked pass, after those of the masked one
    hidden = [x for x in seen if len(x)]
    firsts, later = hidden[:2], hidden[2:]
    assert len(hidden) == 6 and all(any(x.equal(y) for y in later) for x in firsts)


def test_the_slow_copy_moves_once_a_step():
    model, objective, rows = make('slow copy')
    moved = []
    def look(t): moved.append(t.plain.target.steps.item())
    gradient(model, objective, rows, size=2, join=joined, callbacks={'after_step': look})
    assert moved == [1]
