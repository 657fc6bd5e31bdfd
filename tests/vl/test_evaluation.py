"""`mmjepa_evaluate` on a model that knows nothing: what it writes, what it runs, and what it refuses."""
import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import forked
from mmjepa.core import run_command
from mmjepa.vl.curriculum import save_vl_model
from mmjepa.data.records import JsonRecords
from mmjepa.encoders import EncoderConfig
from mmjepa.vl.evaluate import main
from mmjepa.sandbox.programs import refusal
from mmjepa.data.text import ByteTokenizer
from mmjepa.vl.model import VLJEPA, VLJEPAConfig
from mmjepa.data.documents import split_learnt

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
    (root/'long.jsonl').write_text('\n'.join(json.dumps({'text': f'{i} sentences, ' * 40}) for i in range(4000)))
    samples = [{'task_id': f'own/{i % 2}', 'completion': f'    return {i // 2 % 2}\n'} for i in range(24)]
    (root/'samples.jsonl.gz').write_bytes(gzip.compress('\n\n'.join(map(json.dumps, samples)).encode()))
    (root/'broken.png').write_bytes((root/'3.png').read_bytes()[:40])
    return root


def flags(root, output, *more):
    words = [root/'run', '--output', output, '--max_new_tokens', 12, '--programs', 4]
    return list(map(str, [*words, '--humaneval', root/'problems.jsonl', *more]))


def test_nothing_runs_unless_it_is_asked_for(material, tmp_path):
    folder = tmp_path/'plain'
    files = ['--data', material/'text.jsonl', '--pairs', material/'pairs.jsonl']
    words = flags(material, folder, *files, '--held_out', '--samples', 2)
    done = forked.command('mmjepa.vl.evaluate', *words, ACCELERATE_USE_CPU='1')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(str(folder/'report.md'))
    found, report = json.loads((folder/'scores.json').read_text()), (folder/'report.md').read_text()
    scores, about, left_out = found['scores'], found['about'], found['left_out']
    assert about['texts'] == '1 of 1 records of text.jsonl, those held out from training'
    assert about['pairs'].startswith('2 of 2 records')
    assert scores['humaneval'] == {'problems': 2, 'completions': 4}
    assert scores['image_to_code']['all']['charts_tried'] == 0
    code, surprise = scores['image_to_code']['all'], scores['text_of_picture']
    assert code['exact'] == code['exact_swapped'] == code['exact_blank'] == 0 < code['character_error']
    assert code['pairs_swapped'] == code['pairs_blank'] == 2 and 'the picture is not read' in report
    assert len({surprise[f'perplexity{k}'] for k in ('', '_swapped', '_blank')}) == 3
    assert scores['retrieval']['chance_image_to_text_r1'] == 1 / 2 and 'mean embedding of image tokens' in report
    held = [f'x = {i}' for i in split_learnt(JsonRecords(material/'pairs.jsonl'))[1]]
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


@contained
def test_completions_that_exist(material, tmp_path, capsys):
    "They need no model: how many pass, by the unbiased estimator, with as many tries as all problems have."
    folder = tmp_path/'scored'
    typed = ['--completions', material/'samples.jsonl.gz', '--humaneval', material/'problems.jsonl', '--output', folder]
    run_command(main.__wrapped__, list(map(str, [*typed, '--allow_code_execution'])))
    found = json.loads((folder/'scores.json').read_text())
    assert capsys.readouterr().out.strip() == str(folder/'report.md')
    assert found['about'] == {'completions': 'samples.jsonl.gz: 24 for 2 problems, '
                                             '20 the same as another one of their problem'}
    scores, report = found['scores']['humaneval'], (folder/'report.md').read_text()
    assert (scores['pass@1'], scores['statuses']) == (.5, {'passed': 12, 'failed': 12})
    assert scores['pass@10'] == 1 and 'pass@100' not in scores and '| 0.5 | 1 | 2 | 24 | 12 | 12 |' in report
    assert {p.name for p in folder.iterdir()} == {'report.md', 'scores.json', 'scores.csv'}


