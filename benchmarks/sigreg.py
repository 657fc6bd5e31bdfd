"""What `mmjepa.sigreg` saves against the direct evaluation of all knots: `python benchmarks/sigreg.py`.

Timed: forward and backward from embeddings (n, d) that need a gradient and directions (d, k) to the gradient of the
embeddings, so the projection and its backward product count for both versions. The limit is what no version of this
statistic avoids: the same two matrix products, one sine and one cosine of each projected number. The variants take
turns, so that a slow moment of the machine hits all. Memory is the growth of the resident set at its highest, each
variant in a fresh process (Linux).
"""
import os
import statistics
import time
from functools import partial

import torch
from fastcore.script import call_parse
from torch.nn.functional import normalize

from measure import difference, fresh, growth, in_turn
from mmjepa.sigreg import sigreg_statistic


def statistic(z, directions, knots=17, *, t_max=3.):
    "The formula as it stands: a sine and a cosine at every knot."
    t = torch.linspace(0, t_max, knots, dtype=z.dtype, device=z.device)
    phi = torch.exp(-t**2 / 2)
    angle = (z @ directions)[..., None] * t
    distance = (angle.cos().mean(0) - phi)**2 + angle.sin().mean(0)**2
    return len(z) * (2 * torch.trapezoid(distance * phi, t)).mean()


def direct(z, directions): return torch.autograd.grad(statistic(z, directions), z)[0]

def ours(z, directions): return torch.autograd.grad(sigreg_statistic(z, directions), z)[0]

def limit(z, directions):
    "Two matrix products, one pass of sines and one of cosines."
    x = directions.T @ z.detach().T
    x.sin(), x.cos()
    return (directions @ x).T


VARIANTS = {'direct': direct, 'mmjepa': ours, 'limit': limit}


def inputs(n, d, k):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=g).requires_grad_(), normalize(torch.randn(d, k, generator=g), dim=0)


def peak(f, args):
    "Growth of the resident set in one call, in MiB; a tiny call before it loads what is loaded once."
    f(*inputs(8, 8, 8))
    return growth(lambda: f(*args))


def both_clocks(f):
    "Milliseconds of a call, as the clock and as the processor count them."
    clock, processor = time.perf_counter(), time.process_time()
    f()
    return 1e3 * (time.perf_counter() - clock), 1e3 * (time.process_time() - processor)


@call_parse
def main(
    n: int = 1024,    # samples
    d: int = 512,     # dimensions
    k: int = 1024,    # directions
    rounds: int = 10, # timed calls of each variant
    threads: int = 0, # of PyTorch; 0 for its default
    only: str = '',   # print the peak memory of this one variant in MiB and end
):
    "Time and peak memory of the direct evaluation, of mmjepa and of the limit, and their ratios."
    if threads: torch.set_num_threads(threads)
    args = inputs(n, d, k)
    if only: return print(peak(VARIANTS[only], args))
    print(f'n={n} d={d} k={k}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, '
          f'gradients differ by {difference([direct(*args)], [ours(*args)]):.1e}')
    times = in_turn({v: partial(f, *args) for v, f in VARIANTS.items()}, rounds, clock=both_clocks)
    mib = {v: fresh(__file__, only=v, n=n, d=d, k=k, threads=threads) for v in VARIANTS}
    wall, cpu = ({v: [both[i] for both in t] for v, t in times.items()} for i in range(2))
    for v in VARIANTS:
        print(f'{v:<7} least {min(wall[v]):6.0f} ms, median {statistics.median(wall[v]):6.0f} ms, '
              f'processor time {min(cpu[v]):6.0f} ms, peak {mib[v]:5.0f} MiB')
    told = {'clock, least': (wall, min), 'clock, median': (wall, statistics.median), 'processor, least': (cpu, min)}
    for name, (t, pick) in told.items():
        plain, own, least = (pick(t[v]) for v in VARIANTS)
        print(f'{name:<17} direct / mmjepa {plain / own:5.1f} (aim: 4 or more), mmjepa / limit {own / least:4.1f}')
    print(f'{"memory":<17} direct / mmjepa {mib["direct"] / mib["mmjepa"]:5.1f} (aim: 6 or more)')
