"""The pages of the site, as nbdev hands them to Quarto: every notebook is processed, then read as data."""
import base64
import inspect
import io
import math
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise

import entries
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
    entries.main(root/'_proc')
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

def fences(text): return re.findall(r'(?ms)^```[^\n]*\n(.*?)^```', text)

def anchor(heading):
    "The name that Pandoc gives a heading."
    text = re.sub(r'\{[^}]*\}\s*$|<[^>]+>|\]\([^)]*\)|\$[^$]*\$', '', heading)
    text = re.sub(r'[^\w\s.-]', '', text.lower()).strip()
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', text))

@cache
def anchors(site, path):
    "Places of a page that may be linked to: its headings, and the entries of names that the tool documents."
    found = set()
    for text in texts(page(site, path)):
        lines = re.sub(r'(?ms)^```.*?^```', '', text).splitlines()
        found |= {anchor(line.lstrip('#')) for line in lines if re.match(r'#+ ', line)}
    return found | {''}

def shown_code(site, path):
    "Code that a reader of the page sees, a string each."
    for c in page(site, path).cells:
        hidden = re.search(r'(?m)^#\|\s*(echo|include): false', c.source)
        if c.cell_type == 'code' and not hidden: yield re.sub(r'(?m)^#\|.*\n?', '', c.source)
        if c.cell_type == 'markdown': yield from fences(c.source)

def address(site, path):
    "Where a page lies on the site; nbdev takes the number out."
    name = header(page(site, path)).get('output-file', path.with_suffix('.html').name)
    return (path.relative_to(NBS).parent/name).as_posix()

def output_files(site): return {address(site, p) for p in NOTEBOOKS}


TITLES = 'Start', 'Tutorials', 'Method', 'Data', 'Label JEPA', 'Pretraining', 'Alignment', 'Vision-language'
WIDTH = 95  # columns of code that a page shows without scrolling, on a screen of 1,400 pixels
FIRST = [p for p in NOTEBOOKS if p not in NUMBERED]  # what is read first: the home page, tutorials, pages of reference

each_page = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
each_notebook = pytest.mark.parametrize('path', NUMBERED, ids=lambda p: p.stem)


def test_the_site_has_its_settings(site):
    "Quarto finds one file for its look and one, written from settings.ini, for its address."
    cfg, own = settings(), yaml.safe_load((site/'_quarto.yml').read_text(encoding='utf-8'))
    assert not (site/'_quarto.yml').is_symlink()
    assert own['metadata-files'] == ['nbdev.yml'] and (site/own['format']['html']['css']).is_file()
    html, website = own['format']['html'], own['website']
    assert set(html['theme']) == {'light', 'dark'}
    for name in (*html['theme']['light'], website['favicon'], website['image'], website['navbar']['logo']):
        assert '.' not in name or (site/name).is_file(), name
    assert website['open-graph'] and website['twitter-card'] and (site/'404.qmd').is_file()
    assert not re.search(r'//(cdn|unpkg|fonts)', (site/'_quarto.yml').read_text(encoding='utf-8')), 'it reads offline'
    written = yaml.safe_load((site/'nbdev.yml').read_text(encoding='utf-8'))
    assert written['website']['title'] == cfg['lib_name'] and written['website']['repo-url'] == cfg['git_url']
    assert own['website']['repo-subdir'] == cfg['nbs_path'], 'where "View source" looks for a page'
    assert any(item.get('href') == cfg['git_url'] for item in own['website']['navbar']['right'])


