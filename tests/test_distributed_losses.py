"""Contrastive and masked losses on two ranks with unequal shares: value, and gradient after DDP's averaging, are those
of one process with the whole batch."""
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from mmjepa.contrastive import clip_loss, mrl_loss, siglip_loss
from mmjepa.core import gather_rows
from mmjepa.losses import masked_patch_loss, masked_token_loss
from ranks import on_ranks

ROWS, TOKENS, DIM, VOCABULARY = 12, 6, 5, 7
SHARES = 6, 5, 1, 0, 12  # rows of rank 0; the rest are rank 1's


class Towers(nn.Module):
    "Two linear towers, a scale and a bias; every loss here gives each parameter that it owns a gradient."
    def __init__(self, names):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        shapes = dict(image=(DIM, 4), text=(DIM, 4), scale=(), bias=(), patch=(DIM, 3), token=(DIM, VOCABULARY))
        drawn = {name: torch.randn(shape, generator=g, dtype=torch.double) for name, shape in shapes.items()}
        for name in names: self.register_parameter(name, nn.Parameter(drawn[name]))

    def forward(self, batch):
        return {name: batch[name] @ p if p.ndim else (p * .1 + 1).exp() for name, p in self.named_parameters()}


def data(masked):
    "Rows of 12 records; `masked` of them, the last ones, have a token that counts, the first of these two."
    g = torch.Generator().manual_seed(1)
    batch = {name: torch.randn(ROWS, DIM, generator=g, dtype=torch.double) for name in ('image', 'text')}
    batch |= {name: torch.randn(ROWS, TOKENS, DIM, generator=g, dtype=torch.double) for name in ('patch', 'token')}
    batch['pixels'] = torch.randn(ROWS, TOKENS, 3, generator=g, dtype=torch.double)
    batch['ids'] = torch.randint(VOCABULARY, (ROWS, TOKENS), generator=g)
    batch['alike'] = torch.randint(4, (ROWS, 2), generator=g)  # on both ranks some of each
    batch['mask'] = torch.zeros(ROWS, TOKENS, dtype=torch.bool)
    batch['mask'][ROWS - masked:, 1] = True
    batch['mask'][ROWS - masked:ROWS - masked + 1, 4] = True
    return batch


def clip(chunk):
    def loss(out, _): return clip_loss(out['image'], out['text'], out['scale'], chunk=chunk)
    return ('image', 'text', 'scale'), 0, loss
def siglip(chunk):
    def loss(out, _): return siglip_loss(out['image'], out['text'], out['scale'], logit_bias=-out['bias'], chunk=chunk)
    return ('image', 'text', 'scale', 'bias'), 0, loss
def nested(chunk):
    def loss(out, _): return mrl_loss(out['image'], out['text'], (1, 2, 4), logit_scale=out['scale'], chunk=chunk)
    return ('image', 'text', 'scale'), 0, loss
def clip_alike(chunk):
    def loss(out, b): return clip_loss(out['image'], out['text'], out['scale'], chunk=chunk, ids=b['alike'])
    return ('image', 'text', 'scale'), 0, loss
def siglip_alike(chunk):
    def loss(out, b):
        return siglip_loss(out['image'], out['text'], out['scale'], logit_bias=-out['bias'], chunk=chunk,
                           ids=b['alike'][:, 0])
    return ('image', 'text', 'scale', 'bias'), 0, loss
def nested_alike(chunk):
    def loss(out, b):
        return mrl_loss(out['image'], out['text'], (1, 2, 4), logit_scale=out['scale'], chunk=chunk, ids=b['alike'])
    return ('image', 'text', 'scale'), 0, loss
def patch(masked): return ('patch',), masked, lambda out, b: masked_patch_loss(out['patch'], b['pixels'], b['mask'])
def token(masked): return ('token',), masked, lambda out, b: masked_token_loss(out['token'], b['ids'], b['mask'])


CASES = {f'{f.__name__} {n}': f(n) for f in (clip, siglip, nested, clip_alike, siglip_alike, nested_alike)
         for n in (None, 1, 5)}
