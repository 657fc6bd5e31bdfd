"""Sources of the stages' commands: rows with an image or a text, unquoted braces, held-out rows that are all bad."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmjepa.checkpoint import pack, unpack
from mmjepa.core import UserError
from mmjepa.data.loaders import get_json_loaders
from mmjepa.data.mixture import MixtureLoader, UnpairedLoader, open_source
from mmjepa.data.records import digit_pairs, split_rows
from mmjepa.data.shards import write_shards
from forked import command

TINY = ('--image-size 16 --patch-size 8 --emb-dim 16 --depth 1 --context 8 --num-heads 2 '
        '--epochs 1 --batch-size 8').split()
STAGES = {'masked': 'mmjepa.pretrain.masked', 'contrastive': 'mmjepa.pretrain.contrastive'}


def quiet(line): pass


@pytest.fixture
def rows(tmp_path): return [json.loads(line) for line in digit_pairs(tmp_path, 60).read_text().splitlines()]


def write(path, rows):
    path.write_text('\n'.join(map(json.dumps, rows)))
    return path


def run(mode='pair', on_error='raise', **options):
    "What `open_source` asks of a run."
    return SimpleNamespace(**{**dict(batch_size=8, num_workers=0, image_size=8, context=8, on_error=on_error,
                                     val_split=.1, seed=0), **options})


def places(loader): return sorted(i for batch in loader for i in batch['index'].tolist())


def halves(rows):
    "Rows that have an image or a text, by turns."
    return [{k: r[k]} for i, r in enumerate(rows) for k in [('image', 'text')[i % 2]]]


def test_images_and_texts_come_from_the_rows_that_have_them(tmp_path, rows, capsys):
    mix = write(tmp_path/'mix.jsonl', halves(rows))
    for mode, odd in (('image', 0), ('text', 1)):
        train, held, again, _ = open_source(run(), str(mix), mode, tokenizer=None)
        found = places(again), places(held)
        assert sorted(found[0] + found[1]) == [*range(odd, 60, 2)] and all(found)
        assert {*places(train)} <= {*found[0]}
        n = len(found[0])
        assert f'records have no {mode} and sit out' in capsys.readouterr().out and n > len(found[1])
    with pytest.raises(UserError, match="has no field '(image|text)'"):
        list(open_source(run(), str(mix), 'pair', tokenizer=None)[0])


def test_stage_one_on_rows_with_an_image_or_a_text(tmp_path, rows):
    mix = write(tmp_path/'mix.jsonl', halves(rows))
    texts = write(tmp_path/'texts.jsonl', [{'text': f'word {i}'} for i in range(20)])
    held = write(tmp_path/'held.jsonl', halves(rows[:8]))
    for i, data in enumerate((['--json-data', mix], ['--json-data', mix, '--val-data', held],
                              ['--image-data', mix, '--text-data', f'{mix}=1 {texts}=1'])):
        done = command(STAGES['masked'], *data, '--output', tmp_path/f'{i}', *TINY)
        assert done.returncode == 0 and 'val mim' in done.stdout, done


@pytest.mark.parametrize('stage', STAGES)
def test_held_out_rows_that_are_all_bad_are_as_none(tmp_path, rows, stage):
    for i in split_rows(60, .1, 0)[1]: rows[i] = {'image': 'nope.png', 'text': '\ud83d'}
    bad = write(tmp_path/'bad.jsonl', rows)
    done = command(STAGES[stage], '--json-data', bad, '--on-error', 'skip', '--output', tmp_path/'run', *TINY)
    assert done.returncode == 0 and 'held-out records are bad' in done.stdout, done
    assert "'nope.png' is no file" in done.stdout and 'Traceback' not in done.stderr, done


def test_held_out_files_give_what_they_have(tmp_path, rows, capsys):
    data, mixed = write(tmp_path/'a.jsonl', rows), write(tmp_path/'held.jsonl', halves(rows[:8]))
    texts = write(tmp_path/'texts.jsonl', [{'text': 'a'}])
    for on_error in ('raise', 'skip'):
        for mode, wanted in (('image', [0, 2, 4, 6]), ('text', [0, 1, 3, 5, 7])):
            both = f'{mixed}=1 {texts}=1'
            _, held, *_ = open_source(run(on_error=on_error), str(data), mode, tokenizer=None, held=both)
            assert places(held) == wanted
            assert f'held.jsonl, held out: 4 of 8 records have no {mode}' in capsys.readouterr().out


def test_some_bad_held_out_rows_are_counted(tmp_path, rows):
    for i in split_rows(60, .1, 0)[1][:5]: rows[i] = {'image': 'nope.png', 'text': 'x'}
    _, held, *_ = open_source(run(on_error='skip'), str(write(tmp_path/'bad.jsonl', rows)), 'pair', tokenizer=None)
    assert len(places(held)) == 1


@pytest.mark.skipif(not shutil.which('bash'), reason='needs bash')
def test_braces_that_a_shell_expands(tmp_path, rows):
    for i in range(4):
        part = write(tmp_path/'x.jsonl', rows[i*15:(i + 1)*15])
        write_shards(part, f'{tmp_path}/{i:04}-{{0..}}.tar', say=quiet)
    words = f'{tmp_path}/{{0000..0003}}-0.tar'
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])}
    for stage, data in (('contrastive', f'--pair-data {words}'),
                        ('masked', f'--image-data {words} --text-data {words} --val-data {words}')):
        line = f'{sys.executable} -m {STAGES[stage]} {data} --output {tmp_path}/{stage} {" ".join(TINY)}'
        done = subprocess.run(['bash', '-c', line], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done
        assert '4 of 60 samples sit out each epoch' in done.stdout, done


def test_sources_with_nothing_or_too_little(tmp_path, rows, capsys):
    a, empty, few = (write(tmp_path/f'{name}.jsonl', rows[:n]) for name, n in (('a', 60), ('none', 0), ('few', 3)))
    train, *_ = open_source(run(), f'{a}=1 {empty}=1 {few}=1', 'pair', tokenizer=None)
    assert [*train.weights] == [str(a)] and len(places(train)) == 48
    said = capsys.readouterr().out
    assert 'none.jsonl: holds no line' in said and 'few.jsonl; expected no more than these' in said
    for data in (f'{empty}=1 {few}=1', str(empty), str(few), f'{a}=0 {few}=1'):
        with pytest.raises(UserError) as e: open_source(run(), data, 'pair', tokenizer=None)
        assert '\n' not in str(e.value)
    with pytest.raises(UserError, match='none.jsonl: holds no line'):
        open_source(run(), str(a), 'pair', tokenizer=None, held=str(empty))


def test_states_of_sources_are_kept_apart_by_their_paths(tmp_path, rows):
    names = 'a', 'a/left', 'left/a', '0'
    file = write(tmp_path/'a.jsonl', rows)
    def opened(names):
        loaders = {name: get_json_loaders(file, 'pair', 8, seed=i, image_size=8, say=quiet)[0]
                   for i, name in enumerate(names)}
        return MixtureLoader(loaders, dict.fromkeys(names, .25), 8, say=quiet)
    whole, first = [b['index'] for b in opened(names)], opened(names)
    it = iter(first)
    for _ in range(2): next(it)
    kept = {}
    state = pack(first.state_dict(), kept)
    again = opened(names)
    again.load_state_dict(unpack(json.loads(json.dumps(state)), kept))
    assert torch.equal(torch.stack([b['index'] for b in again]), torch.stack(whole[2:]))
    with pytest.raises(UserError, match='in the checkpoint a, a/left, left/a, 0; expected the same'):
        opened(names[:3]).load_state_dict(first.state_dict())


def test_batches_side_by_side_have_nothing_of_single_rows(tmp_path, rows):
    file = write(tmp_path/'a.jsonl', rows)
    loaders = {mode: get_json_loaders(file, mode, 8, image_size=8, say=quiet)[0] for mode in ('image', 'text')}
    assert {*next(iter(UnpairedLoader(loaders)))} == {'image', 'text', 'text_mask'}
