"""The curriculum as a command: killed in every stage it ends with the same weights, and a plan runs nothing."""
import json
import os
import shutil
import signal
import time

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmjepa import training
from mmjepa.checkpoint import list_checkpoints, load_checkpoint
from mmjepa.core import UserError, run_command
from mmjepa.vl.curriculum import CurriculumEvaluation, CurriculumLoader, open_sources, run_curriculum
from mmjepa.vl.config import describe_step, make_curriculum
from mmjepa.vl.train import main
from mmjepa.vl.export import EXPORTED_PARTS
from mmjepa.data.records import digit_pairs
from mmjepa.data.shards import write_shards
from mmjepa.data.text import ByteTokenizer, load_tokenizer
from mmjepa.data.tokens import pack_tokens
from mmjepa.runs import RunConfig
from mmjepa.vl.packing import TokenMixture
import forked
from curricula import silent, small_curriculum, write_lines
from ranks import on_ranks

CLOCK = ['rows_per_s', 'seconds']


@pytest.fixture(scope='module')
def material(tmp_path_factory):
    "A YAML file with three sources."
    root = tmp_path_factory.mktemp('material')
    digit_pairs(root, 60)
    settings = small_curriculum(root, '8K', 2)
    (root/'curriculum.yaml').write_text(yaml.safe_dump(settings))
    (root/'slow.yaml').write_text(yaml.safe_dump(small_curriculum(root, '8K', 2, target='ema', momentum=.9)))
    for name in ('curriculum', 'slow'):
        drops = yaml.safe_load((root/f'{name}.yaml').read_text())
        drops['model']['vision'] |= {'drop_path': .3, 'depth': 2}  # the first block drops nothing
        (root/f'{name}-drops.yaml').write_text(yaml.safe_dump(drops))
    return root


def start(*flags):
    words = [*map(str, flags), '--epochs', '4', '--save_every', '1', '--precision', 'fp32']
    return forked.Popen('mmjepa.vl.train', *words, ACCELERATE_USE_CPU='1')


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def result(folder):
    return load_file(folder/'model/model.safetensors'), pd.read_csv(folder/'metrics.csv').drop(columns=CLOCK)


def reached(folder, step): return any(int(p.name[5:]) >= step for p in list_checkpoints(folder/'checkpoints'))


# 25, 19, 13 and 7 steps a stage
@pytest.mark.parametrize('name, steps, workers',
                         [('curriculum-drops', [10, 35, 53, 60], 0), ('slow-drops', [10, 53], 2)])
def test_killed_in_every_stage(material, tmp_path, name, steps, workers):
    """Paths that are dropped, SIGReg's directions and a slow copy are part of what must come back.

    Workers that make rows ahead change nothing: not in what is read, and not in what a kill leaves."""
    path, folder, whole = material/f'{name}.yaml', tmp_path/'run', tmp_path/'whole'
    assert str(whole/'report.md') in finish(start(path, '--output', whole))
    for at in steps:
        process = start(path, '--output', folder, '--resume', '--num_workers', workers)
        while process.poll() is None and not reached(folder, at): time.sleep(.002)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)  # workers end as well
        assert not (folder/'report.md').exists(), 'it ended before it was killed'
    finish(start(path, '--output', folder, '--resume'))
    (a, x), (b, y) = result(folder), result(whole)
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
    pd.testing.assert_frame_equal(x, y, check_exact=True)


def test_a_plan_runs_nothing(material, tmp_path, capsys):
    path = str(material/'curriculum.yaml')
    run_command(main.__wrapped__, [path, '--plan', '--total_tokens', '2M', '--output', str(tmp_path)])
    out = capsys.readouterr().out
    assert 'JEPA pretraining' in out and '800000' in out and 'operations' in out and f'{tmp_path}/plan.png' in out
    assert 'papers: text.jsonl, 120 records' in out and 'accumulated over 2 on 1, 1 on 2 ranks' in out
    assert [p.name for p in tmp_path.iterdir()] == ['plan.png']


