"""The rules of the house, read from notebooks and modules: order, names, size, calls, outputs, documentation."""
import ast
import importlib
import inspect
import re
from dataclasses import is_dataclass

import nbformat
import pytest
import torch
import yaml
from fastcore.docments import docments

from tree import (MODULES, NBS, NOTEBOOKS, NUMBER, NUMBERED, ROOT, cells, directives, exported, module_file, name_of,
                  our_imports, our_names, settings, sources)

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
    file = inspect.getsourcefile(cls)
    return {n: f for n, f in found.items() if inspect.isfunction(f) and f.__code__.co_filename == file}


# ---------------------------------------------------------------- order and names

# A wing holds the numbers of its tens, and imports from these wings alone ('' is the core, which lies in none; its
# nineties use all of them). The vision-language wing goes on from 91, above its commands.
FIRST = {'data': 20, 'label': 30, 'pretrain': 40, 'align': 50, 'pairs': 60, 'sandbox': 70, 'vl': 80}
WINGS = {'': [*range(20), *range(90, 100)], **{w: [*range(first, first + 10)] for w, first in FIRST.items()}}
WINGS['vl'] += range(91, 100)
USES = {**{w: {'', 'data', w} for w in WINGS}, '': {''}, 'vl': {'', 'data', 'pairs', 'sandbox', 'vl'}}


def wing(name): return name.rpartition('.')[0]


def test_files_of_tests_have_names_of_their_own():
    "pytest imports them by these."
    names = [p.name for p in (ROOT/'tests').rglob('test_*.py')]
    assert len(names) == len({*names})


def test_numbers_are_unique(): assert len({p.name[:2] for p in NUMBERED}) == len(NUMBERED)


@each_notebook
def test_an_export_imports_only_smaller_numbers(path):
    own = name_of(path)
    assert NUMBER[own] in WINGS[wing(own)]
    for cell in exported(path):
        for other in our_imports(cell.source):
            assert other in NUMBER, f'mmjepa.{other} has no notebook'
            assert NUMBER[other] < NUMBER[own], f'{path.name} imports mmjepa.{other}, number {NUMBER[other]}'
            allowed = WINGS if NUMBER[own] >= 90 else USES[wing(own)]
            assert wing(other) in allowed, f'{path.name} imports mmjepa.{other} of another wing'


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


# ---------------------------------------------------------------- imports and calls

MOST = 3  # arguments by position
CALLERS = [*NOTEBOOKS, *sorted((ROOT/'tests').rglob('*.py')), *sorted((ROOT/'benchmarks').glob('*.py'))]


@each_notebook
def test_no_private_name_crosses_a_module(path):
    "Neither `from mmjepa.x import _y` nor `y._z` of what is imported from there."
    nodes = [n for c in exported(path) for n in ast.walk(ast.parse(c.source))]
    imports = [n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]
    ours = [a for n in imports for a in n.names if (getattr(n, 'module', None) or a.name).split('.')[0] == 'mmjepa']
    called = {a.asname or a.name for a in ours}
    taken = [a.name for a in ours]
    taken += [n.attr for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) in called]
    private = [name for name in taken if name.startswith('_') and not name.endswith('__')]
    assert not private, f'{path.name} takes {private} from another module'


def takes_any_number(thing):
    "Whether a function or class has `*args`, and may be called with as many as one likes."
    try: parameters = inspect.signature(thing).parameters.values()
    except ValueError: return True  # of a class written in C
    return any(p.kind is p.VAR_POSITIONAL for p in parameters)


