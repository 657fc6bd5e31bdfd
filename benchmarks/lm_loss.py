"""What the language loss in chunks saves against the whole matrix of logits: `python benchmarks/lm_loss.py`.

Timed: forward and backward, from hidden states (t, d) and weights (v, d) to their gradients. The plain version is `cross_entropy` of all t * v logits.
The two take turns, so that a slow moment of the machine hits both; ratios are those of one round. Memory is the growth of the resident set at its
highest, each variant in a fresh process (Linux); gradients count, inputs don't. On a GPU it is what PyTorch's allocator had in use at most.
"""
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from fastcore.script import call_parse
from torch.nn.functional import cross_entropy

from mmjepa.core import get_device
from mmjepa.losses import lm_loss

CHUNK = 256
VARIANTS = {'plain': lambda h, w, y: cross_entropy((h @ w.T).flatten(0, 1), y.flatten()), 'lm_loss': lambda h, w, y: lm_loss(h, w, y, chunk=CHUNK)}


def inputs(t, d, v):
    "States, weights that need a gradient, and targets; a twentieth of them don't count."
    g = torch.Generator().manual_seed(0)
    hidden, weight, targets = torch.randn(1, t, d, generator=g), .05 * torch.randn(v, d, generator=g), torch.randint(v, (1, t), generator=g)
    targets[0, ::20] = -100
    device = get_device()
    return hidden.to(device).requires_grad_(), weight.to(device).requires_grad_(), targets.to(device)


def run(variant, args):
    "Value and gradients."
    value = VARIANTS[variant](*args)
    out = value.detach(), *torch.autograd.grad(value, args[:2])
    if value.is_cuda: torch.cuda.synchronize()
    return out


def resident(field):
    "MiB of this process now (`VmRSS`) or at its highest (`VmHWM`)."
    line = next(x for x in Path('/proc/self/status').read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def peak(variant, t, d, v):
    "Growth of the memory in one call, in MiB; a small call before it loads what is loaded once."
    run(variant, inputs(64, 8, 100))
    args = inputs(t, d, v)
    if args[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = run(variant, args)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path('/proc/self/clear_refs').write_text('5')  # forget the highest value so far
    before = resident('VmRSS')
    out = run(variant, args)
    return resident('VmHWM') - before


def memory(variant, t, d, v, chunk, threads):
    "`peak` in a fresh process."
    command = [sys.executable, __file__, '--only', variant, *map(str, ('--t', t, '--d', d, '--v', v, '--chunk', chunk, '--threads', threads))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


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
    global CHUNK
    CHUNK = chunk
    if threads: torch.set_num_threads(threads)
    if only: return print(peak(only, t, d, v))
    args = inputs(t, d, v)
    found = {name: run(name, args) for name in VARIANTS}  # warms up, too
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(found['lm_loss'], found['plain'])]
    del found
    times = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name in VARIANTS:
            start = time.perf_counter()
            run(name, args)
            times[name].append(time.perf_counter() - start)
    used = {name: memory(name, t, d, v, chunk, threads) for name in VARIANTS}
    print(f't={t} d={d} v={v} chunk={chunk}, {get_device()}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}')
    for name, s in times.items(): print(f'{name:<8} least {min(s):7.3f} s, median {statistics.median(s):7.3f} s, peak {used[name]:5.0f} MiB')
    ratios = [a / b for a, b in zip(times['lm_loss'], times['plain'])]
    print(f'ratio of times {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}; aim: 1.3 or less), of memory 1/{used["plain"] / used["lm_loss"]:.1f} (aim: 1/8 or less)')
    print('value and gradients differ from the plain ones by ' + ', '.join(f'{e:.0e}' for e in errors))
