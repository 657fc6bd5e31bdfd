"""Ranks and nearest rows in a large gallery, in a process of its own so that its memory can be read."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmjepa.pair_scores import partner_ranks, rank_table

ENV = {**os.environ, 'OMP_NUM_THREADS': '2', 'CUDA_VISIBLE_DEVICES': ''}
MEMORY = '''
import re, torch
from pathlib import Path
from mmjepa.pair_scores import nearest_rows, partner_ranks

def megabytes(name): return int(re.search(name + r':\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) / 1024

def measure(a, b):
    "Peak of memory beyond the inputs in MB, the largest error of some ranks, and the mean of all."
    partner_ranks(a[:9], b[:9]); nearest_rows(a[:9], b[:9])              # what is loaded once
    Path('/proc/self/clear_refs').write_text('5')                        # the peak starts here
    before = megabytes('VmRSS')
    ranks, found = partner_ranks(a, b), nearest_rows(a[:1000], b)    # all at once, those would be 800 and 400 MB
    peak = megabytes('VmHWM') - before
    some = torch.arange(0, min(len(a), 1000), len(a) // 20)
    unit = lambda x: torch.nn.functional.normalize(x.double(), dim=1)
    own, nearer = (unit(a[some]) * unit(b[some])).sum(1), torch.ones(len(some))
    best = torch.full((len(some),), -2.).double()
    for part in b.split(10_000):
        cosines = unit(a[some]) @ unit(part).T
        nearer += (cosines > own[:, None] + 1e-12).sum(1)
        best = best.maximum(cosines.max(1).values)
    far = (best - (unit(a[some]) * unit(b[found[some]])).sum(1)).max()
    print(peak, (nearer - ranks[some]).abs().max().item(), ranks.mean().item(), far.item())

g = torch.Generator().manual_seed(0)
b = torch.cat([torch.randn(10_000, 512, generator=g) for _ in range(10)])
a = b[:2000] + 8 * torch.randn(2000, 512, generator=g)
measure(a, b)
measure(a[:200].half(), b.half())
'''
IDS = MEMORY.split('def measure')[0] + '''
from mmjepa.pair_scores import rank_table
g = torch.Generator().manual_seed(0)
image = torch.randn(2000, 128, generator=g)[torch.arange(10_000) // 5]
text = image + 4 * torch.randn(10_000, 128, generator=g)
pair, single = torch.arange(10_000), torch.arange(10_000) // 5
rank_table(image[:9], text[:9], ids=single[:9])
Path('/proc/self/clear_refs').write_text('5')
before = megabytes('VmRSS')
groups = rank_table(image, text, ids=single)                 # all at once, the similarities would be 400 MB
found = rank_table(image, text, ids=torch.stack([single, pair], 1))
own = rank_table(image[::5], text[::5])
print(megabytes('VmHWM') - before, *(t[f'text_to_image_r{k}'] for k in (1, 5) for t in (groups, found, own)))
'''


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='reads the peak of memory from /proc of Linux')
def test_a_gallery_of_100_000_needs_little_memory():
    done = subprocess.run([sys.executable, '-c', MEMORY], capture_output=True, text=True, env=ENV, timeout=300)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    for line in done.stdout.splitlines():                                # float32, float16
        peak, wrong, mean, far = map(float, line.split())
        # MB; a row of similarities of all queries alone would be 800
        assert peak < 200, done.stdout
        assert wrong <= 1 and 100 < mean < 10_000 and far < 1e-6, done.stdout    # by rounding of two cosines


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='reads the peak of memory from /proc of Linux')
def test_five_captions_an_image_need_no_more():
    """10,000 captions of 2,000 images. Captions that search images meet each of them once: as many are found as by one
    caption an image, at R@1 by groups as well; at R@5 copies of one wrong image take all places of the groups."""
    done = subprocess.run([sys.executable, '-c', IDS], capture_output=True, text=True, env=ENV, timeout=300)
    assert done.returncode == 0, done.stderr
    peak, r1_groups, r1, r1_own, r5_groups, r5, r5_own = map(float, done.stdout.split())
    print(done.stdout)
    assert peak < 60, done.stdout
    assert abs(r1 - r1_groups) < .001 and abs(r1 - r1_own) < .02 and abs(r5 - r5_own) < .02
    assert r5 > r1 + .02 and abs(r5_groups - r1_groups) < .001


def test_ties_are_ties_at_any_size():
    "The same text many times over, in tiles of the same shape: no copy is nearer than another."
    torch.manual_seed(0)
    for n, copies, d in ((700, 2, 384), (213, 6, 77), (13, 100, 512)):
        texts = torch.randn(n, d)[torch.arange(n * copies) % n]
        for chunk in (1024, 300, 64):
            ranks = partner_ranks(texts, texts, chunk)
            assert torch.equal(ranks, torch.full((n * copies,), (copies + 1) / 2)), (n, chunk)
            table = rank_table(texts, texts, chunk=chunk, ks=(1,))
            assert table['image_to_text_r1'] == pytest.approx(1 / copies, abs=1e-12) == table['text_to_image_r1']


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_on_a_gpu_as_on_the_cpu():
    torch.manual_seed(0)
    a = torch.randn(3000, 64)
    b = a + torch.randn(3000, 64)
    close = (partner_ranks(a.cuda(), b.cuda()).cpu() - partner_ranks(a, b)).abs()
    assert close.max() <= 2 and (close > 0).float().mean() < .02
