"""The contrastive loss at several widths against the largest width alone: `python benchmarks/matryoshka.py`.

Timed: forward and backward from embeddings (b, d) and scale to their gradients. `largest` is `clip_loss` of all d
numbers, `nested` is `mrl_loss` of three widths, `naive` the mean of three `clip_loss`. The three take turns; ratios
are those of one round. 1.3 or less is the aim.
"""
import statistics

import torch
from fastcore.script import call_parse

from measure import in_turn, ratios, spread
from mmjepa.contrastive import clip_loss, mrl_loss
from mmjepa.core import get_device


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
    drawn = a, a + torch.randn(b, d, generator=g), torch.tensor(20.)
    x, y, scale = args = [t.to(device).requires_grad_() for t in drawn]

    def largest(): return torch.autograd.grad(clip_loss(x, y, scale), args)
    def nested(): return torch.autograd.grad(mrl_loss(x, y, dims, logit_scale=scale), args)
    def naive(): return torch.autograd.grad(sum(clip_loss(x[:, :k], y[:, :k], scale) for k in dims) / len(dims), args)

    times = in_turn({'largest': largest, 'nested': nested, 'naive': naive}, rounds)
    for name, t in times.items():
        print(f'{name:<8} {statistics.median(t):.3f} s, ratio {spread(ratios(t, times["largest"]))}')
