"""Images a second of the shard loader against a bare loop that only decodes and transforms: `python benchmarks/shards.py`.

The bare loop, the pictures and the clock are those of `benchmarks/loader.py`: torch's own DataLoader over a list of image files, with the same
decoding, transform and number of workers. The shard loader reads the same pictures from tar files with texts and other fields, checks them,
shuffles, and can be resumed. The variants take turns in an order that changes from round to round; the ratio is that of one round. 0.9 or
more is the aim. Before that, the time to count the samples of a shard, in microseconds a sample.
"""
import statistics
import tempfile
import time
from pathlib import Path

import torch
from fastcore.script import call_parse

from loader import bare, images_per_second, photos
from mmjepa.core import data_dir
from mmjepa.data.records import digit_pairs
from mmjepa.data.shards import get_shard_loader, write_shards
from mmjepa.data.tars import ShardRecords


def shard_loader(mode):
    "The training loader of the shards that were made of the JSON file."
    def make(path, size, batch_size, workers):
        return get_shard_loader(f'{path.parent}/shards/{{0000..}}.tar', mode, batch_size, num_workers=workers, image_size=size, say=lambda line: None)
    return make


VARIANTS = {'bare': bare, 'shards, image': shard_loader('image'), 'shards, pair': shard_loader('pair')}


@call_parse
def main(
    workers: int = 2,     # processes of each loader; 0 for none
    batch_size: int = 64, # images a batch
    size: int = 64,       # side of the result, pixels
    rounds: int = 7,      # turns of each variant
    epochs: int = 2,      # passes over the set in a turn
    side: int = 240,      # height of the JPEG files, pixels
    maxsize: str = '2M',  # largest size of a shard
):
    "Median images a second and the ratio to the bare loop of the same round."
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder, emoji = Path(folder), data_dir()/'emoji/pairs.jsonl'
        (folder/'photos').mkdir()
        sets = {'photos (JPEG)': photos(folder/'photos', 600, side), 'emoji' if emoji.exists() else 'digits': emoji if emoji.exists() else digit_pairs(folder/'digits', 1797)}
        for name, path in sets.items():
            home = folder/f'{path.parent.name}-shards'
            write_shards(path, f'{home}/shards/{{0000..}}.tar', maxsize)
            (home/'shards/index.json').unlink()
            start = time.process_time(); n = len(ShardRecords(f'{home}/shards/{{0000..}}.tar'))
            print(f'{name:<14} counted in {1e6 * (time.process_time() - start) / n:.0f} microseconds a sample')
            make = lambda v: bare(path, size, batch_size, workers) if v == 'bare' else VARIANTS[v](home/'x', size, batch_size, workers)
            loaders, speed = {v: make(v) for v in VARIANTS}, {v: [] for v in VARIANTS}
            for r in range(rounds + 1):
                for v in sorted(VARIANTS, key=lambda v: hash((v, r))):
                    found = images_per_second(loaders[v], epochs)
                    if r: speed[v].append(found) # the first round fills the disk cache
            for v in VARIANTS:
                ratios = [a / b for a, b in zip(speed[v], speed['bare'])]
                print(f'{name:<14} {workers} workers  {v:<14} {statistics.median(speed[v]):7.0f} images/s, ratio to bare: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}')
