"""The rules of the house, read from the notebooks and the modules (DESIGN: order, names, size, outputs, documentation)."""
import ast
import importlib
import inspect
import re
from dataclasses import is_dataclass

import nbformat
import pytest
import yaml
from fastcore.docments import docments

from tree import MODULES, NBS, NOTEBOOKS, NUMBER, NUMBERED, ROOT, cells, directives, exported, module_file, name_of, our_imports, settings

SCREEN, NOTEBOOK_BYTES = 60, 2_000_000  # lines of a function or a cell; bytes

each_notebook = pytest.mark.parametrize('path', NUMBERED, ids=lambda p: p.stem)
each_page = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
each_module = pytest.mark.parametrize('name', MODULES)


def module(name): return importlib.import_module(f'mmjepa.{name}')


def public(name):
    "What a module exports, by name."
    return {n: getattr(module(name), n) for n in module(name).__all__}


def methods(cls):
    "The public methods that a class defines itself."
    found = {n: getattr(f, '__func__', f) for n, f in vars(cls).items() if not n.startswith('_')}
    return {n: f for n, f in found.items() if inspect.isfunction(f) and f.__code__.co_filename == inspect.getsourcefile(cls)}


# ---------------------------------------------------------------- order and names

# A wing holds the numbers of its tens, and imports from these wings alone ('' is the core, which lies in none; its nineties use all of them).
WINGS = {'': [*range(0, 20), *range(90, 100)], 'data': range(20, 30), 'label': range(30, 40), 'pretrain': range(40, 50), 'align': range(50, 60),
         'pairs': range(60, 70), 'sandbox': range(70, 80), 'vl': range(80, 90)}
USES = {'': {''}, 'data': {'', 'data'}, **{w: {'', 'data', w} for w in ('label', 'pretrain', 'align', 'pairs', 'sandbox')},
        'vl': {'', 'data', 'pairs', 'sandbox', 'vl'}}


def wing(name): return name.rpartition('.')[0]


def test_numbers_are_unique(): assert len({p.name[:2] for p in NUMBERED}) == len(NUMBERED)


@each_notebook
def test_an_export_imports_only_smaller_numbers(path):
    own = name_of(path)
    assert NUMBER[own] in WINGS[wing(own)]
    for cell in exported(path):
        for other in our_imports(cell.source):
            assert other in NUMBER, f'mmjepa.{other} has no notebook'
            assert NUMBER[other] < NUMBER[own], f'{path.name} imports mmjepa.{other}, number {NUMBER[other]}'
            assert NUMBER[own] >= 90 or wing(other) in USES[wing(own)], f'{path.name} imports mmjepa.{other} of another wing'


@each_notebook
def test_imports_are_absolute_and_by_name(path):
    for cell in cells(path, 'code'):
        assert not re.search(r'(?m)^\s*from \.', cell.source), f'relative import in {cell.source[:80]}'
        assert not re.search(r'(?m)^\s*from mmjepa\S* import \*', cell.source), f'import * in {cell.source[:80]}'


@each_notebook
def test_a_module_has_the_name_of_its_notebook(path):
    names = [m for c in cells(path, 'code') for m in re.findall(r'(?m)^#\|\s*default_exp\s+(\S+)', c.source)]
    assert names == [name_of(path)]


def test_every_module_has_a_notebook(): assert set(MODULES) == set(NUMBER)


def test_names_are_unique_in_the_package():
    "All but `main`: what starts a module's command has this name in each of them."
    owner = {}
    for name in MODULES:
        for symbol in set(module(name).__all__) - {'main'}:
            assert symbol not in owner, f'{symbol} is in mmjepa.{owner[symbol]} and in mmjepa.{name}'
            owner[symbol] = name


# ---------------------------------------------------------------- size

@each_notebook
def test_a_notebook_is_a_page(path):
    assert path.stat().st_size < NOTEBOOK_BYTES


@each_notebook
def test_an_export_cell_fits_a_screen(path):
    for cell in exported(path):
        assert len(cell.source.splitlines()) <= SCREEN, f'{path.name}: {cell.source[:80]}'


@each_module
def test_a_function_fits_a_screen(name):
    tree = ast.parse(module_file(name).read_text(encoding='utf-8'))
    for f in ast.walk(tree):
        if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert f.end_lineno - f.body[0].lineno < SCREEN, f'mmjepa.{name}.{f.name}'


# ---------------------------------------------------------------- a notebook is a lesson and a test

@each_page
def test_a_notebook_opens_with_its_title_and_one_line(path):
    "And nothing else: nbdev makes front matter of the whole cell, so that more would never reach the site. The introduction follows."
    title, introduction = cells(path)[:2]
    assert re.fullmatch(r'# \S[^\n]*\n\n> \S[^\n]*', title.source)
    assert introduction.cell_type == 'markdown' and len(introduction.source) > 80


