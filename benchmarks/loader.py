"""Images a second of the loaders of records against a bare loop that only decodes and transforms.

    python benchmarks/loader.py

Before that, the time to open a million JSON lines against plain reads of the file.

The bare loop is torch's own DataLoader over a list of paths: open with Pillow, `sized_pixels`, stack; no JSON, no
check of paths, no text, no state that could be resumed. It does the same decoding and transform, with the same
number of workers. All variants take turns, in an order that changes from round to round, so that a slow moment of
the machine hits all. A ratio of 0.9 or more is the aim.
"""
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from measure import in_turn, ratios, spread
from mmjepa.core import data_dir
from mmjepa.data.images import sized_pixels
from mmjepa.data.loaders import get_json_loaders
from mmjepa.data.records import JsonRecords, digit_pairs


class Bare(Dataset):
    "Paths in, bytes out."
    def __init__(self, paths, size): self.paths, self.size = paths, size
    def __len__(self): return len(self.paths)
    def __getitem__(self, i):
        with Image.open(self.paths[i]) as image: pixels = sized_pixels(image, 'RGB', self.size)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


@dataclass(frozen=True)
class Work:
    "What all loaders do."
    workers: int # processes of each; 0 for none
    batch_size: int # images
    size: int # side of the result, pixels

    def bare(self, path: Path) -> DataLoader:
        "The loop to compare with, over the training records of the JSON loader, in an order drawn anew."
        records = JsonRecords(path)
        data = Bare([str(records.folder/records.fields(i)['image']) for i in range(len(records))], self.size)
        return DataLoader(data, self.batch_size, shuffle=True, num_workers=self.workers, drop_last=True)

    def json(self, path: Path, mode: str) -> Iterable:
        "The training loader of JSON lines, with all records but one."
        return get_json_loaders(path, mode, self.batch_size, num_workers=self.workers, image_size=self.size,
                                val_split=1e-9)[0]


def images_per_second(loader, epochs):
    "Over whole epochs, the start of workers included."
    start, n = time.perf_counter(), 0
    for epoch in range(epochs):
        if hasattr(loader.sampler, 'set_epoch'): loader.sampler.set_epoch(epoch)
        n += sum(len(b['image'] if isinstance(b, dict) else b) for b in loader)
    return n / (time.perf_counter() - start)


def compare(
    loaders: dict[str, Iterable], # by name; 'bare' is the one to compare with
    rounds: int, # turns of each
    epochs: int, # passes in a turn
    *,
    name: str, # of the data
):
    "Print images a second of each and the ratio to the bare loop of the same round."
    speed = {v: [] for v in loaders}
    for r in range(rounds + 1):
        for v in sorted(loaders, key=lambda v: hash((v, r))):
            found = images_per_second(loaders[v], epochs)
            if r: speed[v].append(found) # the first round fills the disk cache
    for v, found in speed.items():
        print(f'{name:<14} {v:<14} {statistics.median(found):7.0f} images/s, '
              f'ratio to bare {spread(ratios(found, speed["bare"]))}')


def photos(folder, n, side):
    "JPEG files of smooth random pictures with a text each: decoding costs what it costs for photographs."
    generator, lines = np.random.default_rng(0), []
    for i in range(n):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(folder/f'{i}.jpg', quality=90)
        lines.append(f'{{"image": "{i}.jpg", "text": "a smooth picture, number {i}"}}\n')
    (folder/'pairs.jsonl').write_text(''.join(lines))
    return folder/'pairs.jsonl'


def sets(folder: Path, side: int) -> dict[str, Path]:
    "JSON files: photographs, and the emoji of this machine, or digits where it has none."
    (folder/'photos').mkdir()
    emoji = data_dir()/'emoji/pairs.jsonl'
    more = {'emoji': emoji} if emoji.exists() else {'digits': digit_pairs(folder/'digits', 1797)}
    return {'photos (JPEG)': photos(folder/'photos', 600, side), **more}


def read_lines(path):
    with open(path, 'rb') as f:
        for _ in f: pass


def opening(folder, rounds, rows=1_000_000):
    "Time of `JsonRecords(path)`, of a loop over the lines, and of reading the file whole; it is in the disk cache."
    path = folder/'long.jsonl'
    line = b'{"image": "png/0000000.png", "text": "a picture of something, and a few words more"}\n'
    path.write_bytes(line * rows)
    tasks = {'JsonRecords': partial(JsonRecords, path), 'lines': partial(read_lines, path), 'whole': path.read_bytes}
    least = {name: min(t) for name, t in in_turn(tasks, rounds, warm=0).items()}
    print(f'{rows:,} lines, {path.stat().st_size / 1e6:.0f} MB, least of {rounds} rounds: '
          + ', '.join(f'{name} {1e3 * t:.0f} ms' for name, t in least.items()))


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
    work = Work(workers, batch_size, size)
    with tempfile.TemporaryDirectory() as folder:
        opening(Path(folder), rounds)
        print(f'{workers} workers')
        for name, path in sets(Path(folder), side).items():
            json = {f'JSON, {mode}': work.json(path, mode) for mode in ('image', 'pair')}
            compare({'bare': work.bare(path), **json}, rounds, epochs, name=name)
