"Does a step have the same gradient however its rows are cut into micro-batches, and over ranks?"
import copy
import tempfile

import torch

from mmjepa.training import TrainConfig, fit
from ranks import on_ranks


class _Catch(torch.optim.SGD):
    "Keeps the gradient of its step, and moves nothing."
    def step(self, closure=None): self.found.append([p.grad for g in self.param_groups for p in g['params']])
    def zero_grad(self, set_to_none=True): super().zero_grad(True)


class _Batches(list):
    "A loader of batches that are there."
    class sampler:
        def set_epoch(self, epoch): pass
    sampler = sampler()


def join(rows):
    "Rows, each a batch of one, as one batch."
    return {k: torch.cat([row[k] for row in rows]) for k in rows[0]}


def gradient(model, objective, rows, *, size, join=join, callbacks=None):
    "Of one step over `rows`, `size` of them at a time: all parameters in one vector, in float64."
    found, batches = [], _Batches(join(rows[i:i + size]) for i in range(0, len(rows), size))
    def optimizer(groups):
        made = _Catch(groups, lr=1.)
        made.found = found
        return made
    model, objective = copy.deepcopy((model, objective))  # SIGReg counts its steps
    names = {id(p): n for n, p in model.named_parameters()}
    config = TrainConfig(epochs=1, accumulate=len(batches), precision='fp32', clip_norm=0., weight_decay=0.)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, objective, batches, config=config, output_dir=folder, optimizer=optimizer, callbacks=callbacks)
    grads = found[0]
    assert len(found) == 1 and len(grads) == len(names) - sum(not p.requires_grad for p in model.parameters())
    return torch.cat([torch.zeros(1) if g is None else g.flatten().double() for g in grads])


def _on_rank(rank, world, make, join, sizes):
    model, objective, rows = make()
    own = rows[:3] if rank == 0 else rows[3:6] if world == 2 else rows  # as many on each rank
    return [gradient(model, objective, own, size=size, join=join) for size in sizes]


def assert_same(found, expected, what):
    "Equal direction, to 1e-6, and equal length."
    assert expected.norm() > 0
    cosine = torch.nn.functional.cosine_similarity(found, expected, dim=0).item()
    assert abs(cosine - 1) < 1e-6, f'{what}: cosine {cosine}'
    assert abs(found.norm() / expected.norm() - 1) < 1e-5, f'{what}: length {found.norm()}, expected {expected.norm()}'


def assert_same_gradient(make, *, join=join, ranks=True):
    """`make()` returns model, objective and 8 rows of unequal weight, each a batch of one, ready for the model; with
    `ranks` it (and `join`) belong to a module that a new process can import. The model must not draw random numbers."""
    model, objective, rows = make()
    whole = gradient(model, objective, rows, size=8, join=join)
    for size in (4, 2, 1):
        assert_same(gradient(model, objective, rows, size=size, join=join), whole, f'{8 // size} parts')
    if not ranks: return
    whole = gradient(model, objective, rows[:6], size=6, join=join)
    for found in on_ranks(_on_rank, 2, make, join, (3, 1)):
        for size, grads in zip((3, 1), found): assert_same(grads, whole, f'2 ranks, {3 // size} parts')
