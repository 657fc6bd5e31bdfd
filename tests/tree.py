"""What the tests of this folder read of the source tree: notebooks, their cells, and the settings."""
import ast
import re
from configparser import ConfigParser
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
NUMBERED = [p for p in NOTEBOOKS if re.match(r'\d\d[a-z]?_', p.name)]
MODULES = sorted(p.stem for p in (ROOT/'mmjepa').glob('*.py') if not p.stem.startswith('_'))
NUMBER = {name: number for number, name in (p.stem.split('_', 1) for p in NUMBERED)}  # of a module: its place in the order, such as '06' < '06a' < '07'


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
) -> set:         # names without `mmjepa.`
    "The modules of this package that the code imports, at its top or inside a function."
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == 'mmjepa': names = [f'mmjepa.{a.name}' for a in node.names]
        elif isinstance(node, ast.ImportFrom): names = [node.module or '']
        elif isinstance(node, ast.Import): names = [a.name for a in node.names]
        else: continue
        found |= {n.split('.')[1] for n in names if n.startswith('mmjepa.')}
    return {n for n in found if not n.startswith('_')}


def settings():
    "The section of settings.ini."
    parser = ConfigParser(delimiters=['='], interpolation=None)
    parser.read(ROOT/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']
