"""What the contrastive losses in tiles save against the whole matrix of logits: `python benchmarks/clip.py`.

Timed: forward and backward, from embeddings (b, d), scale (and bias) that need a gradient to their gradients. The plain versions make all b * b logits:
`cross_entropy` of them and of their transpose (CLIP), `logsigmoid` of them with signs (SigLIP). The variants take turns, so that a slow moment of the
machine hits all. Memory is the growth of the resident set at its highest, each variant in a fresh process (Linux); gradients count, inputs don't.
Errors are relative to the plain version in float64, at a smaller batch, in the norm of each gradient, the largest of them.
"""
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from fastcore.script import call_parse
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from mmjepa.contrastive import clip_loss, siglip_loss


def plain_clip(image, text, scale, bias):
    logits = scale * normalize(image, dim=-1) @ normalize(text, dim=-1).T
    labels = torch.arange(len(image))
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def plain_siglip(image, text, scale, bias):
    logits = scale * normalize(image, dim=-1) @ normalize(text, dim=-1).T + bias
    sign = 2 * torch.eye(len(image), dtype=logits.dtype) - 1
    return -logsigmoid(sign * logits).sum() / len(image)


CHUNK = None
VARIANTS = {'plain clip': plain_clip, 'clip': lambda i, t, s, b: clip_loss(i, t, s, chunk=CHUNK),
            'plain siglip': plain_siglip, 'siglip': lambda i, t, s, b: siglip_loss(i, t, s, logit_bias=b, chunk=CHUNK)}


def inputs(b, d):
    "Pairs that are alike, but not so much that the loss vanishes."
    g = torch.Generator().manual_seed(0)
    image = torch.randn(b, d, generator=g)
    return [x.requires_grad_() for x in (image, image + 4 * torch.randn(b, d, generator=g), torch.tensor(20.), torch.tensor(-10.))]


def run(variant, args):
    "Value and gradients."
    value = VARIANTS[variant](*args)
    return value.detach(), *torch.autograd.grad(value, args[:3] + args[3:] * ('siglip' in variant))


def resident(field):
    "MiB of this process now (`VmRSS`) or at its highest (`VmHWM`)."
    line = next(x for x in Path('/proc/self/status').read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def peak(variant, b, d):
    "Growth of the resident set in one call, in MiB; a small call before it loads what is loaded once."
    run(variant, inputs(64, 8))
    args = inputs(b, d)
    Path('/proc/self/clear_refs').write_text('5')  # forget the highest value so far
    before = resident('VmRSS')
    out = run(variant, args)
    return resident('VmHWM') - before


def memory(variant, b, d, chunk, threads):
    "`peak` in a fresh process."
    command = [sys.executable, __file__, '--only', variant, *map(str, ('--b', b, '--d', d, '--chunk', chunk, '--threads', threads))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def error(found, exact): return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, exact))


@call_parse
def main(
    b: int = 8192,    # pairs
    d: int = 512,     # dimensions
    chunk: int = 0,   # texts in a tile; 0 lets the library choose
    rounds: int = 5,  # timed calls of each variant
    threads: int = 0, # of PyTorch; 0 for its default
    only: str = '',   # print the peak memory of this one variant in MiB and end
):
    "Time and peak memory of the plain losses and of mmjepa's, and their ratios."
    global CHUNK
    CHUNK = chunk or None
    if threads: torch.set_num_threads(threads)
    if only: return print(peak(only, b, d))
    args = inputs(b, d)
    times = {v: [] for v in VARIANTS}
    for i in range(rounds + 1):
        for v in VARIANTS:
            start = time.perf_counter()
            run(v, args)
            if i: times[v].append(time.perf_counter() - start)  # the first round warms up
    rss = {v: memory(v, b, d, chunk, threads) for v in VARIANTS}
    small = inputs(min(b, 1024), d)
    exact = {v: run(f'plain {v}', [x.detach().double().requires_grad_() for x in small]) for v in ('clip', 'siglip')}
    print(f'b={b} d={d} chunk={CHUNK}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}')
    for v, t in times.items():
        print(f'{v:<13} least {min(t):6.2f} s, median {statistics.median(t):6.2f} s, peak {rss[v]:5.0f} MiB, error {error(run(v, small), exact[v.split()[-1]]):.0e}')
    for v in exact:
        time_ratio, median_ratio = (f(times[v]) / f(times[f'plain {v}']) for f in (min, statistics.median))
        print(f'{v:<6} / plain: time {time_ratio:.2f} (median {median_ratio:.2f}; aim: 1.2 or less), memory 1/{rss[f"plain {v}"] / rss[v]:.1f} (aim: 1/4 or less)')
