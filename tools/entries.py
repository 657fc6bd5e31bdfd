"""Entries of public names on the site, as they are in the source. Quarto calls this before each render (`pre-render`).

nbdev makes an entry from what a cell has just defined. The source of a class is not found that way, and with it the
comments of a dataclass's fields: here they are read from the module. Of one cell, the last name would come first, and
names in comments would be links that nobody can follow.
`python tools/entries.py _proc` does it again.
"""
import os
import re
import sys
from dataclasses import is_dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path

import nbformat
from fastcore.docments import DocmentText, docments

_shown = re.compile(r'(?m)^show_doc\(')
_entry = re.compile(r'/blob/[^/]+/(mmjepa[\w/]*)\.py#L(\d+).*?\n#+ ([\w.]+)\n\n```python\n(.*?)\n```', re.S)
_link = re.compile(r'\[(`[^`]+`)\]\([^)]*\)')


def signature(cls: type) -> str:
    "Fields of a dataclass with types, defaults and comments; those of its bases too."
    text = DocmentText(cls, docstring=False)
    for base in reversed(cls.__mro__):
        for name, comment in docments(base).items() if is_dataclass(base) else ():
            if comment and name in text.dm: text.dm[name]['docment'] = comment
    return str(text)


def with_comments(entry: str) -> str:
    "An entry with the comments of fields, and without links inside its code, where they are shown as they are typed."
    if not (found := _entry.search(entry)): return entry
    module, _, name, code = found.groups()
    thing = getattr(import_module(module.replace('/', '.')), name, None)
    if isinstance(thing, type) and is_dataclass(thing) and code.startswith(f'def {name}('): code = signature(thing)
    return entry[:found.start(4)] + _link.sub(r'\1', code) + entry[found.end(4):]


def line_of(cell) -> int:
    "Where the name of an entry is defined; 0 where that is not known."
    found = [_entry.search(''.join(o.get('data', {}).get('text/markdown', ''))) for o in cell.get('outputs', [])]
    return next((int(x[2]) for x in found if x), 0)


def finish_entries(nb: nbformat.NotebookNode) -> nbformat.NotebookNode: # the same page, changed
    "A page with its entries in the order of the source, and the comments of fields."
    cells = []
    for documents, run in groupby(nb.cells, lambda c: c.cell_type == 'code' and bool(_shown.search(c.source))):
        cells += sorted(run, key=lambda c: line_of(c) * documents) # the others stay as they are
    nb.cells = cells
    for data in (o['data'] for c in cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})):
        data['text/markdown'] = with_comments(''.join(data['text/markdown']))
    return nb


def main(folder: Path):
    for page in sorted(folder.rglob('*.ipynb')):
        nbformat.write(finish_entries(nbformat.read(page, as_version=4)), page)


if __name__ == '__main__': main(Path(sys.argv[1] if sys.argv[1:] else os.environ['QUARTO_PROJECT_DIR']))
