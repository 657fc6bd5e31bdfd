"""Shards on real processes: ranks that share uneven shards, the command both ways, damaged files in training."""
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mmjepa.data.records import digit_pairs
from mmjepa.data.shards import get_shard_loader, write_shards
from mmjepa.data.tars import ShardRecords
from forked import command
from ranks import on_ranks

SIZES, BATCH = (70, 11, 40), 8


def uneven(folder):
    "Three shards of different sizes."
    lines = digit_pairs(folder, sum(SIZES)).read_text().splitlines()
    for i, n in enumerate(SIZES):
        start = sum(SIZES[:i])
        (folder/'part.jsonl').write_text('\n'.join(lines[start:start + n]))
        write_shards(folder/'part.jsonl', f'{folder}/{i}-{{0..}}.tar', say=lambda line: None)
    return f'{folder}/{{0,1,2}}-0.tar'


def epochs(rank, world, urls, workers):
    "Rows of three epochs; every step waits for the other rank, so that an uneven end would hang or raise."
    loader = get_shard_loader(urls, 'pair', BATCH, num_workers=workers, image_size=8, context=8, say=lambda line: None)
    found = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            dist.all_reduce(torch.ones(1))
            found.append(batch['index'])
        dist.barrier()
    return {'rows': torch.stack(found), 'dropped': torch.tensor(loader.dataset.dropped)}


@pytest.mark.parametrize('workers', [0, 2])
def test_two_ranks_end_together_and_lose_nothing_silently(tmp_path, workers):
    a, b = on_ranks(epochs, 2, uneven(tmp_path), workers)
    per_epoch = sum(SIZES) // (2 * BATCH)                        # the rule: equally many full batches on each rank
    assert a['rows'].shape == b['rows'].shape == (3 * per_epoch, BATCH)
    dropped = sum(SIZES) - 2 * per_epoch * BATCH
    assert a['dropped'] == b['dropped'] == dropped > 0           # and the rest is counted
    left = []
    for e in range(3):
        seen = torch.cat([x['rows'][e * per_epoch:(e + 1) * per_epoch].flatten() for x in (a, b)]).tolist()
        assert len(set(seen)) == len(seen)                       # no row twice
        left.append(frozenset(range(sum(SIZES))) - set(seen))
    assert {len(x) for x in left} == {dropped} and len(set(left)) > 1  # others sit out in another epoch


def test_the_command_both_ways(tmp_path):
    pairs = digit_pairs(tmp_path/'in', 60)
    done = command('mmjepa.data.shards', pairs, '--output', f'{tmp_path}/out/{{0000..}}.tar', '--maxsize', '40k')
    assert done.returncode == 0 and '60 records in' in done.stdout, done
    sizes = [p.stat().st_size for p in (tmp_path/'out').glob('*.tar')]
    assert len(sizes) > 1 and max(sizes) <= 40_000
    done = command('mmjepa.data.shards', f'{tmp_path}/out/{{0000..}}.tar', '--output', tmp_path/'back.jsonl')
    assert done.returncode == 0, done
    for old, new in zip(pairs.read_text().splitlines(), (tmp_path/'back.jsonl').read_text().splitlines(), strict=True):
        old, new = json.loads(old), json.loads(new)
        assert (tmp_path/new.pop('image')).read_bytes() == (tmp_path/'in'/old.pop('image')).read_bytes() and old == new


TINY = ('--image-size 8 --patch-size 4 --emb-dim 16 --depth 1 --context 8 --num-heads 2 '
        '--epochs 1 --batch-size 8').split()


@pytest.fixture(scope='module')
def shards(tmp_path_factory): return uneven(tmp_path_factory.mktemp('shards'))


def test_training_on_shards_with_held_out_ones(tmp_path, shards):
    held = ['--val-data', shards, *TINY]
    done = command('mmjepa.pretrain.contrastive', '--pair-data', shards, '--output', tmp_path/'run', *held)
    assert done.returncode == 0 and 'samples sit out each epoch' in done.stdout, done
    unpaired = ['--image-data', shards, '--text-data', shards]
    done = command('mmjepa.pretrain.masked', *unpaired, '--output', tmp_path/'one', *held)
    assert done.returncode == 0 and 'val mim' in done.stdout, done


def test_a_truncated_shard_is_named_or_skipped(tmp_path, shards):
    whole = ShardRecords(shards).urls[0]
    for i in range(2): (tmp_path/f'{i}.tar').write_bytes(Path(whole).read_bytes()[:60_000 if i else None])
    args = ['mmjepa.pretrain.contrastive', '--pair-data', f'{tmp_path}/{{0..1}}.tar', *TINY]
    done = command(*args, '--output', tmp_path/'a')
    assert done.returncode == 2 and '1.tar: cut short or damaged after sample' in done.stderr, done
    assert 'Traceback' not in done.stderr, done
    done = command(*args, '--output', tmp_path/'b', '--on-error', 'skip')
    assert done.returncode == 0 and '1 bad records skipped' in done.stdout and '1.tar: cut short' in done.stdout, done


def test_a_mixture_of_shards_and_lines(tmp_path, shards):
    pairs = digit_pairs(tmp_path/'more', 40)
    data = ['--pair-data', f'{shards}=1 {pairs}=3']
    done = command('mmjepa.pretrain.contrastive', *data, '--output', tmp_path/'run', *TINY)
    assert done.returncode == 0, done
    assert 'weights sum to 4, not 1' in done.stdout and 'an epoch of the mixture' in done.stdout, done
