"Pairs on real processes: the command, other hash seeds, runs that are stopped, charts as scripts, Chromium."
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from PIL import Image

from mmjepa.pairs.charts import CHARTS, chart
from mmjepa.core import UserError, run_command
from mmjepa.data.records import JsonRecords
from mmjepa.pairs.mockups import mockup, write_mockup
from mmjepa.pairs.pages import Chromium, draw_page, find_chromium
from mmjepa.pairs.make import PairConfig, main, make_pair, make_pairs
from mmjepa.data.tars import ShardRecords

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
    counts = '1 code, 1 chart, 1 formula, 1 statement, 1 mockup in pairs.jsonl (mock-ups by our own painter)'
    assert out.splitlines()[-1] == f'{tmp_path}/command: {counts}'
    assert len(JsonRecords(tmp_path/'command/pairs.jsonl')) == 5


def test_held_out_shards_and_corpus(tmp_path):
    said, config = [], PairConfig('code,formula,corpus', n=3, split='held_out', format='shards', num_workers=0)
    make_pairs(tmp_path/'set', config, say=said.append)
    assert '3 code, 3 formula in pairs-*.tar; ' in said[0] and 'docs in corpus-*.tar' in said[0]
    pairs, corpus = (list(ShardRecords(f'{tmp_path}/set/{name}-{{0000..}}.tar')) for name in ('pairs', 'corpus'))
    held = {r['source'].rpartition(':')[0] for r in corpus}
    assert len(pairs) == 6 and {r['split'] for r in pairs} == {'held_out'}
    assert {r['domain'] for r in corpus} == {'code', 'docs'}
    drawn = {r['source'].rpartition(':')[0] for r in pairs if r['domain'] == 'code'}
    assert drawn <= held  # pictures of code keep to the files of their side
    trained = {make_pair('code', i)['source'].rpartition(':')[0] for i in range(5)}
    assert not trained & held


def test_runs_that_are_stopped_leave_no_set(tmp_path):
    ways, runs = (signal.SIGINT, signal.SIGKILL), []
    for how in ways:
        (tmp_path/how.name).mkdir()
        flags = ['--output', tmp_path/how.name/'set', '--kind', 'statement', '--n', 100_000, '--num_workers', 1]
        with open(tmp_path/f'{how.name}.txt', 'w') as err: runs.append(start(*flags, stderr=err))
    for how, p in zip(ways, runs):
        end = time.monotonic() + 120
        while len(list((tmp_path/how.name).rglob('*.png'))) < 10 and p.poll() is None and time.monotonic() < end:
            time.sleep(.05)
        p.send_signal(how)
    try: assert [p.wait(60) for p in runs] == [130, -signal.SIGKILL]
    finally: [p.kill() for p in runs]
    assert not any((tmp_path/'SIGINT').iterdir()) and 'Traceback' not in (tmp_path/'SIGINT.txt').read_text()
    assert all(f.name.startswith('.tmp-') for f in (tmp_path/'SIGKILL').iterdir())  # nothing has the name of a set
    again = make_pairs(tmp_path/'SIGKILL/set', PairConfig('statement', n=2, num_workers=0), say=str)
    assert len(JsonRecords(again/'pairs.jsonl')) == 2


@pytest.mark.parametrize('args, words', [
    (['--output', 'new', '--kind', 'code,video'], "kind is 'video'; expected some of code, chart"),
    (['--output', 'new', '--n', '0'], 'n is 0; expected 1 or more'), ([], 'output is missing; expected a folder'),
    (['--output', 'old'], 'old exists and is not empty; expected a new folder'),
    (['--output', 'new', '--image-size', '2000'], 'image_size is 2000; expected 128 to 1,024'),
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
    assert said[0].endswith('(mock-ups by our own painter)')


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
    assert said[0].endswith('(mock-ups by Chromium)') and {r['painter'].split()[0] for r in theirs} == {'chromium'}
    assert [r['text'] for r in theirs] == [r['text'] for r in own]
