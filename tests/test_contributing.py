"""The Python examples of CONTRIBUTING.md and README.md run as they stand."""
import importlib.util
import re
import sys
from dataclasses import fields

import pytest
import torch

import mmjepa
from mmjepa.core import run_command
from mmjepa.runs import RunConfig
from tree import ROOT

KINDS = 'A loss', 'A modality', 'A dataset', 'A backbone', 'A callback', 'A command'
LEAST, MOST, WIDTH = 5, 15, 120  # lines of an example, characters of a line


def text(name): return (ROOT/name).read_text(encoding='utf-8')

def section(title):
    "What stands under a heading of CONTRIBUTING.md."
    return re.search(rf'^### {title}\n(.*?)(?=^##|\Z)', text('CONTRIBUTING.md'), re.M | re.S)[1]

def examples(markdown): return re.findall(r'(?ms)^```python\n(.*?)^```$', markdown)


def only_python(markdown):
    "The examples alone, each line at its place: an error names the line of the document."
    out, inside = [], False
    for line in markdown.splitlines():
        if line.startswith('```'): inside = line == '```python'
        out.append(line if inside and not line.startswith('```') else '')
    return '\n'.join(out) + '\n'


@pytest.fixture(scope='module')
def program(tmp_path_factory):
    "Runs the examples of a document as one module, in a folder of its own that is the working directory."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ACCELERATE_USE_CPU', '1')

        def run(document, prepare=None):
            folder, name = tmp_path_factory.mktemp('examples'), f'examples_of_{document.split(".")[0].lower()}'
            patch.chdir(folder)
            if prepare: prepare()
            (folder/f'{name}.py').write_text(only_python(text(document)), encoding='utf-8')
            spec = importlib.util.spec_from_file_location(name, folder/f'{name}.py')
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, name, module)  # where `inspect` looks for the source of a class
            torch.manual_seed(0)
            spec.loader.exec_module(module)
            return module
        yield run


@pytest.fixture(scope='module')
def contributing(program): return program('CONTRIBUTING.md')


@pytest.mark.parametrize('kind', KINDS)
def test_each_kind_has_an_example(kind):
    "And a row that says where it goes."
    assert re.search(rf'(?m)^\| {kind.lower()} \|', text('CONTRIBUTING.md'))
    found = examples(section(kind))
    assert len(found) == 1
    lines = [line for line in found[0].splitlines() if line.strip()]
    assert LEAST <= len(lines) <= MOST, f'{kind}: {len(lines)} lines'
    assert max(map(len, lines)) <= WIDTH


def test_notebooks_that_are_named_exist():
    for heading, file in re.findall(r'(?:"([^"\n]+)" in )?`(nbs/[^`<>\s]+)`', text('CONTRIBUTING.md')):
        assert (ROOT/file).exists(), file
        if heading: assert f'## {heading}' in text(file), f'{file} has no heading {heading}'


def test_modules_that_are_named_exist():
    for name in re.findall(r'`(mmjepa(?:\.\w+)+)`', text('CONTRIBUTING.md')):
        if importlib.util.find_spec(name.rpartition('.')[0]).submodule_search_locations is None:
            name, _, symbol = name.rpartition('.')
            assert hasattr(importlib.import_module(name), symbol), f'{name}.{symbol}'
        else: assert importlib.util.find_spec(name), name


def test_the_loss_is_a_loss(contributing):
    x = torch.randn(2, 3, 4, requires_grad=True)
    assert contributing.cosine_loss(x, x).abs() < 1e-6
    torch.testing.assert_close(contributing.cosine_loss(x, -x), torch.tensor(2.))
    with pytest.raises(mmjepa.core.UserError, match='expected one shape'): contributing.cosine_loss(x, x[:1])


def test_the_callback_writes_its_columns(contributing):
    assert {'spread', 'online_probe_acc'} <= {*contributing.table.columns}


def test_the_command_runs(contributing, tmp_path, capsys):
    with pytest.raises(SystemExit): run_command(contributing.main, ['--help'])
    shown = capsys.readouterr().out
    own = [f.name for f in (*fields(contributing.TryConfig), *fields(RunConfig))]
    assert all(f'--{name}' in shown for name in own) and 'passes over the images' in shown
    run_command(contributing.main, ['--epochs', '2', '--output', str(tmp_path/'run')])
    assert len((tmp_path/'run/metrics.csv').read_text().splitlines()) == 3


def untrained_run():
    "What the example of a trained model finds: the folder that `mmjepa_mnist` writes, with random weights."
    cfg = mmjepa.LeJEPAConfig(mmjepa.EncoderConfig(image_size=28, patch_size=7, emb_dim=48, depth=2))
    mmjepa.MultimodalLeJEPA(cfg).save_pretrained('runs/mnist/model')


def test_the_readme_runs(program):
    module = program('README.md', untrained_run)
    assert isinstance(module.retrieval, mmjepa.LabelRetrieval)
    assert module.table.loss_total.iloc[-1] < module.table.loss_total.iloc[0]
    assert module.right.float().mean() > .5  # ten classes
