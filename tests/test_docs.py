"""The pages of the site, as nbdev hands them to Quarto: every notebook is processed, then read as data."""
import base64
import io
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
import yaml
from PIL import Image

from tree import NBS, NOTEBOOKS, NUMBERED, ROOT, directives, exported, settings

# What `nbdev_docs` does before it calls Quarto. Its two workers are forked, as nbdev does in a notebook, so that what
# most pages import is loaded once; and they end at once: sixty shells take as long to be torn down as to be run.
PROCESS = '''
import torch, timm, transformers, seaborn
import nbdev.serve
from nbdev.quarto import refresh_quarto_yml
refresh_quarto_yml()
nbdev.serve.IN_NOTEBOOK = True
nbdev.serve.proc_nbs(n_workers=2)
'''


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A copy of the sources with its pages in `_proc`."
    root = tmp_path_factory.mktemp('site')
    ignored = shutil.ignore_patterns('__pycache__', 'nbdev.yml')
    for name in ('nbs', 'mmjepa'): shutil.copytree(ROOT/name, root/name, symlinks=True, ignore=ignored)
    for name in ('settings.ini', '_quarto.yml'): shutil.copy(ROOT/name, root/name)
    command = [sys.executable, '-c', PROCESS]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-3000:]
    return root/'_proc'


def folder(site, path): return (site/path.relative_to(NBS)).parent

def page(site, path): return nbformat.v4.reads((site/path.relative_to(NBS)).read_text(encoding='utf-8'))

def header(nb): return yaml.safe_load(re.match(r'---\n(.*?)\n---', nb.cells[0].source, re.S)[1])

def texts(nb):
    "Markdown of a page, and what its cells print as markdown."
    for c in nb.cells:
        if c.cell_type == 'markdown': yield c.source
        for o in c.get('outputs', []):
            if 'text/markdown' in o.get('data', {}): yield ''.join(o['data']['text/markdown'])

def prose(text): return re.sub(r'```.*?```|`[^`]*`', '', text, flags=re.S)

def address(site, path):
    "Where a page lies on the site; nbdev takes the number out."
    name = header(page(site, path)).get('output-file', path.with_suffix('.html').name)
    return (path.relative_to(NBS).parent/name).as_posix()

def output_files(site): return {address(site, p) for p in NOTEBOOKS}


each_page = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
each_notebook = pytest.mark.parametrize('path', NUMBERED, ids=lambda p: p.stem)


def test_the_site_has_its_settings(site):
    "Quarto finds one file for its look and one, written from settings.ini, for its address."
    cfg, own = settings(), yaml.safe_load((site/'_quarto.yml').read_text(encoding='utf-8'))
    assert not (site/'_quarto.yml').is_symlink()
    assert own['metadata-files'] == ['nbdev.yml'] and (site/own['format']['html']['css']).is_file()
    assert set(own['format']['html']['theme']) == {'light', 'dark'}
    written = yaml.safe_load((site/'nbdev.yml').read_text(encoding='utf-8'))
    assert written['website']['title'] == cfg['lib_name'] and written['website']['repo-url'] == cfg['git_url']
    assert own['website']['repo-subdir'] == cfg['nbs_path'], 'where "View source" looks for a page'
    assert any(item.get('href') == cfg['git_url'] for item in own['website']['navbar']['right'])


@each_page
def test_a_page_has_a_title_and_a_description(site, path):
    about = header(page(site, path))
    assert about['title'] and about['description']


@each_page
def test_a_page_keeps_its_introduction(site, path):
    opening = nbformat.read(path, as_version=4).cells[1].source.splitlines()[0][:60]
    shown = [c.source.strip() for c in page(site, path).cells if c.cell_type == 'markdown']
    assert any(text.startswith(opening) for text in shown)


@each_notebook
def test_a_page_documents_its_public_names(site, path):
    "One entry for each exported function and class: signature and source link, without the code itself."
    shown = '\n'.join(texts(page(site, path)))
    source = '\n'.join(c.source for c in exported(path) if 'exporti' not in directives(c))
    for name in re.findall(r'(?m)^(?:def|class) ([A-Za-z]\w*)', source):
        assert re.search(rf'(?m)^###+ (?:\w+\.)?{name}\b', shown), f'{name} is not on the page of {path.name}'
    assert 'default_exp' not in ''.join(c.source for c in page(site, path).cells)


@each_page
def test_links_lead_somewhere(site, path):
    cfg = settings()
    base, pages = cfg['doc_host'] + cfg['doc_baseurl'], output_files(site)
    for text in texts(page(site, path)):
        for target in re.findall(r'\]\(<?([^)\s>]+)', prose(text)):
            file = target.split('#')[0]
            if target.startswith(base): assert file.removeprefix(base).lstrip('/') in pages, target
            elif file and not re.match(r'[a-z]+:', file):
                assert (folder(site, path)/file).exists(), f'{path.name}: {target}'


@each_page
def test_pictures_are_there_and_show_something(site, path):
    for cell in page(site, path).cells:
        named = re.findall(r'!\[[^\]]*\]\(([^)\s]+)', prose(cell.source)) if cell.cell_type == 'markdown' else []
        for source in named: assert (folder(site, path)/source).is_file(), source
        for output in cell.get('outputs', []):
            png = output.get('data', {}).get('image/png')
            if png is None: continue
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert('L'))
            empty = min(pixels.shape) < 40 or pixels.std() <= 1
            assert not empty, f'{path.name}: an empty figure after {cell.source[:60]!r}'