def test_a_plan_says_what_is_not_there(material, tmp_path, capsys):
    settings = yaml.safe_load((material/'curriculum.yaml').read_text())
    settings['sources'] |= {
        'papers': {'path': 'none.jsonl'}, 'textbooks': {},
        'contests': {'path': 'http://x/{0..9}.tar', 'kind': 'shards'},
        'code_text': {'path': '{0..3}.tar', 'kind': 'shards'}}
    (tmp_path/'c.yaml').write_text(yaml.safe_dump(settings))
    run_command(main.__wrapped__, [str(tmp_path/'c.yaml'), '--plan', '--output', str(tmp_path)])
    out = capsys.readouterr().out
    for words in ('papers: none.jsonl: a run would stop here: ', 'textbooks: no path, left out',
                  '{0..9}.tar, not looked up', 'code_text: {0..3}.tar: a run would stop here: ',
                  'records are read by a run alone'): assert words in out


@pytest.mark.parametrize('change, words', [
    ({'training': {'batch': 3}}, "unknown key 'batch'"),
    ({'training': {'batch_size': 7}}, 'batch_size 7 is not a multiple of'),
    ({'total_tokens': 'many'}, 'total_tokens')])
def test_a_wrong_file_is_one_line(tmp_path, capsys, change, words):
    path = tmp_path/'wrong.yaml'
    path.write_text(yaml.safe_dump(change))
    with pytest.raises(SystemExit) as stop:
        run_command(main.__wrapped__, [str(path), '--output', str(tmp_path/'run')])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and words in line and 'wrong.yaml' in line


def changed(material, tmp_path, **changes):
    "A file with other sources or settings beside the small curriculum's, and what a run of it says."
    settings = yaml.safe_load((material/'curriculum.yaml').read_text())
    for source in settings['sources'].values(): source['path'] = str(material/source['path'])
    settings['sources'] |= changes.pop('sources', {})
    settings['training'] |= changes.pop('training', {})
    (tmp_path/'c.yaml').write_text(yaml.safe_dump({**settings, **changes}))
    return str(tmp_path/'c.yaml')


