"""README.md is what tools/readme.py makes of nbs/index.ipynb."""
import importlib.util
import re

import pytest

from tree import ROOT

COMMANDS = "pip install -e . && mmjepa_mnist", "pip install -e '.[dev]' && nbdev_test --do_print && pytest"


@pytest.fixture(scope='module')
def made():
    spec = importlib.util.spec_from_file_location('readme_tool', ROOT/'tools/readme.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.readme(ROOT)


@pytest.fixture(scope='module')
def text(): return (ROOT/'README.md').read_text(encoding='utf-8')


def test_readme_equals_its_notebook(made, text):
    assert text == made[0], 'run `python tools/readme.py`'


def test_drawn_pictures_equal_those_of_the_notebook(made):
    folder = ROOT/'README_files'
    there = {f'README_files/{p.name}': p.read_bytes() for p in folder.glob('*')} if folder.exists() else {}
    assert there == made[1], 'run `python tools/readme.py`'


def test_readme_gives_the_two_commands(text):
    for command in COMMANDS: assert command in text


def test_readme_shows_a_picture_of_a_result(text):
    assert re.search(r'!\[[^\]]+\]\([^)]+\.(png|svg|jpg)\)', text)


def test_links_of_the_readme_lead_somewhere(text):
    for target in re.findall(r'\]\(([^)#\s]+)\)', text):
        assert re.match(r'https?://|mailto:', target) or (ROOT/target).exists(), target