@each_page
def test_outputs_are_no_progress_bars(path):
    for cell in cells(path, 'code'):
        for output in cell.outputs: assert '\r' not in ''.join(output.get('text', '')), f'{path.name}: {cell.source[:80]}'


@each_notebook
def test_a_notebook_keeps_its_outputs(path):
    outputs = [o for c in cells(path, 'code') for o in c.outputs]
    assert outputs, f'{path.name} was not run'
    assert not [o for o in outputs if o.output_type == 'error']


@each_notebook
def test_a_notebook_checks_what_it_says(path):
    checks = [c for c in cells(path, 'code') if c not in exported(path) and re.search(r'\bassert|\btest_\w+\(|assert_close', c.source)]
    assert len(checks) >= 4


@each_notebook
def test_flagged_cells_define_nothing_for_others(path):
    flagged = [c for c in cells(path, 'code') if directives(c) & {'slow', 'cuda', 'notest'}]
    assert not [c for c in flagged if c in exported(path) or 'default_exp' in directives(c)]
    assert not [c for c in flagged if re.search(r'(?m)^(from|import) ', c.source)], 'imports stand in a cell of their own, without a flag'


@each_page
def test_a_notebook_is_valid_and_clean(path):
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    ids = [c.id for c in nb.cells]
    assert len(ids) == len(set(ids))
    assert all(c.execution_count is None for c in nb.cells if c.cell_type == 'code'), 'run nbdev_clean'


# ---------------------------------------------------------------- documentation

def test_the_sidebar_names_every_notebook():
    def pages(items):
        for item in items: yield from [item] if isinstance(item, str) else pages(item['contents'])
    sidebar = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']
    listed = list(pages(sidebar['contents']))
    assert sorted(listed) == sorted(p.relative_to(NBS).as_posix() for p in NOTEBOOKS)
    for section in sidebar['contents'][1:]:
        numbers = [int(p.rsplit('/')[-1][:2]) for p in pages([section])]
        assert numbers == sorted(numbers), 'a section is in the order of the numbers'


def test_nbdev_finds_the_settings_of_the_site():
    link = ROOT/'nbs/_quarto.yml'
    assert link.is_symlink() and not link.readlink().is_absolute()
    assert link.resolve() == (ROOT/'_quarto.yml').resolve()


@each_module
def test_public_names_are_documented(name):
    missing = []
    for symbol, thing in public(name).items():
        if not (inspect.isclass(thing) or inspect.isfunction(thing)): continue
        if not thing.__doc__ or thing.__doc__.startswith(f'{symbol}('): missing.append(symbol)  # what a dataclass writes by itself
        if inspect.isclass(thing): missing += [f'{symbol}.{m}' for m, f in methods(thing).items() if not f.__doc__ and m != 'forward']
    assert not missing, f'no docstring in mmjepa.{name}: {missing}'


def explains_itself(annotation):
    "A class of ours is documented where it stands: a parameter `cfg: EncoderConfig` needs no comment."
    return inspect.isclass(annotation) and annotation.__module__.startswith('mmjepa.')


@each_module
def test_parameters_are_documented(name):
    missing = []
    for symbol, thing in public(name).items():
        own_init = inspect.isclass(thing) and ('__init__' in vars(thing) or is_dataclass(thing))
        if not (own_init or inspect.isfunction(thing)): continue
        inherited = {f for base in thing.__mro__[1:] for f in vars(base).get('__annotations__', {})} if inspect.isclass(thing) else set()  # documented there
        for parameter, d in docments(thing, full=True, returns=False).items():
            if parameter in inherited: continue
            several = d.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            if parameter in ('self', 'cls') or several or explains_itself(d.anno): continue
            if not d.docment: missing.append(f'{symbol}: {parameter}')
    assert not missing, f'no comment beside a parameter in mmjepa.{name}: {missing}'


# ---------------------------------------------------------------- the package

@each_module
def test_a_module_imports(name): assert module(name).__all__


@each_module
def test_nothing_is_left_for_later(name):
    text = module_file(name).read_text(encoding='utf-8')
    assert not re.findall(r'NotImplementedError|TODO|FIXME|XXX', text)


def test_the_package_says_its_version():
    assert importlib.import_module('mmjepa').__version__ == settings()['version']


@pytest.mark.parametrize('entry', settings()['console_scripts'].split())
def test_commands_exist(entry):
    command, target = entry.split('=')
    name, function = target.split(':')
    assert command.startswith('mmjepa_')
    f = getattr(importlib.import_module(name), function)
    assert callable(f) and f.__doc__


@each_page
def test_a_notebook_names_no_place_of_its_authors_machine(path):
    "A path in an output is most often that of a warning."
    for cell in cells(path):
        printed = [o.get('text', '') or o.get('data', {}).get('text/plain', '') for o in cell.get('outputs', [])]
        for text in [cell.source, *printed]:
            assert not re.search(r'/root/|/home/\w+/|/Users/\w+/|site-packages/', text), f'{path.name}: {text[:200]}'