def test_the_site_is_ordered_by_purpose(site):
    "And sections are closed, but the one that is read."
    sidebar = yaml.safe_load((site/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']
    names = [i if isinstance(i, str) else i.get('section') or i['href'] for i in sidebar['contents']]
    order = [*TITLES, 'Pairs and sandbox', 'commands.ipynb', 'api.ipynb', 'changelog.qmd']
    assert names == [n for n in order if n in names] and {*order} - {*names} <= {'Tutorials'}
    assert sidebar['collapse-level'] == 1


def test_the_footer_says_licence_and_version(site):
    footer = yaml.safe_load((site/'_quarto.yml').read_text(encoding='utf-8'))['website']['page-footer']
    assert '%VERSION%' in footer['left'] and 'MIT' in footer['left'], 'tools/finish.py fills the version in'


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


def entry_cells(nb):
    for c in nb.cells:
        for o in c.get('outputs', []):
            entry = ''.join(o.get('data', {}).get('text/markdown', ''))
            found = re.search(r'/blob/main/(mmjepa[\w/]*)\.py#L(\d+).*?\n#+ ([\w.]+)\n\n(```.*)', entry, re.S)
            if not found: continue
            module, line, name, shown = found.groups()
            yield c, getattr(import_module(module.replace('/', '.')), name, None), int(line), shown


@each_notebook
def test_fields_are_documented_with_their_comments(site, path):
    for _, thing, _, entry in entry_cells(page(site, path)):
        if not (inspect.isclass(thing) and is_dataclass(thing)): continue
        names, told = {f.name for f in fields(thing)}, set() # what a class says of a field, its bases no longer do
        for cls in thing.__mro__[:-1]:
            source = textwrap.dedent(inspect.getsource(cls))
            for name, comment in re.findall(r'(?m)^    (\w+): [^#\n]*# (.+)$', source):
                if name in names - told: assert comment in entry, f'{thing.__name__}.{name}'
            told |= {*vars(cls).get('__annotations__', {})}


@each_notebook
def test_entries_side_by_side_are_in_the_order_of_the_source(site, path):
    nb = page(site, path)
    lines = {c.id: line for c, _, line, _ in entry_cells(nb)}
    for one, two in pairwise(c.id for c in nb.cells):
        assert lines.get(one, 0) <= lines.get(two, math.inf), f'{path.name}, lines {lines[one]} and {lines[two]}'


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
def test_links_lead_to_places_that_are_there(site, path):
    "Headings of this page, of another one, and entries of public names."
    cfg = settings()
    base, by_address = cfg['doc_host'] + cfg['doc_baseurl'], {address(site, p): p for p in NOTEBOOKS}
    for text in texts(page(site, path)):
        for target in re.findall(r'\]\(<?([^)\s>]+#[^)\s>]+)', prose(text)):
            file, _, place = target.partition('#')
            if file.startswith(base): other = by_address[file.removeprefix(base).lstrip('/')]
            elif re.match(r'[a-z]+:', file): continue
            else: other = (NBS/path.relative_to(NBS)).parent/file if file else path
            if other.suffix == '.ipynb':
                assert place in anchors(site, other.resolve()), f'{path.name}: {target}'


@each_page
def test_every_picture_is_described(site, path):
    "For readers who can't see it, and for search."
    for cell in page(site, path).cells:
        if cell.cell_type == 'markdown':
            assert not re.search(r'!\[\s*\]\(', prose(cell.source)), f'{path.name}: {cell.source[:80]!r}'
        drawn = [o for o in cell.get('outputs', []) if 'image/png' in o.get('data', {})]
        if not drawn or not cell.source: continue
        alt = re.search(r'(?m)^#\|\s*fig-alt:\s*(\S.*)', cell.source)
        assert alt and len(alt[1]) > 20, f'{path.name}: no `#| fig-alt:` in {cell.source[:80]!r}'


@each_page
def test_a_page_shows_no_progress_bars(site, path):
    for cell in page(site, path).cells:
        printed = ''.join(''.join(o.get('text', '')) for o in cell.get('outputs', []))
        assert not re.search(r'\r|\d%\|', printed), f'{path.name}: {printed[:80]!r}'


@each_page
def test_code_has_no_raw_links(site, path):
    "nbdev links names in backticks, also in the comments of a signature, where the link is shown as it is typed."
    for text in texts(page(site, path)):
        for code in fences(text): assert not re.search(r'\]\(https?:', code), f'{path.name}: {code[:200]}'


@pytest.mark.parametrize('path', FIRST, ids=lambda p: p.stem)
def test_code_of_the_first_pages_fits_them(site, path):
    "That of the others scrolls in its box, and is no wider than 120 columns."
    for code in shown_code(site, path):
        for line in code.splitlines(): assert len(line) <= WIDTH, f'{path.name}: {line}'


def test_the_style_lets_no_page_scroll_sideways():
    "What may be wide scrolls by itself, what may be long breaks (tried in Chromium at 390 pixels)."
    rules = re.sub(r'/\*.*?\*/', '', (NBS/'styles.css').read_text(encoding='utf-8'), flags=re.S)
    for wide in ('main pre', 'mjx-container[display="true"]', 'main table'):
        assert re.search(rf'{re.escape(wide)}[^{{}}]*\{{[^}}]*overflow-x: auto', rules), wide
    for long in ('main h1', ':not(pre) > code'):
        assert re.search(rf'{re.escape(long)}[^{{}}]*\{{[^}}]*overflow-wrap: anywhere', rules), long
    assert re.search(r'\.description code[^{}]*\{[^}]*color: inherit', rules)


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
