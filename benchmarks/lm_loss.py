"""What the language loss in chunks saves against the whole matrix of logits: `python benchmarks/lm_loss.py`.

Timed: forward and backward, from hidden states (t, d) and weights (v, d) to their gradients. The plain version is
`cross_entropy` of all t * v logits; `torch` is PyTorch's own `linear_cross_entropy` (from 2.14 on) in chunks as long,
and `torch, auto` in those that it chooses. They take turns, so that a slow moment of the machine hits all; ratios are
those of one round. Memory is the growth of the resident set at its highest, each variant in a fresh process (Linux);
gradients count, inputs don't. On a GPU it is what PyTorch's allocator had in use at most.
"""
import os
import statistics
from functools import partial

import torch
from fastcore.script import call_parse
from torch.nn import functional
from torch.nn.functional import cross_entropy

from measure import difference, fresh, growth, in_turn, ratios, spread
from mmjepa.core import get_device
from mmjepa.losses import lm_loss

OWN = 'torch', 'torch, auto'  # PyTorch's
VARIANTS = 'plain', 'lm_loss', *(OWN if hasattr(functional, 'linear_cross_entropy') else ())


def inputs(t, d, v, dtype=torch.float32):
    "States, weights that need a gradient, and targets; a twentieth of them don't count."
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1, t, d, generator=g), .05 * torch.randn(v, d, generator=g)
    targets = torch.randint(v, (1, t), generator=g)
    targets[0, ::20] = -100
    device = get_device()
    hidden, weight = (x.to(device, dtype).requires_grad_() for x in (hidden, weight))
    return hidden, weight, targets.to(device)


def pytorchs(hidden, weight, targets, chunk):
    "PyTorch's own; a chunk of None is left to it."
    options = {} if chunk is None else {'batch_chunk_size': chunk, 'chunking_method': None}
    options = torch.nn.LinearCrossEntropyOptions(**options)
    return functional.linear_cross_entropy(hidden.flatten(0, 1), weight, targets.flatten(), options=options)


def run(variant, args, chunk):
    "Value and gradients."
    hidden, weight, targets = args
    if variant == 'lm_loss': value = lm_loss(hidden, weight, targets, chunk=chunk)
    elif variant in OWN: value = pytorchs(hidden, weight, targets, chunk=None if variant.endswith('auto') else chunk)
    else: value = cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
    return value.detach(), *torch.autograd.grad(value, (hidden, weight))


def peak(variant, args, chunk):
    "Growth of the memory in one call, in MiB; a small call before it loads what is loaded once."
    run(variant, inputs(64, 8, 100, args[0].dtype), chunk)
    return growth(lambda: run(variant, args, chunk))


@call_parse
def main(
    t: int = 4096,     # tokens
    d: int = 512,      # numbers of a state
    v: int = 50_000,   # words
    chunk: int = 256,  # tokens at a time
    rounds: int = 5,   # timed calls of each variant
    threads: int = 0,  # of PyTorch; 0 for its default
    dtype: str = 'float32', # of states and weights: float32, bfloat16 or float64
    only: str = '',    # print the peak memory of this one variant in MiB and end
):
    "Time and peak memory of the plain loss, of mmjepa's and of PyTorch's, and their ratios to the plain one's."
    if threads: torch.set_num_threads(threads)
    args = inputs(t, d, v, getattr(torch, dtype))
    if only: return print(peak(only, args, chunk))
    plain, *others = (run(name, args, chunk) for name in VARIANTS) # warms up, too
    errors = [[difference([a], [b]) for a, b in zip(other, plain)] for other in others]
    del plain, others
    times = in_turn({name: partial(run, name, args, chunk) for name in VARIANTS}, rounds, warm=0)
    mib = {name: fresh(__file__, only=name, t=t, d=d, v=v, chunk=chunk, threads=threads, dtype=dtype)
           for name in VARIANTS}
    print(f't={t} d={d} v={v} chunk={chunk} {dtype}, {get_device()}, {torch.get_num_threads()} threads, '
          f'load {os.getloadavg()[0]:.1f}')
    for name, s in times.items():
        print(f'{name:<11} least {min(s):7.3f} s, median {statistics.median(s):7.3f} s, peak {mib[name]:5.0f} MiB')
    for name, wrong in zip(VARIANTS[1:], errors):
        print(f'{name}: ratio of times {spread(ratios(times[name], times["plain"]))}, '
              f'of memory 1/{mib["plain"] / mib[name]:.1f}, value and gradients differ by '
              + ', '.join(f'{e:.0e}' for e in wrong))
    print('aim of lm_loss: times 1.3 or less, memory 1/8 or less')
