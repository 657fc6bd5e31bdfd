"""The tutorials: their form, the flags that they name, and, with --slow, their results as a new user gets them."""
import contextlib
import importlib
import io
import json
import re
import shlex

import nbformat
import pytest
from nbclient import NotebookClient

from mmjepa.core import run_command
from tree import NBS, ROOT, cells, directives, settings

FOLDER = NBS/'tutorials'
TUTORIALS = sorted(FOLDER.glob('*.ipynb'))
PICTURES = 'image/png', 'image/jpeg'

each_tutorial = pytest.mark.parametrize('path', TUTORIALS, ids=lambda p: p.stem)


# ---------------------------------------------------------------- form

def test_there_is_one_for_each_system():
    assert [p.stem for p in TUTORIALS] == ['1_labels', '2_pretraining', '3_alignment', '4_vision_language']


@each_tutorial
def test_it_opens_in_colab_and_installs_first(path):
    introduction, first = cells(path)[1:3]
    address = path.relative_to(ROOT).as_posix()
    assert f'https://colab.research.google.com/github/mmjepa/mmjepa/blob/main/{address})' in introduction.source
    assert first.cell_type == 'code' and "if not importlib.util.find_spec('mmjepa'):" in first.source
    assert "'pip', 'install'" in first.source and not first.outputs


@each_tutorial
def test_it_ends_with_own_data_and_a_cluster(path):
    heads = [line for c in cells(path, 'markdown') for line in c.source.splitlines() if line.startswith('## ')]
    assert heads[-2:] == ['## With your own data', '## On a cluster']


@each_tutorial
def test_it_takes_public_names_and_tests_nothing(path):
    for cell in cells(path, 'code'):
        assert not re.search(r'(?m)^(from|import) mmjepa.*\b_\w', cell.source), cell.source[:80]
        assert not re.search(r'\w\._[a-z]\w*', cell.source), cell.source[:80]
        assert not re.search(r'(?m)^\s*(assert|test_\w+\()', cell.source), cell.source[:80]
        assert not directives(cell) & {'hide', 'slow', 'export', 'exports', 'default_exp', 'eval'}, cell.source[:80]


def pictures_of(cell): return [o for o in cell.outputs if {*PICTURES} & {*o.get('data', {})}]


@each_tutorial
def test_its_pictures_are_kept_and_described(path):
    shown = [c for c in cells(path, 'code') if pictures_of(c)]
    assert len(shown) >= 4
    assert [c.id for c in shown] == [c.id for c in cells(path, 'code') if 'fig-alt' in directives(c)]


# ---------------------------------------------------------------- commands

COMMANDS = dict(entry.split('=') for entry in settings()['console_scripts'].split())  # mmjepa_mnist -> module:main
LAUNCH = {'--num_processes', '--config_file'}  # flags of accelerate that the tutorials use


def flags_of(target):
    "Every flag that a command explains."
    module, name = target.split(':')
    main = getattr(importlib.import_module(module), name)
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        run_command(main.__wrapped__, ['--help'])
    return {*re.findall(r'--\w+', said.getvalue())}


@each_tutorial
def test_its_commands_have_these_flags(path):
    blocks = [b for c in cells(path, 'markdown') for b in re.findall(r'(?ms)^```bash\n(.*?)^```', c.source)]
    assert len(blocks) == 2
    for line in ''.join(blocks).replace('\\\n', ' ').splitlines():
        words = shlex.split(line)
        if words[0] == 'sbatch':
            assert (ROOT/words[1]).is_file()
            continue
        if words[0] == 'accelerate':
            at = words.index('-m')
            assert {w for w in words[:at] if w.startswith('--')} <= LAUNCH, line
            words = [next(k for k, v in COMMANDS.items() if v == f'{words[at + 1]}:main'), *words[at + 2:]]
        typed = {w for w in words if w.startswith('--')}
        assert typed <= flags_of(COMMANDS[words[0]]), line


# ---------------------------------------------------------------- results

@pytest.fixture
def finish(tmp_path, monkeypatch):
    "Executes a tutorial in an empty folder, as somebody who has no data sets; gives what `results` is at its end."
    monkeypatch.delenv('MMJEPA_DATA', raising=False)
    for name in ('HOME', 'XDG_CACHE_HOME'): monkeypatch.setenv(name, str(tmp_path/'home'))
    here = tmp_path/'here'
    for folder in (here, tmp_path/'home'): folder.mkdir()

    def run(name, results):
        nb = nbformat.read(FOLDER/f'{name}.ipynb', as_version=4)
        nb.cells.append(nbformat.v4.new_code_cell(f'import json\nprint(json.dumps({results}))'))
        NotebookClient(nb, timeout=600, resources={'metadata': {'path': str(here)}}).execute()
        described = [c for c in nb.cells if c.cell_type == 'code' and 'fig-alt' in directives(c)]
        assert all(map(pictures_of, described)), 'a cell shows no picture'
        assert not [*here.iterdir()], 'it has left files beside itself'
        return json.loads(nb.cells[-1].outputs[0].text)
    return run


@pytest.mark.slow
def test_labels(finish):
    found = finish('1_labels', "{'m1': scores['m1']['top1'], 'm2': scores['m2']['top1'], 'drawn': answer}")
    assert min(found['m1'], found['m2']) > .85, found
    assert found['drawn'] == {'1': '2', '2': '2'}, found


@pytest.mark.slow
def test_pretraining(finish):
    rings = "(f'a {size} orange ring at the {place}' for size in SIZES for place in PLACES)"
    shown = f"[[records[i]['text'] for i in rows] for rows in (search(unseen[0])[0], search(*{rings})[0])]"
    found = finish('2_pretraining', f"{{'recall': recall.to_dict(), 'asked': unseen[0], 'shown': {shown}}}")
    for name, scores in found['recall'].items(): assert scores['image_to_text_r1'] > .6, (name, scores)
    sentence, orange = found['shown']
    assert sentence.count(found['asked']) >= 5, (found['asked'], sentence)
    assert sum('orange ring' in text for text in orange) >= 6, orange


@pytest.mark.slow
def test_alignment(finish):
    found = finish('3_alignment', "{'zero_shot': accuracy, 'captions': float(exact), 'least': between.min().min()}")
    assert min(found['zero_shot'].values()) > .9 and found['captions'] > .9 and found['least'] > .75, found


@pytest.mark.slow
def test_vision_language(finish):
    found = finish('4_vision_language', "{name: scores['all'][name] for name in names}")
    assert found['exact'] > .75 and max(found['exact_swapped'], found['exact_blank']) < .2, found
