"""Tables of the site that are read from the project itself: public names, commands, results, papers.

`python tools/pages.py` writes them into the outputs of the notebooks that show them.
"""
import ast
import csv
import importlib
import json
import re
from pathlib import Path

import results
from finish import settings

ROOT = Path(__file__).resolve().parent.parent
NBS, PACKAGE = ROOT/'nbs', ROOT/'mmjepa'
WINGS = {
    '': 'Method', 'data': 'Data', 'label': 'Label JEPA', 'pretrain': 'Pretraining', 'align': 'Alignment',
    'vl': 'Vision-language', 'pairs': 'Pictures with their text', 'sandbox': 'Untrusted programs',
}

MOST = 60  # characters of a constant that is shown
PLAIN = '<IPython.core.display.Markdown object>'

_FLAG_DEFAULT = re.compile(r'^(.*?)(?: \(default: (.*)\))?$', re.S)


def _cell(text) -> str:
    "One line of text for a cell of a table."
    return re.sub(r'\s+', ' ', str(text)).replace('|', r'\|').strip()


def _text(text: str) -> str:
    "Plain text as Markdown: signs that would be tags, emphasis or mathematics, but not those in backticks."
    parts = re.split(r'(`[^`]*`)', text)
    return ''.join(p if p.startswith('`') else re.sub(r'([<>*$])', r'\\\1', p) for p in parts)


def table(
    head: list,  # names of the columns
    rows: list,  # a list of cells each
) -> str:        # Markdown
    "A table of Markdown."
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(map(_cell, row)) + ' |' for row in lines)


def sources(
    path: Path,  # a notebook
) -> list:       # the text of each cell
    "What stands in the cells of a notebook."
    return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]


