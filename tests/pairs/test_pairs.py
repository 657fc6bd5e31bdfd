"Pairs on real processes: the command, other hash seeds, runs that are stopped, charts as scripts, Chromium."
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmjepa.pairs.charts import CHARTS, PLOTLY_CHARTS, chart, plotly_chart
from mmjepa.core import UserError, run_command
from mmjepa.data.records import JsonRecords
from mmjepa.pairs.mockups import mockup, write_mockup
from mmjepa.pairs.pages import Chromium, draw_page, find_chromium
from mmjepa.pairs.make import PAIR_MAKERS, PairConfig, main, make_pairs
from mmjepa.data.tars import ShardRecords
from mmjepa.pairs.sources import text_corpus
from mmjepa.runs import one_writer

needs_chromium = pytest.mark.skipif(not find_chromium(), reason='Chromium is not installed')
COMMAND = [sys.executable, '-m', 'mmjepa.pairs.make']


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}

def start(*args, stderr=subprocess.PIPE, **env):
    command = [*COMMAND, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **env})


def test_the_command_writes_what_the_function_does(tmp_path):
    "Another process with two workers and another hash seed writes the same bytes."
    flags = ['--output', tmp_path/'command', '--n', 1, '--num-workers', 2, '--painter', 'own', '--seed', 3]
    p = start(*flags, PYTHONHASHSEED='7')
    out, err = p.communicate(timeout=300)
    assert p.returncode == 0, err
    make_pairs(tmp_path/'function', PairConfig(n=1, seed=3, painter='own', num_workers=0), say=str)
    assert files(tmp_path/'command') == files(tmp_path/'function')
    counts = '1 code, 1 chart, 1 formula, 1 statement, 1 mockup in pairs.jsonl, 0 of 5 held out'
    assert out.splitlines()[-1] == f'{tmp_path}/command: {counts} (pages by our own painter)'
    assert len(JsonRecords(tmp_path/'command/pairs.jsonl')) == 5


@pytest.fixture(scope='module')
def library(tmp_path_factory):
    "Some forty files of the standard library, as if they were somebody's own."
    folder, found = tmp_path_factory.mktemp('code'), Path(sysconfig.get_path('stdlib'))
    for path in sorted(found.glob('[a-h]*.py')): shutil.copy(path, folder)
    return folder


def pieces(texts):
    "Lines of more than 15 characters, as they are and without their indentation."
    lines = {line for text in texts for line in text.splitlines()}
    return {piece for line in lines for piece in (line, line.strip()) if len(piece) > 15}

def assert_unseen(records):
    "No held-out text, nor any of its long lines, stands in training, not even within another line."
    texts = {side: [r['text'] for r in records if r['split'] == side] for side in ('train', 'held_out')}
    assert all(texts.values())
    training = '\n'.join(texts['train'])
    assert not [text for text in texts['held_out'] if text in training]
    assert not [piece for piece in pieces(texts['held_out']) if piece in training]
    return texts


def test_held_out_means_unseen(tmp_path, library):
    "In all that the command writes, of any kind."
    kinds = 'code,chart,formula,statement,mockup,plotly,react,markdown,corpus'
    p = start('--output', tmp_path/'set', '--kind', kinds, '--n', 30, '--image_size', 128, '--painter', 'own',
              '--source', library)
    out, err = p.communicate(timeout=300)
    assert p.returncode == 0, err
    pairs, corpus = (list(JsonRecords(tmp_path/f'set/{name}.jsonl')) for name in ('pairs', 'corpus'))
    assert ', 24 of 240 held out' in out and f'{len(corpus)} held out, in corpus.jsonl' in out
    assert_unseen(pairs + corpus)
    for r in pairs: assert r['split'] == ('held_out' if int(r['image'][-10:-4]) % 10 == 1 else 'train')
    files = {side: {r['source'].rpartition(':')[0] for r in pairs + corpus if r['split'] == side and
                    r['domain'] in ('code', 'docs')} for side in ('train', 'held_out')}
    assert not files['train'] & files['held_out'] and all(files.values())


def test_sides_that_were_made_apart(tmp_path, library):
    "The same holds of two sets, whatever their seeds and sizes."
    kinds = 'code,formula,statement,mockup,plotly,react,markdown'
    for split, seed in (('train', 0), ('held_out', 7)):
        config = PairConfig(kinds, n=20, seed=seed, split=split, source=str(library), painter='own', num_workers=0)
        make_pairs(tmp_path/split, config, say=str)
    found = {split: list(JsonRecords(tmp_path/split/'pairs.jsonl')) for split in ('train', 'held_out')}
    for split, records in found.items(): assert {r['split'] for r in records} == {split} and len(records) == 140
    assert_unseen(found['train'] + found['held_out'])


