"""Images a second of the shard loader against a bare loop that only decodes and transforms: `python
benchmarks/shards.py`.

The bare loop, the pictures and the clock are those of `benchmarks/loader.py`: torch's own DataLoader over a list of
image files, with the same decoding, transform and number of workers. The shard loader reads the same pictures from
tar files with texts and other fields, checks them, shuffles, and can be resumed. The variants take turns in an order
that changes from round to round; the ratio is that of one round. 0.9 or more is the aim. Before that, the time to
count the samples of a shard, in microseconds a sample.
"""
import tempfile
import time
from pathlib import Path

import torch
from fastcore.script import call_parse

from loader import Work, compare, sets
from mmjepa.data.shards import get_shard_loader, write_shards
from mmjepa.data.tars import ShardRecords


def make_shards(path: Path, home: Path, maxsize: str) -> str:
    "Write the pairs of a JSON file as shards without an index; returns their pattern."
    shards = f'{home}/shards/{{0000..}}.tar'
    write_shards(path, shards, maxsize)
    (home/'shards/index.json').unlink()
    return shards


def microseconds(shards: str) -> float:
    "To count a sample."
    start = time.process_time()
    n = len(ShardRecords(shards))
    return 1e6 * (time.process_time() - start) / n


def shard_loader(shards: str, mode: str, work: Work):
    "The training loader of the shards."
    return get_shard_loader(shards, mode, work.batch_size, num_workers=work.workers, image_size=work.size,
                            say=lambda line: None)


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
    work = Work(workers, batch_size, size)
    with tempfile.TemporaryDirectory() as folder:
        print(f'{workers} workers')
        for name, path in sets(Path(folder), side).items():
            shards = make_shards(path, Path(folder)/f'{path.parent.name}-shards', maxsize)
            print(f'{name:<14} counted in {microseconds(shards):.0f} microseconds a sample')
            tarred = {f'shards, {mode}': shard_loader(shards, mode, work) for mode in ('image', 'pair')}
            compare({'bare': work.bare(path), **tarred}, rounds, epochs, name=name)
