"""The pages of reference say what the project is now: names, commands, results, papers (tools/pages.py)."""
import json
import re
from pathlib import Path

import pages
import pytest
import results
import yaml

from tree import MODULES, NBS, NUMBERED, ROOT, cells, settings

MAKERS = [(p, name) for p in sorted(NBS.glob('*.ipynb'))
          for _, name in pages.makers(json.loads(p.read_text(encoding='utf-8')))]


def text(path):
    "What the tables of a notebook say."
    notebook = json.loads((NBS/path).read_text(encoding='utf-8'))
    return '\n'.join(pages.shown(cell) for cell, _ in pages.makers(notebook))


def test_the_tables_have_their_pages():
    names = {'api', 'commands', 'overview', 'experiments', 'costs', 'bibliography', 'three'}
    assert names == {name for _, name in MAKERS}


@pytest.mark.parametrize(('path', 'name'), MAKERS, ids=lambda x: x if isinstance(x, str) else x.stem)
def test_a_table_is_up_to_date(path, name):
    notebook = json.loads(path.read_text(encoding='utf-8'))
    kept = next(pages.shown(cell) for cell, made in pages.makers(notebook) if made == name)
    assert kept == getattr(pages, name)(), 'run `python tools/pages.py`'


def test_every_public_name_has_its_line():
    api = text('api.ipynb')
    for module in MODULES:
        section = re.search(rf'(?ms)^### {re.escape(module)}\n(.*?)(?=^##|\Z)', api)[1]
        for name in pages.public(module):
            line = re.search(rf'(?m)^\| \[<code>{name}</code>\]\([^)]+\) \| (.+) \|$', section)
            assert line and len(line[1]) > 5, f'{module}.{name}'


def test_every_flag_has_its_help():
    from mmjepa.core import _parser
    import importlib
    found = text('commands.ipynb')
    for entry in settings()['console_scripts'].split():
        command, target = entry.split('=')
        section = re.search(rf'(?ms)^## {command}\n(.*?)(?=^## |\Z)', found)[1]
        main = importlib.import_module(target.split(':')[0]).main
        for action in _parser(main)._actions:
            for flag in [o for o in action.option_strings if o not in ('-h', '--help')]:
                assert f'`{flag}`' in section, f'{command} {flag}'
    rows = [line.split(' | ') for line in found.splitlines() if line.startswith('| `')]
    assert len(rows) > 200 and not [r for r in rows if len(r[-1]) < 6], 'a flag says what it does'


def test_every_experiment_says_how_it_was_done():
    for make in results.EXPERIMENTS:
        r = make()
        assert (NBS/r.page).is_file() and all((r.data, r.rule, r.machine, r.controls, r.says))
        assert {len(row) for row in r.rows} == {len(r.rows[0])} and all(len(row) == 4 for row in r.headline)
        assert not re.search(r'\bnan\b', str(r.rows) + str(r.headline)), r.title


def test_every_stored_result_is_on_the_page():
    used = (ROOT/'tools/results.py').read_text(encoding='utf-8')
    derived = {'verdict_runs.csv'}  # the runs of which verdict.csv is the table
    for path in (NBS/'results').iterdir(): assert path.name in used or path.name in derived, path.name


def test_losses_are_listed():
    outcomes = [line[3] for make in results.EXPERIMENTS for line in make().headline]
    assert outcomes.count('worse') >= 3 and 'a tie' in outcomes
    table = {r['arm']: r for r in _rows('verdict.csv')}
    assert table['masked']['exact_verdict_seconds'] == 'worse'


def _rows(name): return results.pd.read_csv(NBS/'results'/name).to_dict('records')


@pytest.mark.parametrize('cost', results.costs(), ids=lambda c: c['what'])
def test_a_cost_is_what_its_notebook_says(cost):
    "Every number of the row stands in the text of the notebook."
    said = ' '.join(pages.sources(NBS/cost['page'])).replace(',', '')
    for number in re.findall(r'\d[\d.,]*\d|\d', f'{cost["figure"]} {cost["beside"]}'):
        assert re.search(rf'(?<![\d.]){re.escape(number.replace(",", ""))}(?!\d)', said), f'{cost["page"]}: {number}'


def test_every_paper_that_is_named_is_in_the_bibliography():
    "By its link, or by authors and year where there is none."
    links, listed = {p['link'] for p in pages.papers()}, [pages._citation(p['cited']) for p in pages.papers()]
    name = r"[A-ZÅÄÖÉŁ][\w'’-]+"
    cited = re.compile(rf"{name}(?: and {name}|,? et al\.),? \(?(?:19|20)\d\d|\({name}, (?:19|20)\d\d\)")
    linked = re.compile(r'\[([^]]*)\]\((https?://(?:arxiv|doi|dl\.acm|aclanthology|openreview)[^)\s]+)\)')
    for path in NUMBERED:
        for cell in cells(path, 'markdown'):
            for text, url in linked.findall(cell.source): assert url in links, f'{path.name}: {text}, {url}'
            for found in cited.findall(linked.sub('', cell.source)):
                assert any(p.search(found.strip('(')) for p in listed), f'{path.name}: {found}'


def test_every_paper_has_a_link_and_a_page():
    for paper in pages.papers():
        known = r'https?://(arxiv\.org/abs/\d{4}\.\d{4,5}$|doi\.org/10\.|aclanthology\.org/|gwern\.net/doc/)'
        assert re.match(known, paper['link']), paper['link']
        assert paper['pages'], f'{paper["cited"]} is named nowhere'


def test_the_citation_is_that_of_the_settings():
    cff, cfg = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8')), settings()
    assert cff['repository-code'] == cfg['git_url'] and cff['license'].lower() == cfg['license']
    assert cff['url'] == cfg['doc_host'] + cfg['doc_baseurl']
    assert cff['authors'][0]['name'] == cfg['author'] and cff['title'].startswith(cfg['lib_name'])
    assert cfg['git_url'] in Path(NBS/'bibliography.ipynb').read_text(encoding='utf-8')


def test_the_home_page_has_what_a_visitor_looks_for():
    source = '\n'.join(pages.sources(NBS/'index.ipynb'))
    for part in ('images/mnist_attention.png', 'pages.three()', '## A first model', '## Where do I start',
                 'tutorials/1_labels.ipynb', 'tutorials/4_vision_language.ipynb',
                 'results.ipynb', 'questions.ipynb', 'commands.ipynb', 'api.ipynb', 'CITATION.cff'):
        assert part in source, part
    pitch = pages.sources(NBS/'index.ipynb')[1].split('\n\n')[0]
    assert len(re.findall(r'[.!?](?:\s|$)', pitch)) == 2, 'what it is, in two sentences'


QUESTIONS = ('collapsing', 'checkpoint', 'ranks', 'several GPUs', 'R@k', 'use the image', 'false negatives', 'log B')


@pytest.mark.parametrize('about', QUESTIONS)
def test_an_answer_points_to_a_place(about):
    answers = [c for c in pages.sources(NBS/'questions.ipynb') if c.startswith('## ')]
    found = [c for c in answers if about in c.splitlines()[0]]
    assert len(found) == 1 and re.search(r'\]\([\w/]+\.ipynb#[\w-]+\)', found[0])
