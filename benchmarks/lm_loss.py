"""What the language loss in chunks saves against the whole matrix of logits: `python benchmarks/lm_loss.py`.

Timed: forward and backward, from hidden states (t, d) and weights (v, d) to their gradients. The plain version is
`cross_entropy` of all t * v logits. The two take turns, so that a slow moment of the machine hits both; ratios are
those of one round. Memory is the growth of the resident set at its highest, each variant in a fresh process (Linux);
gradients count, inputs don't. On a GPU it is what PyTorch's allocator had in use at most.
"""
import os
import statistics
from functools import partial

import torch
from fastcore.script import call_parse
from torch.nn.functional import cross_entropy

from measure import difference, fresh, growth, in_turn, ratios, spread
from mmjepa.core import get_device
from mmjepa.losses import lm_loss

VARIANTS = 'plain', 'lm_loss'


def inputs(t, d, v):
    "States, weights that need a gradient, and targets; a twentieth of them don't count."
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1, t, d, generator=g), .05 * torch.randn(v, d, generator=g)
    targets = torch.randint(v, (1, t), generator=g)
    targets[0, ::20] = -100
    device = get_device()
    return hidden.to(device).requires_grad_(), weight.to(device).requires_grad_(), targets.to(device)


def run(variant, args, chunk):
    "Value and gradients."
    hidden, weight, targets = args
    if variant == 'lm_loss': value = lm_loss(hidden, weight, targets, chunk=chunk)
    else: value = cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
    return value.detach(), *torch.autograd.grad(value, (hidden, weight))


def peak(variant, args, chunk):
    "Growth of the memory in one call, in MiB; a small call before it loads what is loaded once."
    run(variant, inputs(64, 8, 100), chunk)
    return growth(lambda: run(variant, args, chunk))


@call_parse
def main(
    t: int = 4096,     # tokens
    d: int = 512,      # numbers of a state
    v: int = 50_000,   # words
    chunk: int = 256,  # tokens at a time
    rounds: int = 5,   # timed calls of each variant
    threads: int = 0,  # of PyTorch; 0 for its default
    only: str = '',    # print the peak memory of this one variant in MiB and end
):
    "Time and peak memory of the plain loss and of mmjepa's, and their ratios."
    if threads: torch.set_num_threads(threads)
    args = inputs(t, d, v)
    if only: return print(peak(only, args, chunk))
    plain, ours = (run(name, args, chunk) for name in VARIANTS) # warms up, too
    errors = [difference([a], [b]) for a, b in zip(ours, plain)]
    del plain, ours
    times = in_turn({name: partial(run, name, args, chunk) for name in VARIANTS}, rounds, warm=0)
    mib = {name: fresh(__file__, only=name, t=t, d=d, v=v, chunk=chunk, threads=threads) for name in VARIANTS}
    print(f't={t} d={d} v={v} chunk={chunk}, {get_device()}, {torch.get_num_threads()} threads, '
          f'load {os.getloadavg()[0]:.1f}')
    for name, s in times.items():
        print(f'{name:<8} least {min(s):7.3f} s, median {statistics.median(s):7.3f} s, peak {mib[name]:5.0f} MiB')
    print(f'ratio of times {spread(ratios(times["lm_loss"], times["plain"]))} (aim: 1.3 or less), '
          f'of memory 1/{mib["plain"] / mib["lm_loss"]:.1f} (aim: 1/8 or less)')
    print('value and gradients differ from the plain ones by ' + ', '.join(f'{e:.0e}' for e in errors))
