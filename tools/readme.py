"""Write README.md (and the pictures that its cells drew) from nbs/index.ipynb: `python tools/readme.py`."""
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK, FILES = 'nbs/index.ipynb', 'README_files'
NOTE = f'<!-- Written by tools/readme.py from {NOTEBOOK}: edit the notebook. -->\n\n'

_directive = re.compile(r'(?m)^#\|\s*([\w-]+).*\n?')
_hidden = re.compile(r'(?m)^#\|\s*(hide|default_exp|include: false)')
_target = re.compile(r'(\]\(|(?:src|href)=")(?![a-z]+:|#|/)([^)"#\s]+)')


def shown(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:  # the same notebook, changed
    "`nb` without its hidden cells and without directives."
    nb.metadata['language_info'] = {'name': 'python'}  # nbdev_clean takes it out; it is the language of the code blocks
    nb.cells = [c for c in nb.cells if c.cell_type != 'code' or not _hidden.search(c.source)]
    for c in nb.cells:
        if c.cell_type != 'code': continue
        if re.search(r'(?m)^#\|\s*echo: false', c.source): c.source = ''
        c.source = _directive.sub('', c.source)
    return nb


def from_root(
    text: str,   # markdown whose links start in nbs/
    root: Path,  # folder of the project; each target must exist there
) -> str:        # the same text, its links starting in the root
    "`text` with every relative link moved up one folder."
    def move(m):
        if m[2].startswith(FILES): return m[0]
        path = f'nbs/{m[2]}'
        if not (root/path).exists(): raise SystemExit(f'{NOTEBOOK} links to {path}, which does not exist')
        return m[1] + path
    return _target.sub(move, text)


def readme(
    root: Path = ROOT,  # folder of the project
) -> tuple[str, dict]:  # markdown, and the bytes of each picture by its path
    "The README that the notebook gives."
    nb = shown(nbformat.read(root/NOTEBOOK, as_version=4))
    text, resources = MarkdownExporter().from_notebook_node(nb, {'output_files_dir': FILES, 'unique_key': 'cell'})
    text = re.sub(r'```\w*\n\s*```\n', '', text)               # code cells whose source is not shown
    text = re.sub(r'(?m)^:{3,}.*\n', '', text)                  # boxes of the site
    text = re.sub(r'[ \t]+\n', '\n', text)
    text = re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
    return NOTE + from_root(text, root), resources['outputs']


def main():
    text, files = readme()
    folder = ROOT/FILES
    if folder.exists():
        for old in folder.iterdir(): old.unlink()
        folder.rmdir()
    for name, content in files.items():
        (ROOT/name).parent.mkdir(exist_ok=True)
        (ROOT/name).write_bytes(content)
    (ROOT/'README.md').write_text(text, encoding='utf-8')
    print(f'README.md: {len(text.splitlines())} lines, {len(files)} drawn pictures')


if __name__ == '__main__': main()
