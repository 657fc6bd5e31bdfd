"""Fused attention against two matrix products and a softmax, forward and backward, by sequence length.

`mmjepa.encoders.use_fused_attention` holds the choice that these ratios suggest.
    python benchmarks/attention.py
"""
import torch
from timm.layers import Attention

from measure import seconds
from mmjepa.core import get_device
from mmjepa.training import has_fast_bf16


def least(n, fused, device, *, dtype, repeats=7):
    "Smallest time of several calls on `n` tokens."
    attention = Attention(192, 3, qkv_bias=True).to(device, dtype)
    attention.fused_attn = fused
    x = torch.randn(max(4, 16384 // n), n, 192, device=device, dtype=dtype, requires_grad=True)
    def step(): attention(x).sum().backward()
    step()
    return min(seconds(step) for _ in range(repeats))


def main():
    device = get_device()
    dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    print(f'{device}, {torch.get_num_threads()} threads, {dtype}: time of plain / fused, more than 1: fused is faster')
    for n in (17, 65, 129, 197, 257, 513):
        plain, fused = (least(n, choice, device, dtype=dtype) for choice in (False, True))
        print(f'{n:4} tokens: {plain / fused:.2f}')


if __name__ == '__main__': main()
