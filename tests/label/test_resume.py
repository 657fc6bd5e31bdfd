"The real command, killed at random moments and resumed, ends with the bits of an uninterrupted run."
import random, signal, subprocess, sys, time

import pandas as pd
import pytest
from safetensors.torch import load_file

import forked
from mmjepa.checkpoint import list_checkpoints

FLAGS = ('--data digits --epochs 5 --emb-dim 32 --depth 2 --num-heads 2 --batch-size 96 --save-every 4 '
         '--eval-every 2').split()
CLOCK = ['images_per_s', 'seconds']  # the only columns that a clock decides


def start(folder, *more):
    return forked.Popen('mmjepa.label.mnist', *FLAGS, '--output-dir', folder, *more)


def finish(process):
    out, _ = process.communicate(timeout=600)
    return process.returncode, out


def wait_for_checkpoint(folder, after, process):
    "Until a checkpoint of a later step than `after` is there; False if the process ended before."
    while process.poll() is None:
        done = list_checkpoints(folder/'checkpoints')
        if done and int(done[-1].name[5:]) > after: return True
        time.sleep(.01)
    return False


def newest(folder): return int(list_checkpoints(folder/'checkpoints')[-1].name[5:])


def result(folder):
    return load_file(folder/'model/model.safetensors'), pd.read_csv(folder/'metrics.csv').drop(columns=CLOCK)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')/'run'
    code, out = finish(start(folder))
    assert code == 0, out
    return result(folder)


def assert_same(folder, whole):
    weights, table = result(folder)
    assert weights.keys() == whole[0].keys() and all(weights[k].equal(whole[0][k]) for k in weights)
    pd.testing.assert_frame_equal(table, whole[1], check_exact=True)


def test_sigkill_at_random_moments(tmp_path, whole):
    rng, folder, at = random.Random(0), tmp_path/'run', 0
    for _ in range(3):
        process = start(folder, '--resume')
        if wait_for_checkpoint(folder, at, process): time.sleep(rng.uniform(0, .5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        at = newest(folder)
    code, out = finish(start(folder, '--resume'))
    assert code == 0 and 'resumed at step' in out, out
    assert not list((folder/'checkpoints').glob('.tmp-*'))
    assert_same(folder, whole)


def test_sigterm_saves_and_exits(tmp_path, whole):
    folder = tmp_path/'run'
    process = start(folder, '--save-every', '0')
    log, deadline = folder/'training.log', time.time() + 300
    while not (log.exists() and 'epoch 1/' in log.read_text()):
        assert process.poll() is None and time.time() < deadline
        time.sleep(.01)
    process.send_signal(signal.SIGTERM)
    code, out = finish(process)
    assert code == 143 and 'stopped by SIGTERM at step' in out and '--resume continues' in out, out
    code, out = finish(start(folder, '--save-every', '0', '--resume'))
    assert code == 0, out
    assert_same(folder, whole)


ENDLESS = """
import sys, time
from pathlib import Path
from mmjepa.core import run_command
from mmjepa.label import mnist

marker, place, *flags = sys.argv[1:]
evaluate = mnist.Evaluation.__call__

def endless(*_, **__):
    Path(marker).touch()
    while True: time.sleep(.01)

def last_is_endless(self, model, last=True): return endless() if last else evaluate(self, model, last)
if place == 'evaluation': mnist.Evaluation.__call__ = last_is_endless
else: mnist.write_pictures = endless
run_command(mnist.main.__wrapped__, flags)
"""


@pytest.mark.parametrize('place, code', [('evaluation', 143), ('report', -15)])
def test_sigterm_in_what_comes_after_the_last_step(tmp_path, whole, place, code):
    "Nine minutes at the shapes of the reference: it is heard at once, and what was interrupted is done again."
    folder, marker, deadline = tmp_path/'run', tmp_path/'there', time.time() + 300
    command = [sys.executable, '-c', ENDLESS, str(marker), place, *FLAGS, '--output-dir', str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not marker.exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(.01)
    sent = time.time()
    process.send_signal(signal.SIGTERM)
    found, out = finish(process)
    assert found == code and time.time() - sent < 30, out  # two seconds, and some for a machine that is busy
    assert list_checkpoints(folder/'checkpoints') and not (folder/'report.md').exists()
    found, out = finish(start(folder, '--resume'))
    assert found == 0 and (folder/'report.md').exists(), out
    assert_same(folder, whole)
