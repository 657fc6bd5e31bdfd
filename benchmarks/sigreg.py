"""What `mmjepa.sigreg` saves against the direct evaluation of all knots: `python benchmarks/sigreg.py`.

Timed: forward and backward from embeddings (n, d) that need a gradient and directions (d, k) to the gradient of the embeddings,
so the projection and its backward product count for both versions. The limit is what no version of this statistic avoids: the same
two matrix products, one sine and one cosine of each projected number. The variants take turns, so that a slow moment of the machine hits all.
Memory is the growth of the resident set at its highest, each variant in a fresh process (Linux).
"""
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from fastcore.script import call_parse
from torch.nn.functional import normalize

from mmjepa.sigreg import sigreg_statistic


def direct(z, directions, knots=17, t_max=3.):
    "The formula as it stands: a sine and a cosine at every knot, backward by autograd."
    t = torch.linspace(0, t_max, knots, dtype=z.dtype, device=z.device)
    phi = torch.exp(-t**2 / 2)
    angle = (z @ directions)[..., None] * t
    distance = (angle.cos().mean(0) - phi)**2 + angle.sin().mean(0)**2
    return len(z) * (2 * torch.trapezoid(distance * phi, t)).mean()


def limit(z, directions):
    "Two matrix products, one pass of sines and one of cosines."
    x = directions.T @ z.detach().T
    x.sin(), x.cos()
    return (directions @ x).T


def gradient(statistic, z, directions): return torch.autograd.grad(statistic(z, directions), z)[0]


VARIANTS = {'direct': lambda *a: gradient(direct, *a), 'mmjepa': lambda *a: gradient(sigreg_statistic, *a), 'limit': limit}


def inputs(n, d, k):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=g).requires_grad_(), normalize(torch.randn(d, k, generator=g), dim=0)


def resident(field):
    "MiB of this process now (`VmRSS`) or at its highest (`VmHWM`)."
    return int(re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) / 1024


def peak(variant, n, d, k):
    "Growth of the resident set in one call, in MiB; a tiny call before it loads what is loaded once."
    VARIANTS[variant](*inputs(8, 8, 8))
    args = inputs(n, d, k)
    Path('/proc/self/clear_refs').write_text('5')  # forget the highest value so far
    before = resident('VmRSS')
    out = VARIANTS[variant](*args)
    return resident('VmHWM') - before


def memory(variant, n, d, k, threads):
    "`peak` in a fresh process."
    command = [sys.executable, __file__, '--only', variant, *map(str, ('--n', n, '--d', d, '--k', k, '--threads', threads))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def timings(args, rounds):
    "Seconds of each variant in each round, as the clock and as the processor count them."
    times = {name: [] for name in VARIANTS}
    for i in range(rounds + 1):
        for name, f in VARIANTS.items():
            clock, processor = time.perf_counter(), time.process_time()
            f(*args)
            if i: times[name].append((time.perf_counter() - clock, time.process_time() - processor))  # the first round warms up
    return times


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
    if only: return print(peak(only, n, d, k))
    args = inputs(n, d, k)
    a, b = (VARIANTS[v](*args) for v in ('direct', 'mmjepa'))
    print(f'n={n} d={d} k={k}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, gradients differ by {(a - b).norm() / a.norm():.1e}')
    times = timings(args, rounds)
    rss = {v: memory(v, n, d, k, threads) for v in VARIANTS}
    for v, t in times.items():
        wall, cpu = zip(*t)
        print(f'{v:<7} least {min(wall)*1e3:6.0f} ms, median {statistics.median(wall)*1e3:6.0f} ms, processor time {min(cpu)*1e3:6.0f} ms, peak {rss[v]:5.0f} MiB')
    for name, pick in (('clock, least', lambda t: min(x for x, _ in t)), ('clock, median', lambda t: statistics.median(x for x, _ in t)),
                       ('processor, least', lambda t: min(x for _, x in t))):
        ours = pick(times['mmjepa'])
        print(f'{name:<17} direct / mmjepa {pick(times["direct"]) / ours:5.1f} (aim: 4 or more), mmjepa / limit {ours / pick(times["limit"]):4.1f}')
    print(f'{"memory":<17} direct / mmjepa {rss["direct"] / rss["mmjepa"]:5.1f} (aim: 6 or more)')
