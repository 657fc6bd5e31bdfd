"Small pictures by the command: their sizes, sides, digits with MNIST and without, workers, shards."
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mmjepa.core import UserError, run_command
from mmjepa.data.images import DIGIT_NAMES, read_image
from mmjepa.data.records import JsonRecords, record_bytes
from mmjepa.data.tars import ShardRecords
from mmjepa.pairs.make import PairConfig, PairSet, main, make_pairs
from mmjepa.pairs.small import digit_images

KINDS = 'digit,strip,word,bars'


@pytest.fixture(autouse=True)
def no_mnist(tmp_path, monkeypatch):
    "Scikit-learn's digits, whatever lies in the data folder of this machine."
    monkeypatch.setenv('MMJEPA_DATA', str(tmp_path/'none'))
    digit_images.cache_clear()
    yield
    digit_images.cache_clear()


def pictures(records): return [np.asarray(read_image(record_bytes(r, records.folder))) for r in records]


def test_the_command_makes_them_in_their_own_sizes(tmp_path, capsys):
    run_command(main, ['--output', str(tmp_path/'set'), '--kind', KINDS, '--n', '20', '--num_workers', '2'])
    said = capsys.readouterr().out
    assert '20 digit, 20 strip, 20 word, 20 bars in pairs.jsonl, 8 of 80 held out (digits of scikit-learn' in said
    records = JsonRecords(tmp_path/'set/pairs.jsonl')
    sizes = {r['domain']: x.shape for r, x in zip(records, pictures(records))}
    assert sizes == {'digit': (28, 28, 3), 'strip': (32, 160, 3), 'word': (32, 128, 3), 'bars': (64, 96, 3)}
    assert all(r['prompt'] == '' and r['size'] in ('short', 'long') for r in records)
    settings = json.loads((tmp_path/'set/settings.json').read_text())
    assert settings['digits'] == 'digits' and settings['image_size']['strip'] == [32, 160]


def test_one_size_for_all_of_them(tmp_path):
    run_command(main, ['--output', str(tmp_path/'set'), '--kind', KINDS, '--n', '3', '--num_workers', '0',
                       '--image_size', '48,128'])
    records = JsonRecords(tmp_path/'set/pairs.jsonl')
    assert {x.shape for x in pictures(records)} == {(48, 128, 3)}


@pytest.mark.parametrize('size, words', [
    ('20,160', 'height of image_size is 20; expected a whole number, 24 to 1,024 pixels'),
    ('32,', 'image_size is (32,); expected a whole number, or two: height and width'),
    ('32x160', 'image_size: invalid number')])
def test_wrong_sizes_are_one_line(tmp_path, capsys, size, words):
    with pytest.raises(SystemExit) as e:
        run_command(main, ['--output', str(tmp_path/'set'), '--kind', 'strip', '--image_size', size])
    assert e.value.code == 2 and words in capsys.readouterr().err and not (tmp_path/'set').exists()


def test_held_out_digits_are_all_test_pictures_in_order(tmp_path):
    _, held = digit_images()
    pairs = PairSet(('digit',), len(held), split='held_out', seed=5)
    made = [pairs.pixels(j) for j in range(len(held))]
    assert [r['text'] for r in made] == [DIGIT_NAMES[k] for k in held.labels]
    assert [r['source'] for r in made] == [f'digits test {j}' for j in range(len(held))]
    assert len({r['image'].tobytes() for r in made}) == len({x.tobytes() for x in held.images.numpy()})
    trained = PairSet(('digit',), 50, split='train')
    assert {trained.pixels(j)['source'] for j in range(50)} == {f'digits train {j}' for j in range(50)}


def test_sides_share_no_string_whatever_the_kind_and_seed(tmp_path):
    texts = {'train': set(), 'held_out': set()}
    for split, seed in (('train', 0), ('train', 1), ('held_out', 7)):
        pairs = PairSet(('strip', 'word', 'bars'), 400, seed, split=split)
        texts[split] |= {pairs.draw(j)['text'].lower() for j in range(len(pairs))}
    assert not texts['train'] & texts['held_out'] and min(map(len, texts.values())) > 500


def test_shards_hold_what_arrays_are(tmp_path):
    config = PairConfig(KINDS, n=20, format='shards', num_workers=0, seed=2)
    make_pairs(tmp_path/'shards', config, say=str)
    pairs = PairSet(tuple(KINDS.split(',')), 20, seed=2)
    found = {(r['domain'], r['text'], r['source']): r for name in ('pairs', 'pairs_held_out')
             for r in ShardRecords(f'{tmp_path}/shards/{name}-{{0000..}}.tar')}
    assert len(found) == 80
    for j in range(80):
        r = pairs.pixels(j)
        packed = found[r['domain'], r['text'], r['source']]
        assert np.array_equal(np.asarray(read_image(packed['image'])).transpose(2, 0, 1), r['image'])


def test_processes_and_hash_seeds_change_nothing(tmp_path):
    command = [sys.executable, '-m', 'mmjepa.pairs.make', '--output', tmp_path/'command', '--kind', KINDS, '--n', '4']
    subprocess.run(command, check=True, timeout=300, capture_output=True, env={**os.environ, 'PYTHONHASHSEED': '3'})
    make_pairs(tmp_path/'function', PairConfig(KINDS, n=4, num_workers=0), say=str)
    for path in sorted((tmp_path/'function').rglob('*.*')):
        assert path.read_bytes() == (tmp_path/'command'/path.relative_to(tmp_path/'function')).read_bytes(), path


def test_old_kinds_stay_squares():
    with pytest.raises(UserError, match='image_size is .*; expected a whole number, 128 to 1,024 pixels'):
        PairSet(('formula',), 1, image_size=(32, 160)).pixels(0)