def test_shards_keep_the_sides_apart(tmp_path, library):
    said = []
    config = PairConfig('code,formula,corpus', n=3, format='shards', num_workers=0, source=str(library))
    make_pairs(tmp_path/'set', config, say=said.append)
    assert '3 code, 3 formula in pairs-*.tar, 2 of 6 held out; ' in said[0] and 'held out, in corpus-*.tar' in said[0]
    sides = {'': 'train', '_held_out': 'held_out'}
    names = {f'{name}{end}': side for name in ('pairs', 'corpus') for end, side in sides.items()}
    records = []
    for name, side in names.items():
        found = list(ShardRecords(f'{tmp_path}/set/{name}-{{0000..}}.tar'))
        assert {r['split'] for r in found} == {side}
        records += found
    assert_unseen(records)


def test_numbers_of_numpy_are_numbers(tmp_path):
    plain, theirs = dict(n=2, seed=3, image_size=128), dict(n=np.int64(2), seed=np.uint8(3), image_size=np.int32(128))
    for name, numbers in (('plain', plain), ('theirs', theirs)):
        make_pairs(tmp_path/name, PairConfig('statement', num_workers=0, **numbers), say=str)
    assert files(tmp_path/'plain') == files(tmp_path/'theirs')


# ---------------------------------------------------------------- code of somebody's own

ODD = {'latin.py': b'x = "\xe9"\n', 'picture.py': b'\x89PNG\x00\x01', 'empty.py': b'', 'half.py': b'x = (\n',
       'blank.py': b'\n\n', 'deep.py': b'x = ' + b'[' * 5000, 'large.py': b'x = 1\n' * 200_000,
       'marked.py': b'\xef\xbb\xbfimport os\nimport sys\nprint(os.getcwd(), sys.argv, "marked")\n'}

def odd_folder(folder):
    "What a folder of code may hold."
    folder.mkdir()
    for name, data in ODD.items(): (folder/name).write_bytes(data)
    (folder/'loop').symlink_to(folder)
    (folder/'away.py').symlink_to(os.__file__)
    (folder/'gone.py').symlink_to('nothing.py')
    os.mkfifo(folder/'pipe.py')
    for name in 'abc': (folder/f'{name}.py').write_text(f'import {name * 20}\nimport sys\nprint({name}, sys.argv)\n')
    return folder


def test_odd_sources_are_counted(tmp_path):
    folder, said = odd_folder(tmp_path/'odd'), []
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir() if not p.is_symlink()}
    text_corpus(tmp_path/'corpus.jsonl', root=folder, say=said.append)
    left = ('3 links', '1 pipes, sockets and devices', '1 empty files', '1 files of more than 1 MB',
            '5 files that are not Python of this version')
    assert ' of 4 files, ' in said[0] and all(reason in said[0] for reason in left), said  # 15 names in all
    records = list(JsonRecords(tmp_path/'corpus.jsonl'))
    assert {r['source'].partition(':')[0] for r in records} == {'a.py', 'b.py', 'c.py', 'marked.py'}
    assert {p: p.stat().st_mtime_ns for p in before} == before and not records[0]['text'].startswith('\ufeff')
    make_pairs(tmp_path/'set', PairConfig('code', n=3, source=str(folder), num_workers=0), say=said.append)
    assert '3 code in pairs.jsonl, 1 of 3 held out' in said[-1]


def test_what_can_not_be_made_is_skipped_and_counted(tmp_path):
    (tmp_path/'twins').mkdir()
    for name in 'ab': (tmp_path/f'twins/{name}.py').write_text('import os\nimport sys\nprint(os.getcwd(), sys.argv)\n')
    said, config = [], PairConfig('code,statement', n=12, source=str(tmp_path/'twins'), num_workers=0)
    make_pairs(tmp_path/'set', config, say=said.append)
    assert '10 code, 12 statement in pairs.jsonl, 2 of 22 held out; skipped: 2 code: ' in said[0]  # 24 were asked for
    assert 'files that are held_out have no part' in said[0] and len(JsonRecords(tmp_path/'set/pairs.jsonl')) == 22
    with pytest.raises(UserError, match='^no pair could be made; code: .* have no part of 3 to'):
        make_pairs(tmp_path/'none', PairConfig('code', 2, split='held_out', source=config.source), say=str)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['set', 'twins']


