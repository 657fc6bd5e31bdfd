"""What a batch of masks costs: `python benchmarks/masking.py`.

One thread, 1,024 rows of 256 tokens (a grid of 16 x 16), with and without padding. The functions take turns, so that
a slow moment of the machine hits all; least and median of the rounds are printed. The aim is 20 ms for each of them.
"""
import os
import statistics
from functools import partial

import torch
from fastcore.script import call_parse

from measure import in_turn
from mmjepa.core import make_generator
from mmjepa.masking import JEPAMasking, block_mask, multiblock_mask, random_mask, span_mask


def paddings(b, side, generator):
    "Of images, at least half of the grid's height and width, and of texts."
    height, width = (torch.randint(side // 2, side + 1, (b, 1, 1), generator=generator) for _ in range(2))
    images = ((torch.arange(side)[:, None] < height) & (torch.arange(side) < width)).flatten(1)
    return images, torch.arange(side * side) < torch.randint(1, side * side + 1, (b, 1), generator=generator)


def variants(b, side, generator):
    "Calls by name."
    n, grid, calls = side * side, (side, side), {}
    images, texts = paddings(b, side, generator)
    for name, image, text in (('', None, None), (', padding', images, texts)):
        of_image, of_text = (dict(generator=generator, padding=p) for p in (image, text))
        for ratio in (.15, .5, 1.):
            calls[f'random_mask {ratio}{name}'] = partial(random_mask, b, n, ratio, **of_text)
            calls[f'span_mask {ratio}{name}'] = partial(span_mask, b, n, ratio, span=32, **of_text)
            calls[f'block_mask {ratio}{name}'] = partial(block_mask, b, grid, ratio, **of_image)
        calls[f'multiblock_mask{name}'] = partial(multiblock_mask, b, grid, **of_image)
    patches = torch.empty(b, n, 1)
    for modality in ('vision', 'language', 'joint'):
        calls[f'JEPAMasking, {modality}'] = partial(JEPAMasking().generate_mask, patches, modality, generator)
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
    times = in_turn(variants(b, side, make_generator('benchmark')), rounds)
    ms = {name: [1e3 * s for s in t] for name, t in times.items()}
    print(f'{b} rows of {side * side} tokens, {threads} threads, load {os.getloadavg()[0]:.1f}')
    for name, t in ms.items(): print(f'{name:<30} least {min(t):5.1f} ms, median {statistics.median(t):5.1f} ms')
    worst = max(ms, key=lambda name: min(ms[name]))
    print(f'slowest: {worst}, limit {limit:.0f} ms: {"kept" if min(ms[worst]) <= limit else "EXCEEDED"}')