LINES = {'unknown': '{"task_id": "own/9", "completion": ""}', 'one': '{"task_id": "own/0", "completion": ""}',
         'number': '{"task_id": "own/0", "completion": 5}', 'cut': '{"task_id": "own/0", "comp', 'list': '[1]',
         'none': '', 'nameless': '{"completion": ""}'}

@pytest.mark.parametrize('file, more, words', [
    ('unknown', [], "1 of 1 task_ids of the completions name no problem, such as 'own/9'"),
    ('one', [], "1 of 2 problems have no completion, such as 'own/1'"),
    ('number', [], "number.jsonl:1: 'completion' is 5; expected"), ('nameless', [], "has no text 'task_id'"),
    ('cut', [], 'cut.jsonl:1: broken JSON'), ('list', [], 'list.jsonl'), ('none', [], 'none.jsonl: holds no'),
    ('absent', [], 'absent.jsonl: cannot be read'), ('one', ['run'], 'scored without a model'),
    ('one', ['--data', 'x.jsonl'], 'scored without a model')])
def test_completions_that_cannot_be_scored(material, tmp_path, capsys, file, more, words):
    for name, line in LINES.items(): (tmp_path/f'{name}.jsonl').write_text(line)
    typed = [*more, '--completions', tmp_path/f'{file}.jsonl', '--humaneval', material/'problems.jsonl',
             '--output', tmp_path/'out', '--allow_code_execution']
    with pytest.raises(SystemExit) as stop: run_command(main.__wrapped__, list(map(str, typed)))
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and words in said and len(said.splitlines()) == 1
    assert not (tmp_path/'out').exists()


def test_completions_do_not_run_by_themselves(material, tmp_path, capsys):
    typed = ['--completions', str(material/'samples.jsonl.gz'), '--humaneval', str(material/'problems.jsonl')]
    with pytest.raises(SystemExit) as stop: run_command(main.__wrapped__, [*typed, '--output', str(tmp_path/'x')])
    assert stop.value.code == 2 and '--allow_code_execution' in capsys.readouterr().err


