"""Fused attention against two matrix products and a softmax, forward and backward, by sequence length.

`mmjepa.encoders.use_fused_attention` holds the choice that these ratios suggest.
    python benchmarks/attention.py
"""
import time

import torch
from timm.layers import Attention

from mmjepa.core import get_device
from mmjepa.training import has_fast_bf16


def seconds(f, repeats=7):
    "Smallest time of several calls."
    best = float('inf')
    for _ in range(repeats):
        start = time.perf_counter(); f()
        if torch.cuda.is_available(): torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def main():
    device = get_device()
    dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    print(f'{device}, {torch.get_num_threads()} threads, {dtype}: time of plain / fused, more than 1: fused is faster')
    for n in (17, 65, 129, 197, 257, 513):
        attention = Attention(192, 3, qkv_bias=True).to(device, dtype)
        x = torch.randn(max(4, 16384 // n), n, 192, device=device, dtype=dtype, requires_grad=True)
        times = {}
        for fused in (False, True):
            attention.fused_attn = fused
            step = lambda: attention(x).sum().backward()
            step(); times[fused] = seconds(step)
        print(f'{n:4} tokens: {times[False] / times[True]:.2f}')


if __name__ == '__main__': main()
