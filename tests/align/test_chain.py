"""Records -> tokenizer -> stage one -> stage two from its encoder -> embeddings -> map, by the commands alone."""
import time

import pandas as pd
import pytest

import forked
from mmjepa.core import data_dir
from mmjepa.data.records import JsonRecords, digit_pairs


def command(*args):
    done = forked.command(*args)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def chain(data, folder, vocab, *, shape, one, two, k, held=()):
    "Tables of both stages, what the map's command said, and the minutes of all."
    start, records = time.monotonic(), ['--json-data', data]
    pairs = [*records, *(['--val-data', held] if held else [])]
    command('mmjepa.data.text', data, '--vocab_size', vocab, '--output', folder/'tok.spm')
    command('mmjepa.pretrain.masked', *pairs, '--tokenizer', folder/'tok.spm', '--output', folder/'one', *shape, *one)
    command('mmjepa.pretrain.contrastive', *pairs, '--encoder', folder/'one/encoder', '--output', folder/'two', *two)
    command('mmjepa.embed', '--model', folder/'two', *records, '--output', folder/'e.jsonl')
    clusters = ['--cluster-domains', k, '--kmeans-model', folder/'kmeans.pth']
    said = command('mmjepa.pretrain.map', folder/'e.jsonl', *clusters, '--output', folder/'umap.png')
    assert (folder/'umap.png').stat().st_size > 10_000 and len(JsonRecords(folder/'e.jsonl')) == len(JsonRecords(data))
    tables = (pd.read_csv(folder/stage/'metrics.csv') for stage in ('one', 'two'))
    return *tables, said, (time.monotonic() - start) / 60


def falls(table, column):
    values = table[column].dropna()
    assert values.iloc[-1] < values.iloc[0], f'{column} does not fall: {values.tolist()}'


def test_the_chain_on_digits(tmp_path):
    "Small, and made on the spot: 30 different names for 800 pictures, so that recall is far from 1 by nature."
    data, held = digit_pairs(tmp_path, 800), tmp_path/'held.jsonl'
    lines = data.read_text().splitlines()
    held.write_text('\n'.join(lines[::10]))  # of names that are known: groups would hold out whole names
    data.write_text('\n'.join(line for i, line in enumerate(lines) if i % 10))
    shape = '--image_size 8 --patch_size 2 --context 8 --depth 2 --emb_dim 48'.split()
    first = '--epochs 5 --lr 1e-3 --batch_size 32 --drop_path 0'.split()
    second = '--epochs 8 --lr 2e-3 --batch_size 40 --max_scale 4 --eval_every 1 --augment 0 --drop_path 0'.split()
    one, two, said, _ = chain(data, tmp_path, 286, shape=shape, one=first, two=second, k=10, held=held)
    for column in ('val_loss_mim', 'val_loss_mlm'): falls(one, column)
    for column in ('val_loss_clip', 'val_loss_mlm'): falls(two, column)
    last = two.iloc[-1]
    assert min(last.image_to_text_r10, last.text_to_image_r10) > 2 * 10 / 80 and last.margin > .1  # chance: 10 of 80
    assert 0 < float(said.split('V-measure ')[1].split()[0]) < 1 and 'crosstab:' in said


@pytest.mark.slow
@pytest.mark.skipif(not (data_dir()/'emoji/pairs.jsonl').exists(), reason='needs the emoji in $MMJEPA_DATA')
def test_the_chain_on_emoji(tmp_path):
    shape, first = '--image_size 48 --patch_size 8 --context 12 --depth 3'.split(), '--epochs 40 --lr 2e-3'.split()
    second = '--epochs 60 --batch_size 128 --lr 2e-3 --max_scale 8 --augment .1 --drop_path 0'.split()
    data = data_dir()/'emoji/pairs.jsonl'
    one, two, said, minutes = chain(data, tmp_path, 1200, shape=shape, one=first, two=second, k=9)
    for column in ('val_loss_mim', 'val_loss_mlm'): falls(one, column)
    last = two.iloc[-1]
    print(f'{minutes:.1f} minutes\n{last}\n{said}')
    for column in ('val_loss_clip', 'val_loss_mlm'): falls(two, column)
    assert min(last.train_image_to_text_r1, last.train_text_to_image_r1) >= .9
    assert min(last.image_to_text_r10, last.text_to_image_r10) > 3 * 10 / 164
