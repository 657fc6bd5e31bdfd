"""The curriculum as a command: killed in every stage it ends with the same weights, and a plan runs nothing."""
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file

from mmjepa.checkpoint import list_checkpoints
from mmjepa.core import run_command
from mmjepa.curriculum import main
from mmjepa.data import digit_pairs

CLOCK = ['images_per_s', 'seconds']


@pytest.fixture(scope='module')
def material(tmp_path_factory):
    "A YAML file with three sources."
    root = tmp_path_factory.mktemp('material')
    digit_pairs(root, 60)
    (root/'text.jsonl').write_text('\n'.join(json.dumps({'text': f'{w} is number {i}'}) for i in range(40) for w in ('one', 'two', 'three')))
    (root/'ask.jsonl').write_text('\n'.join(json.dumps({'prompt': f'{a}+{b}=', 'text': str(a + b)}) for a in range(8) for b in range(8)))
    settings = {'training': {'batch_size': 4, 'micro_batch_size': 2, 'gradient_accumulation_steps': 2, 'lm': {'context_length': 32}, 'jepa': {'embedding_dim': 16}, 'scheduler': {'warmup_tokens': 400, 'min_lr': 1e-4}, 'optimizers': {'lr': 3e-3}},
                'model': {'vision': {'image_size': 8, 'patch_size': 2, 'width': 16, 'depth': 1, 'heads': 2}, 'hidden_size': 16, 'num_layers': 1, 'num_heads': 2, 'num_kv_heads': 1, 'fusion_depth': 1},
                'total_tokens': '8K', 'sources': {'vision_text': {'path': 'pairs.jsonl'}, 'papers': {'path': 'text.jsonl'}, 'code_text': {'path': 'text.jsonl'}, 'questions_answers': {'path': 'ask.jsonl'}}}
    (root/'curriculum.yaml').write_text(yaml.safe_dump(settings))
    return root


def start(*flags):
    return subprocess.Popen([sys.executable, '-m', 'mmjepa.curriculum', *map(str, flags), '--epochs', '4', '--save_every', '1', '--precision', 'fp32'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, 'ACCELERATE_USE_CPU': '1', 'OMP_NUM_THREADS': '1'})


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def result(folder): return load_file(folder/'model/model.safetensors'), pd.read_csv(folder/'metrics.csv').drop(columns=CLOCK)


@pytest.fixture(scope='module')
def whole(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')/'run'
    out = finish(start(material/'curriculum.yaml', '--output', folder))
    assert str(folder/'report.md') in out
    return folder


def test_killed_in_every_stage(material, whole, tmp_path):
    folder = tmp_path/'run'
    steps = [10, 35, 53, 60]  # 25, 19, 13 and 7 steps a stage
    for at in steps:
        process = start(material/'curriculum.yaml', '--output', folder, '--resume')
        while process.poll() is None and not [p for p in list_checkpoints(folder/'checkpoints') if int(p.name[5:]) >= at]: time.sleep(.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (folder/'report.md').exists(), 'it ended before it was killed'
    finish(start(material/'curriculum.yaml', '--output', folder, '--resume'))
    (a, x), (b, y) = result(folder), result(whole)
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
    pd.testing.assert_frame_equal(x, y, check_exact=True)


def test_a_plan_runs_nothing(material, tmp_path, capsys):
    run_command(main.__wrapped__, [str(material/'curriculum.yaml'), '--plan', '--total_tokens', '2M', '--output', str(tmp_path)])
    out = capsys.readouterr().out
    assert 'JEPA pretraining' in out and '800000' in out and (tmp_path/'plan.png').exists() and [p.name for p in tmp_path.iterdir()] == ['plan.png']


@pytest.mark.parametrize('change, words', [({'training': {'batch': 3}}, "unknown key 'batch'"), ({'training': {'batch_size': 7}}, 'batch_size is 7'), ({'total_tokens': 'many'}, 'total_tokens')])
def test_a_wrong_file_is_one_line(tmp_path, capsys, change, words):
    (tmp_path/'wrong.yaml').write_text(yaml.safe_dump(change))
    with pytest.raises(SystemExit) as stop: run_command(main.__wrapped__, [str(tmp_path/'wrong.yaml'), '--output', str(tmp_path/'run')])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and words in line and 'wrong.yaml' in line
