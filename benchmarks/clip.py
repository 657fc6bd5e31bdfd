"""What the contrastive losses in tiles save against the whole matrix of logits: `python benchmarks/clip.py`.

Timed: forward and backward, from embeddings (b, d), scale (and bias) that need a gradient to their gradients. The
plain versions make all b * b logits: `cross_entropy` of them and of their transpose (CLIP), `logsigmoid` of them
with signs (SigLIP). The variants take turns, so that a slow moment of the machine hits all. Memory is the growth of
the resident set at its highest, each variant in a fresh process (Linux); gradients count, inputs don't. Errors are
relative to the plain version in float64, at a smaller batch, in the norm of each gradient, the largest of them.
"""
import os
import statistics
from functools import partial

import torch
from fastcore.script import call_parse
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from measure import difference, fresh, growth, in_turn
from mmjepa.contrastive import clip_loss, siglip_loss


def plain_clip(image, text, scale, *, bias, chunk):
    logits = scale * normalize(image, dim=-1) @ normalize(text, dim=-1).T
    labels = torch.arange(len(image))
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def plain_siglip(image, text, scale, *, bias, chunk):
    logits = scale * normalize(image, dim=-1) @ normalize(text, dim=-1).T + bias
    sign = 2 * torch.eye(len(image), dtype=logits.dtype) - 1
    return -logsigmoid(sign * logits).sum() / len(image)


def clip(image, text, scale, *, bias, chunk): return clip_loss(image, text, scale, chunk=chunk)

def siglip(image, text, scale, *, bias, chunk): return siglip_loss(image, text, scale, logit_bias=bias, chunk=chunk)


VARIANTS = {'plain clip': plain_clip, 'clip': clip, 'plain siglip': plain_siglip, 'siglip': siglip}


def inputs(b, d):
    "Pairs that are alike, but not so much that the loss vanishes."
    g = torch.Generator().manual_seed(0)
    image = torch.randn(b, d, generator=g)
    text = image + 4 * torch.randn(b, d, generator=g)
    return [x.requires_grad_() for x in (image, text, torch.tensor(20.), torch.tensor(-10.))]


def run(variant, args, chunk):
    "Value and gradients; CLIP has no bias."
    image, text, scale, bias = args
    value = VARIANTS[variant](image, text, scale, bias=bias, chunk=chunk)
    wanted = args if 'siglip' in variant else args[:-1]
    return value.detach(), *torch.autograd.grad(value, wanted)


def peak(variant, args, chunk):
    "Growth of the resident set in one call, in MiB; a small call before it loads what is loaded once."
    run(variant, inputs(64, 8), chunk)
    return growth(lambda: run(variant, args, chunk))


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
    if threads: torch.set_num_threads(threads)
    args, tile = inputs(b, d), chunk or None
    if only: return print(peak(only, args, tile))
    times = in_turn({v: partial(run, v, args, tile) for v in VARIANTS}, rounds)
    mib = {v: fresh(__file__, only=v, b=b, d=d, chunk=chunk, threads=threads) for v in VARIANTS}
    small = inputs(min(b, 1024), d)
    double = [x.detach().double().requires_grad_() for x in small]
    print(f'b={b} d={d} chunk={tile}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}')
    for v, t in times.items():
        error = difference(run(v, small, tile), run(f'plain {v.split()[-1]}', double, tile))
        print(f'{v:<13} least {min(t):6.2f} s, median {statistics.median(t):6.2f} s, '
              f'peak {mib[v]:5.0f} MiB, error {error:.0e}')
    for v in ('clip', 'siglip'):
        plain = f'plain {v}'
        least, median = (f(times[v]) / f(times[plain]) for f in (min, statistics.median))
        print(f'{v:<6} / plain: time {least:.2f} (median {median:.2f}; aim: 1.2 or less), '
              f'memory 1/{mib[plain] / mib[v]:.1f} (aim: 1/4 or less)')
