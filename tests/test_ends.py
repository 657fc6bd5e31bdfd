"How a run ends where something else happens: two writers, a signal in an evaluation, a gradient of NaN."
import json
import os
import signal
import subprocess
import sys
import time

import pytest

RUN = '''
import os, sys, time, torch
from pathlib import Path
from torch import nn
from mmjepa.core import command, rank, start_ranks
from mmjepa.training import TrainConfig, fit

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 1)
    def forward(self, batch): return {'y': self.line(batch['x'])}

class Batches(list):
    class sampler:
        def set_epoch(self, epoch): pass
    sampler = sampler()
    def state_dict(self): return {}
    def load_state_dict(self, state): pass

def objective(outputs, batch): return outputs['y'].square().mean()

@command
def main(output: str, lr: float = 1e-3, wait: float = 0., resume: bool = False):
    "A run whose evaluation takes a while."
    start_ranks()
    def evaluate(model, last):
        Path(output, f'evaluates-{rank()}').touch()
        time.sleep(wait)
        return {'score': 1.}
    table = fit(Model(), objective, Batches([{'x': torch.ones(2, 4)}] * 4), config=TrainConfig(epochs=1, lr=lr),
                output_dir=output, evaluate=evaluate, monitor='score', resume=resume)
    if table is not None: print('score', table.score.tolist())
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path/'run.py'
    path.write_text(RUN)
    return path


def start(script, folder, *args, **env):
    words = [sys.executable, script, folder, *args]
    env = {**os.environ, 'ACCELERATE_USE_CPU': '1', 'TQDM_DISABLE': '1', **env}
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def wait_for(path, *processes, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end and all(p.poll() is None for p in processes), [p.communicate() for p in processes]
        time.sleep(.02)


def test_the_second_of_two_writers_is_refused(script, tmp_path):
    folder = tmp_path/'run'
    first = start(script, folder, '--wait', 20)
    wait_for(folder/'evaluates-0', first)
    settings = (folder/'config.json').read_text()
    for more in ([], ['--resume']):
        second = start(script, folder, '--lr', '.05', *more)
        out, err = second.communicate(timeout=120)
        assert second.returncode == 2 and f'process {first.pid} of' in err and len(err.splitlines()) == 1, err
    assert (folder/'config.json').read_text() == settings
    first.send_signal(signal.SIGKILL)
    first.communicate()
    again = start(script, folder, '--resume')  # it is gone, and what it wrote is taken over
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0 and 'score [1.0]' in out, out + err


def test_a_signal_in_an_evaluation_is_heard_at_once(script, tmp_path):
    folder = tmp_path/'run'
    process = start(script, folder, '--wait', 100)
    wait_for(folder/'evaluates-0', process)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and 'stopped by SIGTERM at step 4' in out and 'Traceback' not in err, out + err
    assert time.monotonic() - asked < 20  # two seconds, on a machine that is not busy
    assert json.loads((folder/'checkpoints/step_00000004/manifest.json').read_text())['score'] is None
    again = start(script, folder, '--resume')
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0 and 'resumed at step 4 of 4' in out and 'score [1.0]' in out, out + err
    assert json.loads((folder/'checkpoints/step_00000004/manifest.json').read_text())['score'] == 1


def test_it_is_heard_on_two_ranks_of_which_one_evaluates(script, tmp_path):
    from forked import free_port
    folder = tmp_path/'run'
    world = dict(WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    ranks = [start(script, folder, '--wait', 100, **world, RANK=str(r), LOCAL_RANK=str(r)) for r in range(2)]
    wait_for(folder/'evaluates-0', *ranks)
    for p in ranks: p.send_signal(signal.SIGTERM)
    ends = [p.communicate(timeout=60) for p in ranks]
    assert [p.returncode for p in ranks] == [143, 143] and 'Traceback' not in str(ends), ends
    assert (folder/'checkpoints/step_00000004').is_dir() and not (folder/'evaluates-1').exists()


@pytest.mark.parametrize('stage, report', [('masked', 'write_masked_report'), ('contrastive', 'write_pair_report')])
def test_the_folder_is_the_runs_own_until_its_report_is_there(tmp_path, monkeypatch, stage, report):
    from importlib import import_module

    from mmjepa.core import run_command
    from mmjepa.data.records import digit_pairs
    module, folder, seen = import_module(f'mmjepa.pretrain.{stage}'), tmp_path/'run', []
    plain = getattr(module, report)
    def look(*args, **kwargs):
        seen.append((folder/'.writer').exists())
        return plain(*args, **kwargs)
    monkeypatch.setattr(module, report, look)
    monkeypatch.setenv('TQDM_DISABLE', '1')
    shape = '--image_size 8 --patch_size 4 --emb_dim 8 --depth 1 --num_heads 2 --context 16 --batch_size 4'.split()
    words = ['--json_data', str(digit_pairs(tmp_path, 24)), '--output', str(folder), '--epochs', '1', *shape]
    run_command(module.main.__wrapped__, words)
    assert seen == [True] and not (folder/'.writer').exists()
    with pytest.raises(SystemExit): run_command(module.main.__wrapped__, ['--output', str(tmp_path/'none')])
    assert not (tmp_path/'none').exists()