CASES |= {f'{f.__name__} {n}': f(n) for f in (patch, token) for n in (12, 4, 0)}


def value_and_gradients(names, masked, loss, rank=0, world=1, share=ROWS):
    model = Towers(names)
    wrapped = DistributedDataParallel(model) if world > 1 else model  # it must live until the gradients are averaged
    batch = {k: x.split([share, ROWS - share])[rank] for k, x in data(masked).items()}
    value = loss(wrapped(batch), batch)
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in model.parameters())]


def all_cases(rank, world):
    return {f'{name}, {share} + {ROWS - share} rows': value_and_gradients(*case, rank, world, share)
            for name, case in CASES.items() for share in SHARES}


def gathered(rank, world):
    "Rank r has 3 r + 1 rows that hold its number, and asks for weighted rows; each rank has weights of its own."
    x = torch.full((3 * rank + 1, 2), float(rank), requires_grad=True)
    rows, first = gather_rows(x)
    weights = torch.arange(10.).view(5, 2) * (rank + 1)
    (weights * rows).sum().backward()
    return rows.detach(), first, x.grad


def half_precision(rank, world):
    "Embeddings in bfloat16, 300 pairs."
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2, 300, 16, generator=g).bfloat16()
    image, text = (x[i].split([100, 200] if world > 1 else [300])[rank].requires_grad_() for i in range(2))
    loss = clip_loss(image, text, 20., chunk=64)
    loss.backward()
    return loss.detach(), image.grad / world, text.grad / world


def no_pairs(rank, world):
    "Every rank hears of it."
    empty = torch.empty(0, 4)
    with pytest.raises(ValueError, match='there is no pair'): clip_loss(empty, empty, 1.)
    return dist.get_world_size()


def on_each(rank, world):
    "All that this file asks of two ranks, because starting them takes longer than the work."
    return [f(rank, world) for f in (all_cases, gathered, half_precision, no_pairs)]


@pytest.fixture(scope='module')
def ranks(): return on_ranks(on_each, 2)


def test_two_ranks_equal_one_process(ranks):
    for rank, (found, *_) in enumerate(ranks):
        assert len(found) == len(CASES) * len(SHARES)
        for place, values in found.items():
            expected = value_and_gradients(*CASES[place.split(',')[0]])
            assert_close(values, expected, rtol=1e-9, atol=1e-11, msg=f'{place}, rank {rank}: {{}}'.format)


@pytest.mark.parametrize('name', ['clip', 'siglip', 'nested'])
def test_rows_that_are_alike_make_a_difference(name):
    assert value_and_gradients(*CASES[f'{name} 5'])[0] > value_and_gradients(*CASES[f'{name}_alike 5'])[0] + .01


@pytest.mark.parametrize('name', CASES)
def test_the_gradients_are_not_all_zero(name):
    "Or the comparison above would compare nothing; where no token counts they are zero, not missing."
    value, *grads = value_and_gradients(*CASES[name])
    for x in (value, *grads): assert bool(x.any()) == (name not in ('patch 0', 'token 0'))


def test_rows_come_in_the_order_of_the_ranks_and_gradients_go_home(ranks):
    weights = 3 * torch.arange(10.).view(5, 2)  # of both ranks together
    for rank, (_, (rows, first, grad), *_) in enumerate(ranks):
        assert_close(rows, torch.tensor([0., 1, 1, 1, 1])[:, None].expand(5, 2))
        assert first == rank
        assert_close(grad, weights[first:first + len(grad)])


def test_half_precision(ranks):
    (value, *grads), found = half_precision(0, 1), [r[2] for r in ranks]
    for other, *_ in found:
        assert_close(other, value)
        assert other.dtype == torch.float32
    for i in range(2): assert_close(torch.cat([found[0][1 + i], found[1][1 + i]]), grads[i], rtol=.01, atol=1e-8)


def test_no_pair_on_any_rank(ranks): assert [r[3] for r in ranks] == [2, 2]
