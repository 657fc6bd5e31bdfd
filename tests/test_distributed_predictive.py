"""`PredictiveAlignment` on two ranks with unequal shares: value, logs and gradients, after DDP's averaging, are those
of one process with the whole batch. Its parts can't be had from micro-batches, and `fit` says so."""
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from cuts import gradient
from mmjepa.core import UserError
from mmjepa.predictive import PredictiveAlignment, PredictiveObjective, cosine_distance
from ranks import on_ranks

IMAGES, TEXTS, PAIRED = 30, 20, (0, 1, 4, 9, 13, 14, 16, 19)  # image i belongs to text i
SHARES = 15, 10, 22, 30  # images of rank 0, and as many texts; the rest are rank 1's
OPTIONS = {'paper': ({}, {}), 'views': ({}, {'views': .3}), 'one way': ({'predicts': ('text',)}, {}),
           'cosine': ({}, {'distance': cosine_distance, 'weight': {'image': .2, 'text': .1}})}


class Pair(nn.Module):
    "Two encoders and the alignment."
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict({'image': nn.Linear(6, 8), 'text': nn.Linear(5, 7)})
        self.align = PredictiveAlignment({'image': 8, 'text': 7}, 4, hidden=9, depth=2, **options)

    def forward(self, batch):
        return self.align({k: e(batch[k]) for k, e in self.encoders.items()}, batch['pairs'])


def batch(views, start=0, end=IMAGES):
    "Images and texts from `start` to `end`; the pairs among them."
    g = torch.Generator().manual_seed(1)
    shape = (IMAGES, 2, 6) if views else (IMAGES, 6)
    image = torch.randn(shape, generator=g, dtype=torch.double)
    text = torch.randn(TEXTS, 5, generator=g, dtype=torch.double)
    pairs = [i - start for i in PAIRED if start <= i < end]
    return {'image': image[start:end], 'text': text[start:end],
            'pairs': torch.tensor(pairs, dtype=torch.long)[:, None].expand(-1, 2)}


def value_and_gradients(name, start=0, end=IMAGES, *, wrap=lambda model: model):
    options, weights = OPTIONS[name]
    model = Pair(**options).double()
    wrapped, data = wrap(model), batch(name == 'views', start, end=end)
    loss, logs = PredictiveObjective(num_slices=16, **weights)(wrapped(data), data)
    loss.backward()
    return [loss.detach(), *logs.values(), *(p.grad.clone() for p in model.parameters())]


def all_cases(rank, world):
    return {f'{name}, {share}': value_and_gradients(name, *((0, share), (share, IMAGES))[rank],
                                                    wrap=DistributedDataParallel)
            for name in OPTIONS for share in SHARES}


def test_two_ranks_equal_one_process():
    expected = {name: value_and_gradients(name) for name in OPTIONS}
    for found in on_ranks(all_cases, 2):
        assert len(found) == len(OPTIONS) * len(SHARES)
        for place, values in found.items():
            assert_close(values, expected[place.split(',')[0]], rtol=1e-8, atol=1e-10, msg=f'{place}: {{}}'.format)


def test_the_gradients_are_not_all_zero():
    "Or the comparison above would compare nothing."
    for name in OPTIONS:
        loss, *rest = value_and_gradients(name)
        assert loss > 0
        assert sum(bool(x.any()) for x in rest) > .8 * len(rest)  # a bias before a batch norm has none


def test_a_step_of_several_batches_is_refused():
    rows = [{k: v.float() if v.is_floating_point() else v for k, v in batch(False, i, i + 4).items()} for i in (0, 4)]
    with pytest.raises(UserError, match='accumulate is 2, and the SIGReg statistic compares all rows'):
        gradient(Pair(), PredictiveObjective(), rows, size=1)