@contained
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('part', ['texts', 'programs'])
def test_a_signal_is_heard_at_once(material, tmp_path, part, number):
    "No report is left, nor a program; and the same command may start again."
    (tmp_path/'loops.jsonl').write_text('\n'.join(
        json.dumps({'task_id': f'own/{i % 2}', 'completion': '    while True: pass\n'}) for i in range(8)))
    words = {'texts': [material/'run', '--data', material/'long.jsonl', '--limit', 0, '--batch_size', 1],
             'programs': ['--completions', tmp_path/'loops.jsonl', '--humaneval', material/'problems.jsonl']}[part]
    words = list(map(str, [*words, '--output', tmp_path/'out', '--allow_code_execution']))
    code = 'import sys\nfrom mmjepa.core import run_command\nfrom mmjepa.vl.evaluate import main\n' \
           'print("on", flush=True)\nrun_command(main.__wrapped__, sys.argv[1:])'
    with subprocess.Popen([sys.executable, '-c', code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, env={**os.environ, 'ACCELERATE_USE_CPU': '1', 'OMP_NUM_THREADS': '1'}) as run:
        assert run.stdout.readline() == 'on\n'
        if part == 'texts': assert 'perplexity' in run.stdout.readline()
        time.sleep(2)
        run.send_signal(number)
        sent, said = time.monotonic(), ''
        while 'stopped; ' not in said and run.poll() is None: said += run.stderr.readline()
        heard = time.monotonic() - sent # how long Python takes to leave is not ours
        said += run.communicate(timeout=60)[1]
    assert heard < 2 and run.returncode == 128 + number and 'Traceback' not in said, said
    assert {p.name for p in (tmp_path/'out').glob('*')} <= {'evaluation.log'}
    assert not list(Path(tempfile.gettempdir()).glob(f'mmjepa-sandbox-{run.pid}-*'))


@pytest.mark.parametrize('line, words', [
    ('{"text": "a", ', 'x.jsonl:2: broken JSON'), ('{"image": "0.png"}', "x.jsonl:2: has no field 'text'"),
    ('{"text": 5}', "x.jsonl:2: 'text' is 5"), ('{"text": " "}', "x.jsonl:2: 'text' is empty"),
    ('{"text": "a", "image": "none.png"}', 'x.jsonl:2: image'), ('{"text": "a", "image": 5}', 'x.jsonl:2: '),
    ('{"text": "a", "image": "broken.png"}', 'x.jsonl:2: image'),
    ('{"text": "a", "prompt": 5}', "x.jsonl:2: 'prompt' is 5"), ('[1, 2]', 'x.jsonl:2: holds a list')])
def test_a_bad_row_is_named(material, tmp_path, capsys, line, words):
    for name in ('0.png', 'broken.png'): (tmp_path/name).write_bytes((material/name).read_bytes())
    (tmp_path/'x.jsonl').write_text(f'{{"text": "good", "image": "0.png"}}\n{line}\n')
    flag = '--pairs' if 'image' in line else '--data'
    typed = [material/'run', flag, tmp_path/'x.jsonl', '--output', tmp_path/'out']
    with pytest.raises(SystemExit) as stop: run_command(main.__wrapped__, list(map(str, typed)))
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and words in said[-1]
    assert not (tmp_path/'out/report.md').exists()


def test_the_output_is_not_what_is_read(material, tmp_path, capsys):
    folder = tmp_path/'written'
    folder.mkdir()
    (folder/'completions.jsonl').write_text((material/'text.jsonl').read_text())
    typed = ['--completions', str(folder/'completions.jsonl'), '--output', str(folder), '--allow_code_execution']
    with pytest.raises(SystemExit): run_command(main.__wrapped__, typed)
    assert 'is read from there; expected another place' in capsys.readouterr().err


@pytest.mark.parametrize('more, words', [
    ([], '--data, --pairs and --humaneval are missing'),
    (['--data', 'nowhere.jsonl'], 'nowhere.jsonl: cannot be read'),
    (['--humaneval', 'none.jsonl'], 'none.jsonl: cannot be read'),
    (['--data', 'TEXT', '--window', '999'], 'window is 999; expected 1 to 96'),
    (['--data', 'TEXT', '--limit', '-1'], 'limit is -1; expected 0 (all) or more'),
    (['--data', 'TEXT', '--batch_size', '0'], 'batch_size is 0; expected 1 or more'),
    (['--humaneval', 'PROBLEMS', '--samples', '0'], 'samples is 0; expected 1 or more'),
    (['--data', 'TEXT', '--output', 'DONE'], 'holds an evaluation')])
def test_what_is_wrong_is_one_line(material, tmp_path, capsys, more, words):
    (tmp_path/'done').mkdir()
    (tmp_path/'done/report.md').write_text('')
    places = {'TEXT': material/'text.jsonl', 'PROBLEMS': material/'problems.jsonl', 'DONE': tmp_path/'done'}
    typed = [str(material/'run'), '--output', str(tmp_path/'new'), *(str(places.get(f, f)) for f in more)]
    with pytest.raises(SystemExit) as stop: run_command(main.__wrapped__, typed)
    assert stop.value.code == 2 and words in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_folder_without_a_model(material, capsys):
    with pytest.raises(SystemExit) as stop: run_command(main.__wrapped__, [str(material), '--data', 'x'])
    assert stop.value.code == 2 and 'no model with its tokenizer there' in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop: run_command(main.__wrapped__, ['--data', 'x'])
    assert stop.value.code == 2 and 'no model is named' in capsys.readouterr().err
