"""What the tests of this folder read of the source tree: notebooks, their cells, and the settings."""
import ast
import re
from pathlib import Path

import nbformat

from finish import settings  # noqa: F401 - of settings.ini, for the tests

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
NOTEBOOKS = sorted((p for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts), key=lambda p: (p.name, p))
NUMBERED = [p for p in NOTEBOOKS if re.match(r'\d\d_', p.name)]


def name_of(
    path: Path,  # a numbered notebook, such as nbs/data/20_images.ipynb
) -> str:        # such as data.images
    "The module that a notebook exports, without `mmjepa.`."
    return '.'.join([*path.relative_to(NBS).parts[:-1], path.stem.split('_', 1)[1]])


def module_file(
    name: str,  # such as data.images
) -> Path:
    "The file of a module."
    return ROOT/'mmjepa'/f'{name.replace(".", "/")}.py'


_FILES = [p.relative_to(ROOT/'mmjepa') for p in (ROOT/'mmjepa').rglob('*.py') if not p.stem.startswith('_')]
MODULES = sorted('.'.join(p.with_suffix('').parts) for p in _FILES)
NUMBER = {name_of(p): int(p.stem[:2]) for p in NUMBERED}  # of a module: its place in the order


def cells(
    path: Path,       # a notebook
    kind: str = '',   # 'code' or 'markdown'; all cells where empty
) -> list:
    "The cells of one notebook."
    return [c for c in nbformat.read(path, as_version=4).cells if kind in ('', c.cell_type)]


def directives(
    cell,  # a code cell
) -> set:
    "The names after `#|` in a cell."
    return set(re.findall(r'(?m)^#\|\s*([\w-]+)', cell.source))


def exported(
    path: Path,  # a notebook
) -> list:
    "The cells of a notebook that end up in its module."
    return [c for c in cells(path, 'code') if directives(c) & {'export', 'exports', 'exporti'}]


def our_imports(
    source: str,  # Python code
) -> set:         # names without `mmjepa.`, such as data.images
    "The modules of this package that the code imports, at its top or inside a function."
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [f'mmjepa.{a.name}' for a in node.names] if node.module == 'mmjepa' else [node.module or '']
        elif isinstance(node, ast.Import): names = [a.name for a in node.names]
        else: continue
        found |= {n.removeprefix('mmjepa.') for n in names if n.startswith('mmjepa.')}
    return {n for n in found if not n.startswith('_')}


def sources(
    path: Path,  # a notebook or a Python file
) -> list:       # parsed: one tree a code cell, or one of the whole file
    "The code of a file."
    codes = [c.source for c in cells(path, 'code')] if path.suffix == '.ipynb' else [path.read_text(encoding='utf-8')]
    return [ast.parse(code) for code in codes]


def our_names(
    path: Path,   # a notebook or a Python file
    public: dict, # names that each module exports, by module
) -> dict:        # (module, name) by what it is called there
    "What the code calls public names of this package: imported ones, and those that a notebook exports."
    own = name_of(path) if path in NUMBERED else ''
    found = {n: (own, n) for n in public.get(own, ())}
    for node in (n for tree in sources(path) for n in ast.walk(tree)):
        module = node.module or '' if isinstance(node, ast.ImportFrom) else ''
        if not module.startswith('mmjepa.'): continue
        module = module.removeprefix('mmjepa.')
        found |= {a.asname or a.name: (module, a.name) for a in node.names if a.name in public.get(module, ())}
    return found
