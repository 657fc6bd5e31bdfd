"""`mmjepa_evaluate` on a model that knows nothing: what it writes, what it runs, and what it refuses."""
import csv
import io
import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from mmjepa.core import run_command
from mmjepa.vl.curriculum import save_vl_model
from mmjepa.data.records import split_rows
from mmjepa.encoders import EncoderConfig
from mmjepa.vl.evaluate import main
from mmjepa.sandbox.programs import refusal
from mmjepa.data.text import ByteTokenizer
from mmjepa.vl.model import VLJEPA, VLJEPAConfig

contained = pytest.mark.skipif(bool(refusal()), reason=f'no containment: {refusal()}')
PROBLEMS = [{'task_id': f'own/{i}', 'prompt': f'def f{i}():\n    "Returns {i}."\n', 'entry_point': f'f{i}',
             'test': f'def check(f): assert f() == {i}\n'} for i in range(2)]


@pytest.fixture(scope='module')
def material(tmp_path_factory):
    "A run's folder with an untrained model, 40 pairs of which every second is a chart, and two problems."
    root = tmp_path_factory.mktemp('material')
    torch.manual_seed(0)
    vision = EncoderConfig(8, 4, 3, num_classes=0, emb_dim=16, depth=1, num_heads=2)
    config = VLJEPAConfig(vision, 260, 96, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, fusion_depth=1,
                          embedding_dim=8)
    save_vl_model(VLJEPA(config), ByteTokenizer(), root/'run/model')
    lines = []
    for i in range(40):
        Image.new('RGB', (9, 7), (6 * i, 0, 99)).save(root/f'{i}.png')
        lines.append({'image': f'{i}.png', 'text': f'x = {i}', 'domain': ('code', 'chart')[i % 2]})
    (root/'pairs.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    (root/'text.jsonl').write_text('\n'.join(json.dumps({'text': f'sentence {i}, ' * 12}) for i in range(5)))
    (root/'problems.jsonl').write_text('\n'.join(map(json.dumps, PROBLEMS)))
    return root


def flags(root, output, *more):
    words = [root/'run', '--output', output, '--max_new_tokens', 12, '--programs', 4]
    return list(map(str, [*words, '--humaneval', root/'problems.jsonl', *more]))


def test_nothing_runs_unless_it_is_asked_for(material, tmp_path):
    folder = tmp_path/'plain'
    files = ['--data', material/'text.jsonl', '--pairs', material/'pairs.jsonl']
    words = flags(material, folder, *files, '--held_out', '--samples', 2)
    done = subprocess.run([sys.executable, '-m', 'mmjepa.vl.evaluate', *words], capture_output=True, text=True,
                          timeout=300, env={**os.environ, 'ACCELERATE_USE_CPU': '1', 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(str(folder/'report.md'))
    found, report = json.loads((folder/'scores.json').read_text()), (folder/'report.md').read_text()
    scores, about, left_out = found['scores'], found['about'], found['left_out']
    assert about['texts'] == '1 of 1 records of text.jsonl, those held out from training'
    assert about['pairs'].startswith('2 of 2 records')
    assert scores['humaneval'] == {'problems': 2, 'completions': 4}
    assert scores['image_to_code']['all']['charts_tried'] == 0
    held = [f'x = {i}' for i in split_rows(40, .05, 0)[1]]
    assert [json.loads(line)['text'] for line in (folder/'written.jsonl').read_text().splitlines()] == held
    perplexity = scores['perplexity']
    assert 100 < perplexity['perplexity'] < 600 and perplexity['windows'] > 1  # it knows nothing of 260 words
    assert len(left_out) == 1 + any(int(t[4:]) % 2 for t in held)
    assert all('--allow_code_execution' in line and line in report for line in left_out)
    assert {p.name for p in folder.iterdir()} == {
        'report.md', 'scores.json', 'scores.csv', 'written.jsonl', 'completions.jsonl', 'code.png', 'retrieval.png',
        'evaluation.log'}
    table = dict(csv.reader(io.StringIO((folder/'scores.csv').read_text())))
    assert float(table['retrieval.pairs']) == 2
    assert float(table['perplexity.perplexity']) == perplexity['perplexity']
    for name in ('code', 'retrieval'): Image.open(folder/f'{name}.png').verify()


@contained
def test_what_may_run_runs(material, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('ACCELERATE_USE_CPU', '1')
    more = ['--data', material/'pairs.jsonl', '--allow_code_execution', '--limit', 4]
    run_command(main.__wrapped__, flags(material, tmp_path/'run', *more))
    out, found = capsys.readouterr().out, json.loads((tmp_path/'run/scores.json').read_text())
    scores, code = found['scores'], found['scores']['image_to_code']
    assert code['chart']['charts_tried'] == code['chart']['pairs'] > 0 and code['all']['draws_same'] == 0
    assert (scores['humaneval']['pass@1'], sum(scores['humaneval']['statuses'].values())) == (0, 2)
    assert not found['left_out'] and 'Left out' not in (tmp_path/'run/report.md').read_text()
    assert 'running 2 programs' in out


@pytest.mark.parametrize('more, words', [
    ([], '--data, --pairs and --humaneval are missing'),
    (['--data', 'nowhere.jsonl'], 'nowhere.jsonl: cannot be read'),
    (['--humaneval', 'none.jsonl'], 'none.jsonl: cannot be read'),
    (['--data', 'TEXT', '--window', '999'], 'window is 999; expected 1 to 96'),
    (['--data', 'TEXT', '--limit', '-1'], 'limit is -1; expected 0 (all) or more'),
    (['--data', 'TEXT', '--output', 'DONE'], 'holds an evaluation')])
def test_what_is_wrong_is_one_line(material, tmp_path, capsys, more, words):
    (tmp_path/'done').mkdir()
    (tmp_path/'done/report.md').write_text('')
    places = {'TEXT': str(material/'text.jsonl'), 'DONE': str(tmp_path/'done')}
    typed = [str(material/'run'), '--output', str(tmp_path/'new'), *(places.get(f, f) for f in more)]
    with pytest.raises(SystemExit) as stop: run_command(main.__wrapped__, typed)
    assert stop.value.code == 2 and words in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_folder_without_a_model(material, capsys):
    with pytest.raises(SystemExit) as stop: run_command(main.__wrapped__, [str(material), '--data', 'x'])
    assert stop.value.code == 2 and 'no model with its tokenizer there' in capsys.readouterr().err