def refused(capsys, *flags):
    with pytest.raises(SystemExit) as stop: run_command(main.__wrapped__, [*map(str, flags)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and 'Traceback' not in '\n'.join(lines)
    return lines[-1]


@pytest.mark.parametrize('sources, words', [
    ({'papers': {'path': 'none.jsonl'}}, 'sources.papers: '), ({'papers': {'path': 'empty.jsonl'}}, 'sources.papers: '),
    ({'papers': {'path': 'one.jsonl'}}, 'one.jsonl: 1 records can not be split'),
    ({'papers': {'path': 'text.jsonl', 'where': {'domain': 'art'}}}, "sources.papers: "),
    ({'papers': {'path': '{0..3}.tar', 'kind': 'shards'}}, 'sources.papers: '),
    ({'papers': {'path': 'bad.jsonl'}}, "bad.jsonl:"), ({'papers': {'path': ''}}, 'sources.papers: ')])
def test_sources_that_hold_nothing_are_one_line(material, tmp_path, capsys, sources, words):
    (tmp_path/'empty.jsonl').write_text('')
    write_lines(tmp_path/'one.jsonl', [{'text': 'alone'}])
    write_lines(tmp_path/'bad.jsonl', [{'text': ''}] * 30)
    write_lines(tmp_path/'text.jsonl', [{'text': 'a', 'domain': 'b'}] * 30)
    line = refused(capsys, changed(material, tmp_path, sources=sources), '--output', tmp_path/'run')
    assert words in line


def test_what_is_left_out_is_told_and_counted(material, tmp_path, capsys):
    "Bad records by record, a source without held-out ones, one that no stage asks for; the table may be larger."
    write_lines(tmp_path/'some.jsonl', [{'text': 'x y z'}, {'text': ''}, {'txt': 1}] * 8)
    write_lines(tmp_path/'few.jsonl', [{'text': f'code {i}', 'domain': 'ab'[i == 3]} for i in range(21)])
    where = {'path': str(tmp_path/'few.jsonl'), 'where': {'domain': 'b'}}
    sources = {'textbooks': {'path': str(tmp_path/'some.jsonl')}, 'financial_code': where,
               'mine': {'path': str(tmp_path/'some.jsonl'), 'topic': 'text', 'weight': 0}}
    path = changed(material, tmp_path, sources=sources, training={'lm': {'context_length': 32, 'vocab_size': 300}})
    flags = ['--output', str(tmp_path/'run'), '--precision', 'fp32', '--epochs', '2', '--total_tokens', '2048']
    run_command(main.__wrapped__, [path, *flags, '--on_error', 'skip'])
    out = capsys.readouterr().out
    assert 'textbooks: 15 of 23 records were skipped; the first: ' in out or 'textbooks: 16 of 23' in out
    assert 'sources.financial_code: ' in out and 'the scores go on without it' in out
    assert 'sources that no stage asks for are not read: mine' in out
    assert load_file(tmp_path/'run/model/model.safetensors')['autoregressive_head.weight'].shape[0] == 300
    small = {'lm': {'context_length': 32, 'vocab_size': 200}}
    line = refused(capsys, changed(material, tmp_path, training=small), *flags)
    assert 'vocab_size is 200, and the tokenizer has 260 words; expected as many or more' in line
    assert 'epochs is 0' in refused(capsys, path, '--epochs', '0', '--output', tmp_path/'none')


def test_steps_on_ranks_of_the_reference():
    "Its file, written for one rank, is that of 64 as well; plan and loader count the same."
    sizes = {'batch_size': 256, 'micro_batch_size': 4, 'gradient_accumulation_steps': 64}
    config = make_curriculum({'training': sizes})
    for ranks, groups in ((1, 64), (64, 1), (16, 4)):
        assert CurriculumLoader(config, Sources(config.sources), 1, shard=(0, ranks)).groups == groups
        assert f'accumulated over {groups} on {ranks} rank' in describe_step(config, ranks)
    with pytest.raises(UserError, match='is not a multiple of micro_batch_size 4 x 3 ranks; expected batch'):
        CurriculumLoader(config, Sources(config.sources), 1, shard=(0, 3))


class Sources:
    "A mixture that is not read."
    def __init__(self, sources): self.sources = sources


def test_only_tokens_that_were_read_are_seen(material):
    "Pictures alone can't fill rows: the schedule has gone on, and the count has not."
    settings = yaml.safe_load((material/'curriculum.yaml').read_text())
    sources = {'vision_text': settings['sources']['vision_text'] | {'instruction': True}}
    stages = [{'name': 'one', 'share': 1, 'lr': [3e-3, 1e-4], 'alpha': 1, 'beta': 0}]
    config = make_curriculum({**settings, 'sources': sources, 'stages': stages})
    opened = open_sources(config, ByteTokenizer(), root=material, say=silent)
    mixture = TokenMixture(opened, {'vision_text': 1}, 32, pad_id=0, image_size=8)
    loader = CurriculumLoader(config, mixture, 3, shard=(0, 1))
    real = sum(int(b['text_mask'].sum()) for b in loader)
    assert 0 < real == loader.tokens_seen < loader.tokens_at(loader.step)
    again = CurriculumLoader(config, mixture, 3, shard=(0, 1))
    again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert again.tokens_seen == real


def streams(root, kind):
    "Sources that are read file by file, of fewer files than a batch has rows (4), or of more."
    (root/kind).mkdir()
    for i in range(2 if kind == 'few' else 6):
        lines = [{'content': f'{kind} {i} {k} ' + 'x' * (k % 7)} for k in range(30 + i)]
        write_lines(root/kind/f'train-{i}.jsonl', lines)
    return {'path': str(root/kind), 'kind': 'hub', 'fields': {'text': 'content'}}


def test_streams_resume_without_reading_again(material, tmp_path):
    "With workers and without, on one rank or two; files that were read to their ends are passed over by their sizes."
    pytest.importorskip('datasets', reason='pip install mmjepa[hub]')
    base = yaml.safe_load((material/'curriculum.yaml').read_text())
    sources = {'papers': streams(tmp_path, 'few'), 'code_text': streams(tmp_path, 'many'),
               'questions_answers': {'path': str(material/'ask.jsonl')}}
    config, tok = make_curriculum({**base, 'sources': sources}), ByteTokenizer()
    def loader(shard=(0, 1), **kw):
        mixture = TokenMixture(open_sources(config, tok, say=silent), {'papers': 1}, 32, pad_id=tok.pad_id)
        return CurriculumLoader(config, mixture, 60, shard=shard, **kw)
    plain = loader()
    batches = [*plain]
    halves = [[*loader((r, 2), num_workers=r)] for r in range(2)]
    for k in range(0, len(batches), 2):  # two micro-batches of two rows a step, or one on each rank
        assert all(a['text'].equal(h[k // 2]['text']) for a, h in zip(batches[k:k + 2], halves))
    stopped = loader(num_workers=2)
    for i, _ in enumerate(stopped):
        if i == 2 * 40 + 1: break
    state = json.loads(json.dumps(stopped.state_dict()))
    for again in (loader(), loader(num_workers=2)):
        again.load_state_dict(state)
        assert again.mixture.sources['papers'].sizes, 'no file was read to its end'
        for a, b in zip(batches[2 * 41:], again, strict=True): assert all(a[k].equal(b[k]) for k in a)


def test_packed_sources_give_the_rows_of_live_ones(material, tmp_path):
    "Pictures too; who packs with another tokenizer, or not to the end, is told before the run."
    base = yaml.safe_load((material/'curriculum.yaml').read_text())
    def rows(sources, **options):
        config, tok = make_curriculum({**base, 'sources': sources}), ByteTokenizer()
        mixture = TokenMixture(open_sources(config, tok, root=material, say=silent), {'papers': 1}, 32,
                               pad_id=tok.pad_id, image_size=8)
        return [*CurriculumLoader(config, mixture, 60, **options)]
    packed = {}
    for name, about in base['sources'].items():
        pack_tokens(str(material/about['path']), tmp_path/name, ByteTokenizer(), say=silent)
        packed[name] = {'path': str(tmp_path/name), 'kind': 'packed'}
    for a, b in zip(rows(base['sources']), rows(packed, num_workers=2), strict=True):
        assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
    index = tmp_path/'papers/tokens.json'
    whole = json.loads(index.read_text())
    for change, said in {'tokenizer': 'with another tokenizer', 'next': 'not packed to its end'}.items():
        index.write_text(json.dumps(whole | {change: [0, 1]}))
        with pytest.raises(UserError, match=f'sources.papers: .*{said}'): rows(packed)


def test_workers_count_and_complain_as_one_process_does(material, tmp_path):
    base = yaml.safe_load((material/'curriculum.yaml').read_text())
    lines = [{'text': f'good {i}'} for i in range(60)]
    write_lines(tmp_path/'some.jsonl', lines + [{'text': ''}, {'text': ' '}])
    sources = {**base['sources'], 'papers': {'path': str(tmp_path/'some.jsonl')}}
    config, tok = make_curriculum({**base, 'sources': sources}), ByteTokenizer()
    def loader(on_error, workers):
        opened = open_sources(config, tok, root=material, say=silent, on_error=on_error)
        mixture = TokenMixture(opened, {'papers': 1}, 32, pad_id=tok.pad_id, image_size=8)
        return CurriculumLoader(config, mixture, 60, num_workers=workers)
    found = []
    for workers in (0, 3):
        one = loader('skip', workers)
        for _ in one: pass
        found.append((one.notes(), one.tokens, one.state_dict()))
        with pytest.raises(UserError, match=r"some\.jsonl:6[12]: 'text' is empty") as e: [*loader('raise', workers)]
        assert '\n' not in str(e.value)
    assert found[0] == found[1] and any('records were skipped' in line for line in found[0][0])


def test_sources_of_each_kind(material, tmp_path):
    "The same texts as JSON lines, shards, and a folder that `datasets` streams: all are learnt from and held out."
    pytest.importorskip('datasets', reason='pip install mmjepa[hub]')
    (tmp_path/'hub').mkdir()
    write_lines(tmp_path/'hub/train.jsonl', [{'content': f'hub {i}', 'kind': 'abc'[i % 3]} for i in range(150)])
    write_shards(material/'text.jsonl', f'{tmp_path}/{{00..}}.tar', say=silent)
    hub = {'path': str(tmp_path/'hub'), 'kind': 'hub', 'where': {'kind': 'a'}, 'fields': {'text': 'content'}}
    sources = {'papers': {'path': str(material/'text.jsonl')}, 'textbooks': hub,
               'code_text': {'path': f'{tmp_path}/{{00..}}.tar', 'kind': 'shards'},
               'questions_answers': {'path': str(material/'ask.jsonl')}}
    config = make_curriculum({**yaml.safe_load((material/'curriculum.yaml').read_text()), 'sources': sources})
    tok, found = ByteTokenizer(), {}
    for held_out in (False, True):
        opened = open_sources(config, tok, held_out, say=silent)
        documents = {name: [s.document(i) for i in range(200)] for name, s in opened.items()}
        found[held_out] = {name: {tok.decode(d.ids) for d in some if d} for name, some in documents.items()}
    lines = {json.loads(x)['text'] for x in (material/'text.jsonl').read_text().splitlines()}
    lines = dict.fromkeys(('papers', 'code_text'), lines) | {'textbooks': {f'hub {i}' for i in range(0, 150, 3)}}
    for name, every in lines.items():
        learnt, held = found[False][name], found[True][name]
        assert learnt | held == every and not learnt & held and len(held) / len(every) < .12, name


# ---------------------------------------------------------------- ranks

SHARDED = {
    'ACCELERATE_USE_FSDP': 'true', 'FSDP_VERSION': '2', 'FSDP_RESHARD_AFTER_FORWARD': 'true',
    'FSDP_AUTO_WRAP_POLICY': 'TRANSFORMER_BASED_WRAP', 'FSDP_TRANSFORMER_CLS_TO_WRAP': 'LlamaDecoderLayer,Block'}
RECOMPUTED = SHARDED | {'FSDP_ACTIVATION_CHECKPOINTING': 'true'}
STEPS = 1024 // (4 * 32) + 2  # the last steps of two stages are cut


def train(folder, material, world=1, *, resume=False, name='curriculum', micro=4):
    "All four stages in steps of four rows, over all ranks; a checkpoint and a line of the table for each step."
    training.prune_checkpoints = lambda *_: None
    settings = yaml.safe_load((material/f'{name}.yaml').read_text())
    settings['training'] |= {'micro_batch_size': micro // world, 'gradient_accumulation_steps': 1,
                             'scheduler': {'warmup_tokens': 100, 'min_lr': 1e-4}}
    config, tok = make_curriculum({**settings, 'total_tokens': 1024}, ranks=world), ByteTokenizer()
    sources, held = (open_sources(config, tok, part, root=material, say=silent) for part in (False, True))
    run = RunConfig(folder, resume=resume)
    table = run_curriculum(config, run, tok, sources=sources, held=held, epochs=STEPS, precision='fp32')
    if table is None: return []
    return table[['stage', 'tokens_seen', 'loss_total', 'val_loss_lm', 'embedding_error']].values.tolist()


def train_on_rank(rank, world, folder, material, begun, env, name):
    "A whole run, and the end of one that a single process has begun."
    os.environ.update(env)
    if 'FSDP_ACTIVATION_CHECKPOINTING' in env:
        with pytest.raises(UserError, match='fsdp_activation_checkpointing is on, and .*drop_path.* drops at random'):
            train(folder.with_name('refused'), material, world, name=f'{name}-drops')
    return train(folder, material, world, name=name), train(begun, material, world, resume=True, name=name)


def begin(run, folder, step=4):
    "What a run has left at a step in the second stage."
    shutil.copytree(run, folder)
    for path in list_checkpoints(folder/'checkpoints')[step:]: shutil.rmtree(path)
    return folder


@pytest.fixture(scope='module')
def single(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp('single')/'run'
    return folder, torch.tensor(train(folder, material))


@pytest.fixture(scope='module')
def slow(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp('slow')/'run'
    return folder, torch.tensor(train(folder, material, name='slow'))


@pytest.mark.parametrize('env, name', [({}, 'curriculum'), (SHARDED, 'curriculum'), (RECOMPUTED, 'slow')],
                         ids=['ddp', 'fsdp', 'fsdp checkpointing slow copy'])
def test_two_ranks(material, request, tmp_path, env, name):
    "In every stage the losses and weights of one process; what two ranks begin, one ends, and back."
    folder, table = request.getfixturevalue('slow' if name == 'slow' else 'single')
    assert {1, 2, 3, 4} == {*table[:, 0].tolist()} and len(table) >= 8
    (both, ended), _ = on_ranks(train_on_rank, 2, tmp_path/'both', material, begin(folder, tmp_path/'ended'), env, name)
    alone = train(begin(tmp_path/'both', tmp_path/'alone'), material, resume=True, name=name)
    weights = load_file(folder/'model/model.safetensors')
    for run, rows in {'both': both, 'ended': ended, 'alone': alone}.items():
        torch.testing.assert_close(torch.tensor(rows), table, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(load_file(tmp_path/run/'model/model.safetensors'), weights, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize('name', ['curriculum', 'slow'], ids=['SIGReg', 'slow copy'])
def test_a_run_in_parts_is_the_run_at_once(material, request, tmp_path, name):
    "Four rows at a time or one: losses of every stage, and the weights at the end."
    folder, table = request.getfixturevalue('slow' if name == 'slow' else 'single')
    rows = torch.tensor(train(tmp_path/'run', material, name=name, micro=1))
    torch.testing.assert_close(rows, table, rtol=1e-4, atol=1e-4)
    weights = load_file(folder/'model/model.safetensors')
    torch.testing.assert_close(load_file(tmp_path/'run/model/model.safetensors'), weights, rtol=1e-3, atol=2e-4)


def train_in_parts(rank, world, folder, material, env):
    os.environ.update(env)
    return train(folder, material, world, micro=2)


@pytest.mark.parametrize('env', [{}, SHARDED], ids=['ddp', 'fsdp'])
def test_two_ranks_in_parts(material, single, tmp_path, env):
    "Two ranks with two micro-batches each: SIGReg is of all four, with weights that are sharded too."
    folder, table = single
    rows, _ = on_ranks(train_in_parts, 2, tmp_path/'run', material, env)
    torch.testing.assert_close(torch.tensor(rows), table, rtol=1e-4, atol=1e-4)
    weights = load_file(folder/'model/model.safetensors')
    torch.testing.assert_close(load_file(tmp_path/'run/model/model.safetensors'), weights, rtol=1e-3, atol=2e-4)


def test_a_signal_in_an_evaluation(material, single, tmp_path, monkeypatch):
    "The rows after it are those that a run without it reads, and so is all that it counts."
    folder, calls, plain = tmp_path/'run', [], CurriculumEvaluation.__call__
    def evaluate(self, *args):
        calls.append(1)
        if len(calls) == 3: os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *args)
    monkeypatch.setattr(CurriculumEvaluation, '__call__', evaluate)
    with pytest.raises(SystemExit) as stop: train(folder, material)
    assert stop.value.code == 143 and len(calls) == 3
    assert torch.tensor(train(folder, material, resume=True)).equal(single[1])
    (folder/'report.md').unlink()
    assert torch.tensor(train(folder, material, resume=True)).equal(single[1])  # at the end: nothing but the report
    assert (folder/'report.md').read_text() == (single[0]/'report.md').read_text()


def test_what_a_checkpoint_holds(single):
    "The five parts by their names, and all that the manifest says; it is the tokenizer that the run had."
    folder, table = single
    ckpt = load_checkpoint(list_checkpoints(folder/'checkpoints')[-1])
    steps, (*_, train_loss, val_loss, _) = len(table), table[-1].tolist()
    assert {k.split('.')[0] for k in ckpt.model} == {*EXPORTED_PARTS}
    assert ckpt.state['optimizer']['state'] and ckpt.step == steps
    assert ckpt.facts['tokens_seen'] == 1024 and ckpt.facts['epoch'] == steps + 1
    assert ckpt.facts['train_loss'] == pytest.approx(train_loss)
    assert ckpt.facts['eval_metrics']['val_loss_lm'] == pytest.approx(val_loss)
    assert ckpt.config['curriculum']['total_tokens'] == 1024
    (folder/'copy').mkdir()
    for name, data in ckpt.assets.items():
        (folder/'copy'/name).parent.mkdir(exist_ok=True)
        (folder/'copy'/name).write_bytes(data)
    assert load_tokenizer(str(folder/'copy')).fingerprint == ByteTokenizer().fingerprint
