"""Images a second of the loaders of records against a bare loop that only decodes and transforms: `python benchmarks/loader.py`.
Before that, the time to open a million JSON lines against plain reads of the file.

The bare loop is torch's own DataLoader over a list of paths: open with Pillow, `square_pixels`, stack; no JSON, no check of paths, no text,
no state that could be resumed. It does the same decoding and transform, with the same number of workers. All variants take turns, in an order
that changes from round to round, so that a slow moment of the machine hits all. A ratio of 0.9 or more is the aim.
"""
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mmjepa.core import data_dir
from mmjepa.data.records import JsonRecords, digit_pairs
from mmjepa.data.loaders import get_json_loaders
from mmjepa.data.images import square_pixels


class Bare(Dataset):
    "Paths in, bytes out."
    def __init__(self, paths, size): self.paths, self.size = paths, size
    def __len__(self): return len(self.paths)
    def __getitem__(self, i):
        with Image.open(self.paths[i]) as image: return torch.from_numpy(square_pixels(image, 'RGB', self.size).transpose(2, 0, 1).copy())


def bare(path, size, batch_size, workers):
    "The loop to compare with, over the training records of the JSON loader, in an order drawn anew."
    records = JsonRecords(path)
    paths = [str(records.folder/records.fields(i)['image']) for i in range(len(records))]
    return DataLoader(Bare(paths, size), batch_size, shuffle=True, num_workers=workers, drop_last=True)


def json_loader(mode):
    "The training loader of JSON lines, with all records but one."
    def make(path, size, batch_size, workers):
        return get_json_loaders(path, mode, batch_size, num_workers=workers, image_size=size, val_split=1e-9)[0]
    return make


VARIANTS = {'bare': bare, 'JSON, image': json_loader('image'), 'JSON, pair': json_loader('pair')}


def images_per_second(loader, epochs):
    "Over whole epochs, the start of workers included."
    start, n = time.perf_counter(), 0
    for epoch in range(epochs):
        if hasattr(loader.sampler, 'set_epoch'): loader.sampler.set_epoch(epoch)
        n += sum(len(b['image'] if isinstance(b, dict) else b) for b in loader)
    return n / (time.perf_counter() - start)


def photos(folder, n, side, seed=0):
    "JPEG files of smooth random pictures with a text each: decoding costs what it costs for photographs."
    generator, lines = np.random.default_rng(seed), []
    for i in range(n):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(folder/f'{i}.jpg', quality=90)
        lines.append(f'{{"image": "{i}.jpg", "text": "a smooth picture, number {i}"}}\n')
    (folder/'pairs.jsonl').write_text(''.join(lines))
    return folder/'pairs.jsonl'


def opening(folder, rounds, rows=1_000_000):
    "Time of `JsonRecords(path)`, of a loop over the lines, and of reading the file whole; the file is in the disk cache."
    path = folder/'long.jsonl'
    path.write_bytes(b'{"image": "png/0000000.png", "text": "a picture of something, and a few words more"}\n' * rows)
    def lines():
        with open(path, 'rb') as f:
            for _ in f: pass
    tasks, times = {'JsonRecords': lambda: JsonRecords(path), 'lines': lines, 'whole': path.read_bytes}, {}
    for _ in range(rounds):
        for name, task in tasks.items():
            start = time.perf_counter(); task()
            times.setdefault(name, []).append(time.perf_counter() - start)
    best = {name: min(t) for name, t in times.items()}
    print(f'{rows:,} lines, {path.stat().st_size / 1e6:.0f} MB, least of {rounds} rounds: ' + ', '.join(f'{name} {1e3 * t:.0f} ms' for name, t in best.items()))


@call_parse
def main(
    workers: int = 2,     # processes of each loader; 0 for none
    batch_size: int = 64, # images a batch
    size: int = 64,       # side of the result, pixels
    rounds: int = 7,      # turns of each variant
    epochs: int = 2,      # passes over the set in a turn
    side: int = 240,      # height of the JPEG files, pixels
):
    "Median images a second and the ratio to the bare loop of the same round."
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        opening(Path(folder), rounds)
        emoji = data_dir()/'emoji/pairs.jsonl'
        sets = {'photos (JPEG)': photos(Path(folder), 600, side), 'emoji' if emoji.exists() else 'digits': emoji if emoji.exists() else digit_pairs(Path(folder)/'digits', 1797)}
        for name, path in sets.items():
            loaders = {v: make(path, size, batch_size, workers) for v, make in VARIANTS.items()}
            speed = {v: [] for v in VARIANTS}
            for r in range(rounds + 1):
                for v in sorted(VARIANTS, key=lambda v: hash((v, r))):
                    found = images_per_second(loaders[v], epochs)
                    if r: speed[v].append(found) # the first round fills the disk cache
            for v in VARIANTS:
                ratios = [a / b for a, b in zip(speed[v], speed['bare'])]
                print(f'{name:<14} {workers} workers  {v:<12} {statistics.median(speed[v]):7.0f} images/s, ratio to bare: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}')
