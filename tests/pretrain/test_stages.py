"""Stage one and stage two: gradients on two ranks, the commands under a launcher, kill and resume, a rank that dies."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import forked
from mmjepa.checkpoint import list_checkpoints
from mmjepa.pretrain.contrastive import ContrastiveConfig, ContrastiveModel, ContrastiveObjective
from mmjepa.core import seed_everything
from mmjepa.data.records import digit_pairs
from mmjepa.encoders import EncoderConfig, MultimodalEncoder
from mmjepa.pretrain.masked import MaskedModel, masked_objective, save_with_tokenizer
from mmjepa.data.text import load_tokenizer
from ranks import on_ranks

B, T, N = 8, 6, 16  # rows, tokens of a text, patches


def encoder_config(multiway):
    return EncoderConfig(16, 4, 3, num_classes=0, emb_dim=16, depth=2, num_heads=2, drop_path=0., vocab_size=30,
                         context=T, multiway=multiway)


def batch_of(rows):
    "Images, texts and what is hidden in them; the rows hide different numbers of words."
    g = torch.Generator().manual_seed(0)
    hidden = torch.rand(B, T, generator=g) < torch.linspace(.1, .9, B)[:, None]
    batch = {'image': torch.randn(B, 3, 16, 16, generator=g), 'mask': torch.rand(B, N, generator=g) < .4,
             'text': torch.randint(4, 30, (B, T), generator=g),
             'text_mask': torch.ones(B, T, dtype=torch.bool), 'text_hidden': hidden}
    batch['text_seen'] = batch['text'].masked_fill(hidden, 3)
    return {k: v[rows] for k, v in batch.items()}


def gradients(model, objective, rank, world):
    "After DDP's averaging; DDP is told to find every parameter used."
    model = model.train()
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    for _ in range(2):  # a parameter without a gradient would stop the second step
        model.zero_grad()
        batch = batch_of(slice(rank * B // world, (rank + 1) * B // world))
        loss, logs = objective(wrapped(batch), batch)
        loss = sum(loss.values()) if isinstance(loss, dict) else loss
        loss.backward()
    return {'loss': loss.detach(), **logs, **{n: p.grad for n, p in model.named_parameters()}}


def masked(rank, world, multiway):
    seed_everything(0)
    return gradients(MaskedModel(MultimodalEncoder(encoder_config(multiway))), masked_objective, rank, world)


def contrastive(rank, world, accum):
    seed_everything(0)
    return gradients(ContrastiveModel(ContrastiveConfig(encoder_config(False), proj_dim=8, accum=accum)),
                     ContrastiveObjective(), rank, world)


def compare(f, argument):
    whole = f(0, 1, argument)
    for part in on_ranks(f, 2, argument): assert_close(part, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('multiway', [False, True])
def test_masked_gradients_add_up(multiway): compare(masked, multiway)


@pytest.mark.parametrize('accum', [1, 3])
def test_contrastive_gradients_know_all_ranks(accum): compare(contrastive, accum)


# ---------------------------------------------------------------- commands

SHAPE = '--image-size 16 --patch-size 4 --emb-dim 16 --depth 1 --context 24 --num-heads 2'.split()
CLOCK = ['images_per_s', 'seconds']


@pytest.fixture(scope='module')
def data(tmp_path_factory): return digit_pairs(tmp_path_factory.mktemp('pairs'), 120)


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    tok, folder = load_tokenizer(), tmp_path_factory.mktemp('encoder')/'encoder'
    cfg = EncoderConfig(16, 4, 3, num_classes=0, emb_dim=16, depth=1, num_heads=2, vocab_size=tok.vocab_size,
                        context=24)
    save_with_tokenizer(MultimodalEncoder(cfg), tok, folder)
    return folder


def start(module, *args, launch=()):
    env = {'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': '1', 'CUDA_VISIBLE_DEVICES': ''}
    if not launch: return forked.Popen(f'mmjepa.{module}', *args, **env)
    return subprocess.Popen([sys.executable, *launch, '-m', f'mmjepa.{module}', *map(str, args)],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **env},
                            start_new_session=True)


def finish(process, timeout=300):
    try: out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out


def run(module, *args, **kwargs): return finish(start(module, *args, **kwargs))


def two_ranks(precision):
    """`accelerate launch`; without MPI its `--cpu` starts one process only, so torchrun's way is asked for (`start`
    keeps the ranks off any GPU)."""
    return ['-m', 'accelerate.commands.launch', *'--multi_gpu --num_processes 2 --num_machines 1'.split(),
            *f'--dynamo_backend no --mixed_precision {precision} --main_process_port 0'.split()]


def test_both_stages_by_their_commands(tmp_path, data):
    "Stage one, stage two from its encoder, embeddings, map; the names are those of the reference, files in its eyes."
    one, encoder, two, rows = (tmp_path/n for n in ('one.pt', 'one_encoder.pt', 'musk_stage2.pt', 'e.jsonl'))
    code, out = run('pretrain.masked', '--json-data', data, '--output', one, '--encoder-out', encoder,
                    '--epochs', 2, '--batch-size', 20, '--mask-ratio', .5, *SHAPE)
    assert code == 0 and f'encoder: {encoder}' in out and (one/'report.md').exists(), out
    table = pd.read_csv(one/'metrics.csv')
    assert table[['loss_mim', 'loss_mlm', 'val_loss_mim', 'val_loss_mlm']].notna().all(axis=None)
    assert out.count('val mlm') == 2
    code, out = run('pretrain.contrastive', '--json_data', data, '--encoder', encoder, '--output', two, '--epochs', 2,
                    '--batch-size', 20, '--accum-contrastive', 2)
    assert code == 0 and 'report and pictures' in out and out.count('val clip') == 2, out
    before, after = load_file(encoder/'model.safetensors'), load_file(two/'model/model.safetensors')
    shapes = {k.removeprefix('encoder.'): v.shape for k, v in after.items() if k.startswith('encoder.')}
    assert {k: v.shape for k, v in before.items()} == shapes
    code, out = run('embed', '--model', two, '--json-data', data, '--output', rows)
    assert code == 0 and '120 embeddings' in out, out
    line = json.loads(rows.read_text().splitlines()[7])
    assert len(line['embedding']) == 128 and line['domain'] == 'seven'
    code, out = run('pretrain.map', rows, '--cluster-domains', 3, '--kmeans-model', tmp_path/'model.pth', '--output',
                    tmp_path/'umap.png')
    assert code == 0 and 'V-measure' in out and (tmp_path/'model.pth').is_file(), out


@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_two_processes_under_a_launcher(tmp_path, data, precision):
    code, out = run('pretrain.contrastive', '--json-data', data, '--output', tmp_path/'run', '--epochs', 2,
                    '--batch-size', 16, *SHAPE, launch=two_ranks(precision))
    assert code == 0, out
    assert json.loads((tmp_path/'run/config.json').read_text())['processes'] == 2
    assert out.count('report and pictures') == 1


@pytest.mark.parametrize('args, words', [
    (('pretrain.masked', '--json-data', 'nothing.jsonl'), 'nothing.jsonl'),
    (('pretrain.masked', '--image-data', 'none/{0..3}.tar', '--text-data', 'none/{0..3}.tar'), 'none/'),
    (('pretrain.masked',), '--json_data'),
    (('pretrain.contrastive', '--json-data', 'DATA', '--encoder', 'nowhere'), 'nowhere: no encoder there'),
    (('pretrain.contrastive', '--json-data', 'DATA', '--encoder', 'ENCODER', '--image_size', '128', '--depth', '12'),
     '--image_size 128 --depth 12, but the encoder in'),
    (('pretrain.contrastive', '--json-data', 'DATA', '--patch-size', '7'), 'patch_size 7 does not divide'),
    (('pretrain.contrastive', '--json-data', 'DATA', '--tokenizer', 'nothing.spm'), 'nothing.spm'),
    (('embed', '--model', 'nowhere', '--json-data', 'DATA'), 'nowhere: no such folder')])
def test_bad_input_is_one_line(tmp_path, data, encoder, args, words):
    given = {'DATA': data, 'ENCODER': encoder}
    code, out = run(args[0], *(given.get(a, a) for a in args[1:]), '--output', tmp_path/'out')
    assert code == 2 and words in out and 'Traceback' not in out, out


def test_another_tokenizer_than_the_encoders(tmp_path, data, encoder):
    code, out = run('data.text', data, '--vocab-size', 286, '--output', tmp_path/'words.spm')
    assert code == 0, out
    code, out = run('pretrain.contrastive', '--json-data', data, '--encoder', encoder, '--tokenizer',
                    tmp_path/'words.spm', '--output', tmp_path/'out')
    assert code == 2 and 'is not the one of' in out and not (tmp_path/'out').exists(), out


def wait_for(folder, step, process, seconds=120):
    "Until a checkpoint of `step` or later is there."
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        done = list_checkpoints(folder/'checkpoints')
        if done and int(done[-1].name[5:]) >= step: return
        time.sleep(.05)
    raise AssertionError(f'no checkpoint of step {step}: {finish(process)[1]}')


LONG = ['--epochs', 3, '--batch-size', 10, '--save-every', 3, *SHAPE]


@pytest.mark.parametrize('module', ['pretrain.masked', 'pretrain.contrastive'])
def test_killed_and_resumed_is_the_same_run(tmp_path, data, module):
    args = ['--json-data', data, *LONG]
    assert run(module, *args, '--output', tmp_path/'whole')[0] == 0
    process = start(module, *args, '--output', tmp_path/'killed')
    wait_for(tmp_path/'killed', 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, out = run(module, *args, '--output', tmp_path/'killed', '--resume')
    assert code == 0 and 'resumed at step' in out, out
    tables = [pd.read_csv(tmp_path/name/'metrics.csv').drop(columns=CLOCK) for name in ('whole', 'killed')]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    path = 'encoder/model.safetensors' if module == 'pretrain.masked' else 'model/model.safetensors'
    weights = [load_file(tmp_path/name/path) for name in ('whole', 'killed')]
    assert all(weights[0][k].equal(weights[1][k]) for k in weights[0])


def children(pid):
    "Processes of the ranks that a launcher started."
    alive = [p for p in Path('/proc').iterdir() if p.name.isdigit() and (p/'status').exists()]
    return [int(p.name) for p in alive if f'PPid:\t{pid}\n' in (p/'status').read_text()]


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='finds the rank to kill in /proc')
def test_a_rank_that_dies_ends_the_others_and_resume_continues(tmp_path, data):
    args = ['--json-data', data, '--output', tmp_path/'run', '--epochs', 20, '--batch-size', 10, '--save-every', 2,
            *SHAPE]
    process = start('pretrain.contrastive', *args, launch=two_ranks('no'))
    wait_for(tmp_path/'run', 4, process)
    ranks = children(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[-1], signal.SIGKILL)
    begin = time.monotonic()
    code, out = finish(process, timeout=60)
    assert code and time.monotonic() - begin < 60, out
    assert list_checkpoints(tmp_path/'run/checkpoints')
    code, out = run('pretrain.contrastive', *args, '--resume', launch=two_ranks('no'))
    assert code == 0 and 'resumed at step' in out and len(pd.read_csv(tmp_path/'run/metrics.csv')) == 20, out
