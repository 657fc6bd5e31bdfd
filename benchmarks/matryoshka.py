"""The contrastive loss at several widths against the largest width alone: `python benchmarks/matryoshka.py`.

Timed: forward and backward from embeddings (b, d) and scale to their gradients. `largest` is `clip_loss` of all d numbers, `nested` is `mrl_loss`
of three widths, `naive` the mean of three `clip_loss`. The three take turns; ratios are those of one round. 1.3 or less is the aim.
"""
import statistics
import time

import torch
from fastcore.script import call_parse

from mmjepa.contrastive import clip_loss
from mmjepa.core import get_device
from mmjepa.contrastive import mrl_loss


@call_parse
def main(
    b: int = 4096,   # pairs
    d: int = 512,    # numbers
    rounds: int = 7, # turns of each
):
    "Median seconds and ratios to the largest width alone."
    device, dims = get_device(), (d // 4, d // 2, d)
    g = torch.Generator().manual_seed(0)
    a = torch.randn(b, d, generator=g)
    x, y, scale = (t.to(device).requires_grad_() for t in (a, a + torch.randn(b, d, generator=g), torch.tensor(20.)))
    variants = {'largest': lambda: clip_loss(x, y, scale), 'nested': lambda: mrl_loss(x, y, dims, logit_scale=scale),
                'naive': lambda: sum(clip_loss(x[:, :k], y[:, :k], scale) for k in dims) / len(dims)}

    def seconds(f):
        start = time.perf_counter()
        torch.autograd.grad(f(), (x, y, scale))
        if device.type == 'cuda': torch.cuda.synchronize()
        return time.perf_counter() - start

    for f in variants.values(): seconds(f)
    times = [{name: seconds(f) for name, f in variants.items()} for _ in range(rounds)]
    for name in variants:
        ratios = [t[name] / t['largest'] for t in times]
        print(f'{name:<8} {statistics.median(t[name] for t in times):.3f} s, ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})')
