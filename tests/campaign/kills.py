"SIGKILL at random moments: a run that is resumed ends as if nothing had happened."
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass

import pandas as pd
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import forked
from bad_inputs import MNIST
from material import ALIGN, ENV, SHAPE, towers

CLOCK = ['images_per_s', 'rows_per_s', 'seconds']
SAVES = '--save_every 1 --precision fp32'.split()


@dataclass
class Stage:
    "A command that trains, and where its weights lie."
    name: str
    module: str
    args: list
    weights: str
    kills: int
    ranks: bool = False  # may be resumed on another number of processes


def stages(root):
    pairs = ['--json_data', root/'pairs.jsonl']
    mnist = ['--data', root/'images', *MNIST, '--epochs', 12]
    align = [x for x in ALIGN if x not in ('--precision', 'fp32')]
    align[align.index('--num_epochs') + 1] = '6'
    cache = ['--cache_dir', root/'cache']
    caption = ['--aligner', root/'aligned', '--model_name', root/'qwen2', '--epochs', 3, '--batch_size', 4]
    return [
        Stage('mnist', 'label.mnist', [*mnist, *SAVES], 'model', 12),
        Stage('masked', 'pretrain.masked', [*pairs, *SHAPE, '--epochs', 3, *SAVES], 'encoder', 14),
        Stage('contrastive', 'pretrain.contrastive', [*pairs, *SHAPE, '--epochs', 3, *SAVES], 'model', 14),
        Stage('align', 'align.align', [*towers(root), *pairs, *align, *cache, *SAVES], 'aligner', 12),
        Stage('caption', 'align.caption', [*caption, *pairs, *cache, *SAVES], 'captioner', 12),
        Stage('curriculum', 'vl.train', [root/'stop_gradient.yaml', '--epochs', 2, *SAVES], 'model', 18, True),
        Stage('curriculum, slow copy', 'vl.train', [root/'ema.yaml', '--epochs', 2, *SAVES], 'model', 18, True)]


def result(stage, folder):
    "Weights and table of a run."
    table = pd.read_csv(folder/'metrics.csv')
    files = sorted((folder/stage.weights).rglob('*.safetensors'))
    weights = {f'{p.name} {k}': v for p in files for k, v in load_file(p).items()}
    assert weights, f'{stage.name} wrote none'
    return weights, table.drop(columns=[c for c in CLOCK if c in table])


def with_meaning(weights):
    """Weights without the biases of attention keys: a softmax doesn't change with them, so that their gradient is
    rounding alone, which AdamW makes as large as any other."""
    out = dict(weights)
    for k, v in weights.items():
        if not k.endswith(('qkv.bias', 'in_proj_bias')): continue
        query, key, value = v.chunk(3)
        out[k] = torch.cat([query, torch.zeros_like(key), value])
    return out


def go(stage, folder, ranks=1):
    "Started processes of a run that begins or goes on."
    args = [*stage.args, '--output', folder, '--resume']
    if ranks == 1: return [forked.start(f'mmjepa.{stage.module}', args, **ENV)]
    world = dict(WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), MASTER_ADDR='127.0.0.1',
                 MASTER_PORT=str(forked.free_port()))
    return [forked.start(f'mmjepa.{stage.module}', args, **ENV, **world, RANK=str(r), LOCAL_RANK=str(r))
            for r in range(ranks)]


def kill(processes):
    "Whether they still ran."
    alive = all(p.is_alive() for p in processes)
    for p in processes:
        if p.is_alive(): os.kill(p.pid, signal.SIGKILL)
    for p in processes:
        p.join()
        shutil.rmtree(p.out)
    return alive


def trial(stage, folder, whole, *, seconds, kills, rng):
    "Kill a run several times, let it end, compare; kills, how many were followed by another number of ranks, faults."
    done = moved = 0
    first = rng.choice([1, 2])
    ways = [(first + i) % 2 + 1 if stage.ranks else 1 for i in range(kills + 1)]  # another number each time
    for n in ways[:-1]:
        processes = go(stage, folder, n)
        time.sleep(rng.uniform(.05, .8 * seconds))
        if kill(processes): done, moved = done + 1, moved + stage.ranks
        else: shutil.rmtree(folder, ignore_errors=True)  # it had ended: another run
    ends = [forked.finish(p) for p in go(stage, folder, ways[-1])]
    if any(e.returncode for e in ends): return done, moved, [f'{stage.name}: {ends[0].stderr[-300:]}']
    exact = {1} == {*ways}
    try:
        (a, x), (b, y) = result(stage, folder), whole
        assert a.keys() == b.keys()
        if exact:
            assert all(a[k].equal(b[k]) for k in a), 'other weights'
            pd.testing.assert_frame_equal(x, y, check_exact=True)
        else:
            assert_close(with_meaning(a), with_meaning(b), rtol=1e-5, atol=1e-5)
            looks = [c for c in x if c.startswith('watch_')]  # at the rows of one process
            pd.testing.assert_frame_equal(x.drop(columns=looks), y.drop(columns=looks), rtol=1e-5, atol=1e-5)
    except AssertionError as e: return done, moved, [f'{stage.name}, ranks {ways}: {str(e)[:300]}']
    shutil.rmtree(folder)
    return done, moved, []


def campaign(root, work, seed=0, share=1.):
    "For each stage: kills, kills after which the number of processes was another, faults."
    table = []
    for stage in stages(root):
        rng, start = random.Random(f'{stage.name} {seed}'), time.monotonic()
        ended = forked.finish(go(stage, work/f'{stage.module}-whole')[0])
        assert ended.returncode == 0, ended.stderr[-2000:]
        seconds, whole = time.monotonic() - start, result(stage, work/f'{stage.module}-whole')
        shutil.rmtree(work/f'{stage.module}-whole')
        kills, moves, wrong, number = 0, 0, [], 0
        while kills < stage.kills * share:
            some = min(4, round(stage.kills * share - kills + .5))
            folder, number = work/f'{stage.module}-{number}', number + 1
            done, moved, faults = trial(stage, folder, whole, seconds=seconds, kills=some, rng=rng)
            kills, moves, wrong = kills + done, moves + moved, wrong + faults
            if number > 40: break
        table.append((stage.name, kills, moves, wrong))
    return table


def summary(table):
    "Lines of a table."
    out = ['| command | SIGKILLs | resumed on another number of processes | ended differently |', '|---|---|---|---|']
    rows = [*table, ('all', sum(r[1] for r in table), sum(r[2] for r in table), [w for r in table for w in r[3]])]
    return out + [f'| {name} | {kills} | {moves} | {len(wrong)} |' for name, kills, moves, wrong in rows]