@pytest.mark.parametrize('path', CALLERS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_calls_have_at_most_three_positional_arguments(path):
    "Calls of what the package exports; how many arguments `*args` stands for is unknown, and not counted."
    names = our_names(path, {name: module(name).__all__ for name in MODULES})
    for call in (n for tree in sources(path) for n in ast.walk(tree) if isinstance(n, ast.Call)):
        if not isinstance(call.func, ast.Name) or call.func.id not in names: continue
        given = [a for a in call.args if not isinstance(a, ast.Starred)]
        home, name = names[call.func.id]
        if len(given) <= MOST or takes_any_number(getattr(module(home), name)): continue
        pytest.fail(f'{path.name} gives {len(given)} arguments by position: {ast.unparse(call)[:160]}')


def by_position(f):
    "Names of the parameters that may be given by position, but `self`."
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    found = inspect.signature(f).parameters.values()
    return [p.name for p in found if p.kind in kinds and p.name not in ('self', 'cls')]


@each_module
def test_functions_are_keyword_only_from_the_fourth_argument_on(name):
    "Public functions, methods and `__init__`; not what a dataclass or a named tuple writes, nor what PyTorch calls."
    checked = {}
    for symbol, thing in public(name).items():
        if inspect.isfunction(thing): checked[symbol] = thing
        if not inspect.isclass(thing) or issubclass(thing, torch.autograd.Function): continue
        checked |= {f'{symbol}.{m}': f for m, f in methods(thing).items() if m != 'forward'}
        written = is_dataclass(thing) or issubclass(thing, tuple)
        if '__init__' in vars(thing) and not written: checked[symbol] = thing.__init__
    checked.pop('main', None)  # its parameters are flags
    long = {symbol: by_position(f)[MOST:] for symbol, f in checked.items() if len(by_position(f)) > MOST}
    assert not long, f'mmjepa.{name}: these parameters need a * before them: {long}'


# ---------------------------------------------------------------- a notebook is a lesson and a test

@each_page
def test_a_notebook_opens_with_its_title_and_one_line(path):
    "And nothing else: nbdev makes front matter of the whole cell, and more would be lost. The introduction follows."
    title, introduction = cells(path)[:2]
    assert re.fullmatch(r'# \S[^\n]*\n\n> \S[^\n]*', title.source)
    assert introduction.cell_type == 'markdown' and len(introduction.source) > 80


@each_page
def test_outputs_are_no_progress_bars(path):
    for cell in cells(path, 'code'):
        for output in cell.outputs:
            assert '\r' not in ''.join(output.get('text', '')), f'{path.name}: {cell.source[:80]}'


@each_notebook
def test_a_notebook_keeps_its_outputs(path):
    outputs = [o for c in cells(path, 'code') for o in c.outputs]
    assert outputs, f'{path.name} was not run'
    assert not [o for o in outputs if o.output_type == 'error']


@each_notebook
def test_a_notebook_checks_what_it_says(path):
    others = [c for c in cells(path, 'code') if c not in exported(path)]
    assert sum(bool(re.search(r'\bassert|\btest_\w+\(', c.source)) for c in others) >= 4


@each_notebook
def test_flagged_cells_define_nothing_for_others(path):
    flagged = [c for c in cells(path, 'code') if directives(c) & {'slow', 'cuda', 'notest'}]
    assert not [c for c in flagged if c in exported(path) or 'default_exp' in directives(c)]
    importing = [c for c in flagged if re.search(r'(?m)^(from|import) ', c.source)]
    assert not importing, 'imports stand in a cell of their own, without a flag'


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
        for item in items:
            if isinstance(item, str): yield item
            else: yield from pages(item['contents']) if 'contents' in item else [item['href']]
    sidebar = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']
    listed = list(pages(sidebar['contents']))
    written = [p for p in NBS.glob('*.qmd') if p.stem != '404']
    assert sorted(listed) == sorted(p.relative_to(NBS).as_posix() for p in (*NOTEBOOKS, *written))
    for section in sidebar['contents']:
        numbers = [int(n[1]) for p in pages([section]) if (n := re.match(r'(\d+)_', p.rsplit('/')[-1]))]
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
        own = thing.__doc__ and not thing.__doc__.startswith(f'{symbol}(')  # what a dataclass writes by itself
        if not own: missing.append(symbol)
        parts = methods(thing) if inspect.isclass(thing) else {}
        missing += [f'{symbol}.{m}' for m, f in parts.items() if not f.__doc__ and m != 'forward']
    assert not missing, f'no docstring in mmjepa.{name}: {missing}'


def explains_itself(annotation):
    "A class of ours is documented where it stands: a parameter `cfg: EncoderConfig` needs no comment."
    return inspect.isclass(annotation) and annotation.__module__.startswith('mmjepa.')


def inherited_fields(thing):
    "Of a dataclass: they are documented in its base."
    bases = thing.__mro__[1:] if inspect.isclass(thing) else ()
    return {f for base in bases for f in vars(base).get('__annotations__', {})}


@each_module
def test_parameters_are_documented(name):
    missing = []
    for symbol, thing in public(name).items():
        own_init = inspect.isclass(thing) and ('__init__' in vars(thing) or is_dataclass(thing))
        if not (own_init or inspect.isfunction(thing)): continue
        inherited = inherited_fields(thing)
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