# ---------------------------------------------------------------- stopped runs, other writers

def stop_when(command, folder, pictures, how):
    "Start a command, and send it a signal when there are so many pictures."
    p = start(*command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(list(folder.rglob('*.png'))) < pictures and p.poll() is None and time.monotonic() < end: time.sleep(.02)
    p.send_signal(how)
    try: return p.wait(60)
    finally: p.kill()


def test_runs_that_are_stopped_leave_no_set_and_go_on(tmp_path):
    config = PairConfig('statement', n=400, num_workers=1)
    make_pairs(tmp_path/'undisturbed', config, say=str)
    for how, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        folder, made = tmp_path/how.name, []
        flags = ['--output', folder/'set', '--kind', 'statement', '--n', 400, '--num_workers', 1]
        for pictures in (30, 90):
            assert stop_when(flags, folder, pictures, how) == status
            assert [p.name for p in folder.iterdir() if not p.name.startswith('.tmp-')] == ['.part-set']
            made.append(len((folder/'.part-set/made.jsonl').read_text().splitlines()))
        assert 20 < made[0] < made[1] < 400
        make_pairs(folder/'set', config, say=str)
        assert files(folder/'set') == files(tmp_path/'undisturbed')
        assert [p.name for p in folder.iterdir()] == ['set']


def test_a_stopped_run_with_other_settings_begins_again(tmp_path, monkeypatch):
    def stop(seed, image_size, split): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setitem(PAIR_MAKERS, 'formula', stop)
        make_pairs(tmp_path/'set', PairConfig('statement,formula', n=2, num_workers=0), say=str)
    (tmp_path/'.part-set/notes.txt').write_text("somebody's own")
    make_pairs(tmp_path/'set', PairConfig('statement', n=2, seed=1, num_workers=0), say=str)
    assert json.loads((tmp_path/'set/settings.json').read_text())['seed'] == 1
    assert files(tmp_path/'.part-set') == {'notes.txt': b"somebody's own"}


def test_one_writer_and_what_is_there_stays(tmp_path):
    config = PairConfig('statement', n=1, num_workers=0)
    (tmp_path/'mine.txt').write_text('mine')
    (tmp_path/'link').symlink_to(tmp_path/'mine.txt')
    for name in ('mine.txt', 'link'):
        with pytest.raises(UserError, match=f'{name} exists and is not empty; expected a new folder'):
            make_pairs(tmp_path/name, config, say=str)
    code = odd_folder(tmp_path/'code')
    with pytest.raises(UserError, match='code exists and is not empty'):
        make_pairs(code, PairConfig('code', n=1, source=str(code)), say=str)
    with one_writer(tmp_path/'.part-set'), pytest.raises(UserError, match='expected another --output, or a later try'):
        run = start('--output', tmp_path/'set', '--kind', 'statement', '--n', 1)
        err = run.communicate(timeout=120)[1].splitlines()
        assert run.returncode == 2 and len(err) == 1 and not (tmp_path/'set').exists(), err
        raise UserError(err[0])
    assert (tmp_path/'mine.txt').read_text() == 'mine'


@pytest.mark.parametrize('args, words', [
    (['--output', 'new', '--kind', 'code,video'], "kind is 'video'; expected some of code, chart"),
    (['--output', 'new', '--n', '0'], 'n is 0; expected a whole number, 1 or more'),
    ([], 'output is missing; expected a folder'),
    (['--output', 'new', '--source', 'nowhere'], 'nowhere: no such folder; expected one of Python files'),
    (['--output', 'new', '--source', 'old'], 'old: holds no Python file'),
    (['--output', 'old'], 'old exists and is not empty; expected a new folder'),
    (['--output', 'new', '--image-size', '2000'], 'image_size is 2000; expected a whole number, 128 to 1,024'),
    (['--output', 'old/a/b'], 'cannot write')])
def test_what_is_wrong_is_said_in_one_line(tmp_path, monkeypatch, capsys, args, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'old').mkdir()
    (tmp_path/'old/a').write_text('')
    with pytest.raises(SystemExit) as e: run_command(main, ['--n', '1', *args, '--num_workers', '0'])
    err = capsys.readouterr().err.splitlines()[-1:]
    assert e.value.code == 2 and words in err[0] and not (tmp_path/'new').exists()


def test_a_browser_that_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    (tmp_path/'chromium').symlink_to('/bin/true')
    said, ours = [], PairConfig('mockup', n=1, num_workers=0)
    with pytest.raises(UserError, match='^Chromium does not answer') as e:
        make_pairs(tmp_path/'set', PairConfig('mockup', n=1, painter='chromium'), say=str)
    assert len(str(e.value).splitlines()) == 1 and not (tmp_path/'set').exists()
    make_pairs(tmp_path/'set', ours, say=said.append)
    assert said[0].endswith('0 of 1 held out (pages by our own painter)')


RUN_ALL = '''
import os, runpy, sys
for folder in sys.argv[1:]:
    os.chdir(folder)
    runpy.run_path('program.py')'''


def test_charts_are_what_their_programs_draw_as_scripts(tmp_path):
    "Every kind in a process of its own making, the whole program with its last line."
    drafts = {kind: chart(11, kind=kind) for kind in CHARTS}
    for kind, d in drafts.items():
        (tmp_path/kind).mkdir()
        (tmp_path/kind/'program.py').write_text(d.text)
    command = [sys.executable, '-W', 'error', '-c', RUN_ALL, *(str(tmp_path/kind) for kind in drafts)]
    subprocess.run(command, check=True, timeout=120, env={**os.environ, 'MPLBACKEND': 'agg'})
    for kind, d in drafts.items():
        drawn = Image.open(tmp_path/kind/'chart.png').convert('RGB')
        assert np.array_equal(np.asarray(drawn), np.asarray(d.paint())), kind


@pytest.mark.skipif(not find_spec('plotly'), reason='Plotly is not installed')
def test_plotly_takes_the_programs():
    "All arguments are known to it, and its figure holds the numbers."
    for kind in PLOTLY_CHARTS:
        for seed, split in ((0, 'train'), (1, 'train'), (2, 'held_out')):
            scope, text = {}, plotly_chart(seed, kind=kind, split=split).text
            exec(text.rpartition('\n')[0], scope)
            figure = scope.get('fig') or scope['figure']
            assert figure.to_plotly_json()['data'] and figure.layout.width == 256


def distance(a, b): return np.abs(np.asarray(a, int) - np.asarray(b)).mean()

@needs_chromium
def test_our_painter_agrees_with_chromium():
    "Grey levels of 255 apart, on average over all pixels: letters differ a little, another page by far more."
    with Chromium() as browser:
        for size in (128, 256):
            pages = [write_mockup(random.Random(seed), size) for seed in range(8)]
            ours, theirs = [draw_page(page, size) for page in pages], [browser.draw(page, size) for page in pages]
            assert browser.draw(pages[0], size) == theirs[0] and theirs[0].size == (size, size)
            same = [distance(a, b) for a, b in zip(ours, theirs)]
            other = [distance(a, b) for a, b in zip(ours, theirs[1:])]
            assert max(same) < 9 and np.median(same) < 6 and min(other) > 2 * max(same), (same, other)
        draft = mockup(0, 256, browser)
        assert draft.text == mockup(0).text and draft.details['painter'] == f'chromium {browser.version}'


@needs_chromium
def test_pages_can_neither_run_scripts_nor_fetch():
    script = '<script>document.body.style.background = "red"</script>'
    with Chromium() as browser:
        image = browser.draw(f'<body style="background: #00ff00; margin: 0">{script}</body>', 128)
        assert image.getpixel((64, 64)) == (0, 255, 0)
        with pytest.raises(UserError, match='Chromium: '): browser._ask('Page.noSuchThing')


@needs_chromium
def test_chromium_in_workers_leaves_nothing_behind(tmp_path, monkeypatch):
    said = []
    with tempfile.TemporaryDirectory() as temp:  # a short path: Chromium's socket lies in it
        monkeypatch.setattr(tempfile, 'tempdir', temp)
        monkeypatch.setenv('TMPDIR', temp)
        config = PairConfig('mockup', n=2, num_workers=2, painter='chromium')
        theirs = make_pairs(tmp_path/'theirs', config, say=said.append)
        assert not [name for name in os.listdir(temp) if name.startswith('mmjepa-')]
    own = make_pairs(tmp_path/'own', PairConfig('mockup', n=2, painter='own', num_workers=0), say=str)
    theirs, own = JsonRecords(theirs/'pairs.jsonl'), JsonRecords(own/'pairs.jsonl')
    assert said[0].endswith('(pages by Chromium)') and {r['painter'].split()[0] for r in theirs} == {'chromium'}
    assert [r['text'] for r in theirs] == [r['text'] for r in own]
