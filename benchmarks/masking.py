"""What a batch of masks costs: `python benchmarks/masking.py`.

One thread, 1,024 rows of 256 tokens (a grid of 16 x 16), with and without padding. The functions take turns, so that a slow moment of the machine
hits all; least and median of the rounds are printed. The aim is 20 ms for each of them.
"""
import os
import statistics
import time

import torch
from fastcore.script import call_parse

from mmjepa.core import make_generator
from mmjepa.masking import JEPAMasking, block_mask, multiblock_mask, random_mask, span_mask


def variants(b, side, generator):
    "Calls by name."
    n, grid = side * side, (side, side)
    height, width = (torch.randint(side // 2, side + 1, (b, 1, 1), generator=generator) for _ in range(2))
    images = ((torch.arange(side)[:, None] < height) & (torch.arange(side) < width)).flatten(1)  # of half the grid's side at least
    texts = torch.arange(n) < torch.randint(1, n + 1, (b, 1), generator=generator)
    calls = {}
    for name, image, text in (('', None, None), (', padding', images, texts)):
        for ratio in (.15, .5, 1.):
            calls[f'random_mask {ratio}{name}'] = lambda r=ratio, p=text: random_mask(b, n, r, generator=generator, padding=p)
            calls[f'span_mask {ratio}{name}'] = lambda r=ratio, p=text: span_mask(b, n, r, span=32, generator=generator, padding=p)
            calls[f'block_mask {ratio}{name}'] = lambda r=ratio, p=image: block_mask(b, grid, r, generator=generator, padding=p)
        calls[f'multiblock_mask{name}'] = lambda p=image: multiblock_mask(b, grid, generator, padding=p)
    patches = torch.empty(b, n, 1)
    for modality in ('vision', 'language', 'joint'):
        calls[f'JEPAMasking, {modality}'] = lambda m=modality: JEPAMasking().generate_mask(patches, m, generator)
    return calls


@call_parse
def main(
    b: int = 1024,     # rows
    side: int = 16,    # height and width of the grid, patches
    rounds: int = 15,  # timed calls of each function
    threads: int = 1,  # of PyTorch
    limit: float = 20, # milliseconds that should not be exceeded
):
    "Milliseconds of each function."
    torch.set_num_threads(threads)
    calls = variants(b, side, make_generator('benchmark'))
    times = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, f in calls.items():
            start = time.perf_counter()
            f()
            if i: times[name].append(1e3 * (time.perf_counter() - start))  # the first round warms up
    print(f'{b} rows of {side * side} tokens, {threads} threads, load {os.getloadavg()[0]:.1f}')
    for name, t in times.items(): print(f'{name:<30} least {min(t):5.1f} ms, median {statistics.median(t):5.1f} ms')
    worst = max(times, key=lambda name: min(times[name]))
    print(f'slowest: {worst}, limit {limit:.0f} ms: {"kept" if min(times[worst]) <= limit else "EXCEEDED"}')