def numbered() -> dict:  # path in nbs/ by module, such as 'data/20_images.ipynb' by 'data.images'
    "The notebooks that modules are exported from, in the order of their numbers."
    found = [p for p in NBS.rglob('[0-9][0-9]_*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    return {
        '.'.join([*p.relative_to(NBS).parts[:-1], p.stem[3:]]): p.relative_to(NBS).as_posix()
        for p in sorted(found, key=lambda p: p.name)
    }


def title(
    page: str,  # such as 'data/20_images.ipynb'
) -> tuple:     # title, and the one line under it
    "How a page calls itself."
    head, _, line = sources(NBS/page)[0].partition('\n\n> ')
    return head.removeprefix('# ').strip(), line.strip()


def link(page: str, text: str = '', anchor: str = '') -> str:
    "A link of Markdown to a page; its title is the text where none is given."
    return f'[{text or title(page)[0]}]({page}{anchor and "#" + anchor})'


# ---------------------------------------------------------------- public names

def public(
    module: str,  # such as 'data.images'
) -> dict:        # pairs by name: what it is in one line, and whether it has an entry of its own on its page
    "What a module exports, read from its file without importing it."
    text = (PACKAGE/f'{module.replace(".", "/")}.py').read_text(encoding='utf-8')
    listed, lines = [], {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            lines[node.name] = (ast.get_docstring(node) or '').partition('\n')[0], True
        name = getattr(node.targets[0], 'id', '') if isinstance(node, ast.Assign) else ''
        if name == '__all__': listed = ast.literal_eval(node.value)
        elif name: lines[name] = _constant(node, text.splitlines()[node.lineno - 1]), False
    return {name: lines.get(name, ('a type of numbers in settings', False)) for name in listed}


def _constant(node: ast.Assign, line: str) -> str:
    "The comment beside a constant, and its value where that is short."
    value = ast.unparse(node.value).replace(' | ', ' or ')  # a bar would end the cell of the table
    comment = line.partition(' # ')[2] if node.lineno == node.end_lineno else ''
    return ': '.join(filter(None, [comment, f'`{value}`' if len(value) <= MOST else ''])) or 'a constant'


def api() -> str:  # Markdown
    "All public names by wing and module, with their one line, linked to their place."
    out, pages = [], numbered()
    for wing, heading in WINGS.items():
        out.append(f'## {heading}')
        for module, page in pages.items():
            names = public(module) if module.rpartition('.')[0] == wing else {}
            if not names: continue
            rows = [[_place(page, name, entry), _text(line)] for name, (line, entry) in names.items()]
            out += [f'### {module}', f'{link(page)}: {_lower(title(page)[1])}', table(['name', 'what it is'], rows)]
    return '\n\n'.join(out)


def _lower(text: str) -> str: return text[:1].lower() + text[1:] if re.match('[A-Z][a-z ]', text) else text

def _place(page: str, name: str, entry: bool) -> str:
    "A name that leads to its entry, or where it has none to its page."
    return link(page, f'<code>{name}</code>', name.lower() if entry else '')


# ---------------------------------------------------------------- commands

def entries() -> dict:  # module by command, such as 'mmjepa.label.mnist' by 'mmjepa_mnist'
    "The commands of settings.ini."
    pairs = (entry.split('=') for entry in settings()['console_scripts'].split())
    return {name: target.partition(':')[0] for name, target in pairs}


def _flag(action) -> list:
    "A row for one flag: how it is typed, what it takes, what it is where it is not typed, what it does."
    help, default = _FLAG_DEFAULT.match((action.help or '').replace('%%', '%')).groups()
    names = ' '.join(f'`{n}`' for n in action.option_strings) or f'`{action.dest}`'
    takes = getattr(action.type, '__name__', 'no value' if action.nargs == 0 else 'text')
    needed = action.required or (not action.option_strings and action.nargs != '?')
    return [names, {'str': 'text', 'int': 'whole number', 'float': 'number', 'Path': 'path'}.get(takes, takes),
            'is needed' if needed else f'`{default}`' if default else '', _text(help)]


def command(
    name: str,    # such as 'mmjepa_mnist'
    module: str,  # such as 'mmjepa.label.mnist'
) -> str:         # Markdown
    "One command: what it does, and its flags by group."
    from mmjepa.core import _parser
    main = importlib.import_module(module).main
    parser, page = _parser(main), numbered()[module.removeprefix('mmjepa.')]
    out = [f'## {name}', f'{_text(main.__doc__)} {link(page)} has more. As a module: `python -m {module}`.']
    for group in parser._action_groups:
        rows = [_flag(a) for a in group._group_actions if a.dest != 'help']
        heading = 'its own' if group.title in ('options', 'optional arguments', 'positional arguments') else group.title
        if rows: out.append(table([f'flag: {_lower(heading)}', 'takes', 'default', 'what it does'], rows))
    return '\n\n'.join(out)


def commands() -> str:  # Markdown
    "All commands with all of their flags, read from their parsers."
    return '\n\n'.join(command(name, module) for name, module in entries().items())


# ---------------------------------------------------------------- papers

def _citation(cited: str) -> re.Pattern:
    "How a text may name a paper: `Chen et al., 2021`, `Chen et al. (2021`, or `MUSK` of a title that ends in `(MUSK)`."
    authors, year = re.fullmatch(r'(.*), (\d{4})[a-z]?', cited).groups()
    return re.compile(re.escape(authors) + r',? \(?' + year)


def papers() -> list:  # dicts with cited, title, link and pages
    "The papers of papers.csv, each with the pages that name it."
    found = list(csv.DictReader((NBS/'papers.csv').read_text(encoding='utf-8').splitlines()))
    texts = {page: '\n'.join(sources(NBS/page)) for page in numbered().values()}
    linked = {page: re.sub(r'\[[^]]*\]\((?=http)([^)\s]+)\)', r' \1 ', text) for page, text in texts.items()}
    for paper in found:
        short = re.search(r'\(([\w-]+)\)$|^([\w-]*[A-Z][\w-]*[A-Z][\w-]*):', paper['title'])
        by_name = re.compile(rf'\b{next(filter(None, short.groups()))}\b') if short else None
        of = _citation(paper['cited'])
        cited = [page for page, text in texts.items() if paper['link'] in text or of.search(linked[page])]
        paper['pages'] = cited or [page for page, text in texts.items() if by_name and by_name.search(text)]
    return found


def bibliography() -> str:  # Markdown
    "Every paper that a notebook names, with a link to it and the pages that name it."
    rows = [[p['cited'], f'[{p["title"]}]({p["link"]})', ', '.join(map(link, p['pages']))] for p in papers()]
    return table(['paper', 'title', 'named in'], rows)


# ---------------------------------------------------------------- results

def _anchor(heading: str) -> str: return re.sub(r'[^a-z0-9_-]', '', heading.lower().replace(' ', '-'))


def overview() -> str:  # Markdown
    "Every headline figure with its control, one line each."
    found = [make() for make in results.EXPERIMENTS]
    rows = [[f'[{r.title}](#{_anchor(r.title)})', *line] for r in found for line in r.headline]
    return table(['experiment', 'figure', 'score', 'beside it', 'outcome'], rows)


def experiments() -> str:  # Markdown
    "A section for each experiment: what one has to know to read its figures, and all of them."
    out = []
    for make in results.EXPERIMENTS:
        r = make()
        facts = {'Data': r.data, 'Seeds and epoch': r.rule, 'Machine': r.machine, 'Controls': r.controls}
        out += [f'## {r.title}', f'{r.question} Shown in {link(r.page)}.',
                '\n'.join(f'* *{name}*: {fact}.' for name, fact in facts.items()), table(r.rows[0], r.rows[1:]), r.says]
    return '\n\n'.join(out)


def costs() -> str:  # Markdown
    "What steps and products cost."
    rows = [[c['what'], c['figure'], c['beside'], c['outcome'], c['conditions'], link(c['page'])]
            for c in results.costs()]
    return table(['what', 'figure', 'beside it', 'outcome', 'conditions', 'shown in'], rows)


def three() -> str:  # Markdown
    "The three figures of the home page."
    made = {
        results.labels: 'The right label is found for a new picture of MNIST (M1, 10,000 test images)',
        results.reading: 'A small decoder writes which handwritten digit a picture shows (10,000 test images)',
        results.aligned: 'Held-out emoji and their names find each other among 164 (R@10), two frozen towers aligned',
    }
    rows = [[what, *make().headline[0][1:3]] for make, what in made.items()]
    return table(['what', 'score, three seeds', 'control'], rows)


# ---------------------------------------------------------------- pages


def shown(
    cell: dict,  # a code cell
) -> str:        # Markdown
    "What a cell has printed as Markdown."
    return ''.join(t for o in cell['outputs'] for t in o.get('data', {}).get('text/markdown', []))


def makers(
    notebook: dict,  # as JSON
) -> list:           # pairs of cell and the name of the function of this file whose table it shows
    "The cells `Markdown(pages.NAME())` of a notebook."
    pairs = [(c, re.search(r'^Markdown\(pages\.(\w+)\(\)\)$', ''.join(c['source']), re.M)) for c in notebook['cells']]
    return [(c, found[1]) for c, found in pairs if found]


def main():
    "Write each table into the output of its cell."
    for path in sorted(NBS.glob('*.ipynb')):
        notebook = json.loads(path.read_text(encoding='utf-8'))
        cells = makers(notebook)
        for cell, name in cells:
            text = globals()[name]()
            data = {'text/markdown': text.splitlines(keepends=True), 'text/plain': [PLAIN]}
            cell['outputs'] = [{'data': data, 'execution_count': None, 'metadata': {}, 'output_type': 'execute_result'}]
            print(f'{path.name}: {name}, {len(text.splitlines())} lines')
        if cells:
            text = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + '\n'
            path.write_text(text, encoding='utf-8')


if __name__ == '__main__': main()
