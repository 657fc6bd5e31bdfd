"What the notebooks of records and texts can't show: memory of a process, ranks, worker processes, the command."
import json
import pickle
import subprocess
import sys

import pytest
import torch

from mmjepa.core import data_dir
from mmjepa.data.records import digit_pairs
from mmjepa.data.loaders import get_json_loaders, get_ordered_loader
from mmjepa.data.text import load_tokenizer
from mmjepa.data.text import train_tokenizer
from ranks import on_ranks

ROWS, LIMIT = 1_000_000, 60  # lines; megabytes
MEASURE = '''
import resource, sys, numpy, torch
from mmjepa.data.records import JsonRecords
from mmjepa.data.loaders import get_json_loaders
def peak(): return int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]) / 1024
path, what = sys.argv[1:]
before = peak()
if what == 'records': kept = JsonRecords(path)
if what == 'loaders': kept = [next(iter(x)) for x in get_json_loaders(path, 'text', val_split=0)[:1]]
if what == 'lines': kept = open(path, 'rb').readlines()
print(peak() - before)
'''


@pytest.fixture(scope='module')
def million(tmp_path_factory):
    "A file of a million lines, 60 MB."
    path = tmp_path_factory.mktemp('million')/'long.jsonl'
    lines = [f'{{"image": "png/{i:04}.png", "text": "a picture with number {i:04}"}}\n' for i in range(10_000)]
    block = ''.join(lines).encode()
    with open(path, 'wb') as f:
        for _ in range(ROWS // 10_000): f.write(block)
    return path


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads the peak of resident memory from /proc')
@pytest.mark.parametrize('what, fits', [('records', True), ('loaders', True), ('lines', False)])
def test_a_million_lines_fit_in_60_megabytes(million, what, fits):
    "Growth of the peak of resident memory in a fresh process; a list of all lines shows that the measure can fail."
    done = subprocess.run([sys.executable, '-c', MEASURE, str(million), what], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (float(done.stdout) <= LIMIT) == fits, f'{what}: {done.stdout} MB'


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    "120 records; of every ten one lost its image."
    path = digit_pairs(tmp_path_factory.mktemp('digits'), 120)
    lines = path.read_text().splitlines()
    for i in range(3, len(lines), 10): lines[i] = lines[i].replace('.png', '.gif')
    path.write_text('\n'.join(lines) + '\n')
    return path


def positions(rank, world, path, batch):
    "Record positions of the training batches and of validation on this rank, and what was skipped."
    said = []
    options = dict(image_size=8, context=24, on_error='skip', val_split=.2, say=said.append)
    train, val = get_json_loaders(path, 'pair', batch, **options)
    train.sampler.set_epoch(2)
    return [b['index'] for b in train], torch.cat([b['index'] for b in val]), len(train.skipped), len(val.skipped), said


def test_two_ranks_share_an_epoch(pairs):
    "Full batches, equally many on each rank, though bad records lie unevenly; held-out rows are those of one process."
    (alone, held, _, held_bad, _), = on_ranks(positions, 1, str(pairs), 10)
    ranks = on_ranks(positions, 2, str(pairs), 5)
    good = [i for i in range(120) if i % 10 != 3]
    assert [[len(b) for b in r[0]] for r in ranks] == [[5] * 9] * 2 and len(alone) == 9
    drawn = torch.cat([b for r in ranks for b in r[0]]).tolist()
    assert set(drawn) <= set(good) - set(held.tolist())
    assert sorted(torch.cat([r[1] for r in ranks]).tolist()) == sorted(held.tolist())
    assert set(held.tolist()) <= set(good)
    assert sum(r[3] for r in ranks) == held_bad == 24 - len(held)
    for number, r in enumerate(ranks):
        assert r[2] > 0 and f'rank {number}: {r[2]} bad records skipped, such as {pairs}:' in r[4][0]


def test_a_dataset_can_be_sent_to_any_worker(pairs, tmp_path):
    "Start methods other than fork pickle it, tokenizer included."
    train_tokenizer(pairs, tmp_path/'t.spm', 285)
    for name in ('bytes', tmp_path/'t.spm'):
        loader = get_ordered_loader(pairs, 'pair', [0, 1, 2], tokenizer=load_tokenizer(name), image_size=8)
        loader.dataset[0]  # opens the file
        copy = pickle.loads(pickle.dumps(loader.dataset))
        own = loader.dataset.__getitems__([0, 2])
        for k, v in copy.__getitems__([0, 2]).items():
            if k != 'skipped': assert torch.equal(torch.as_tensor(v), torch.as_tensor(own[k]))


FORK = '''
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from mmjepa.data.images import DIGIT_NAMES
vocabulary = {w: i for i, w in enumerate(['[UNK]', 'a', 'thin', 'plain', 'bold', *DIGIT_NAMES])}
words = Tokenizer(models.WordLevel(vocabulary, unk_token='[UNK]'))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words, unk_token='[UNK]').save_pretrained(sys.argv[2])
from mmjepa.data.loaders import get_json_loaders
from mmjepa.data.text import load_tokenizer
tok = load_tokenizer(sys.argv[2])
tok.batch(['a thin one', 'a bold two'] * 100, 8)
train, val = get_json_loaders(sys.argv[1], 'text', 16, num_workers=2, tokenizer=tok, context=8)
print(sum(len(b['text']) for b in train), tok.decode(next(iter(val))['text'][0]))
'''


def test_worker_processes_with_a_tokenizer_of_transformers(pairs, tmp_path):
    "Used before the fork and after it: no deadlock and no warning about its threads."
    argv = [sys.executable, '-W', 'ignore', '-c', FORK, str(pairs), str(tmp_path/'words')]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    held = split_texts(pairs)
    assert done.stdout.split(maxsplit=1) == ['96', f'{held[0]}\n'] and 'fork' not in done.stderr


def split_texts(path):
    "The held-out texts."
    lines = path.read_text().splitlines()
    val = get_json_loaders(path, 'text')[1]
    return [json.loads(lines[i])['text'] for i in val.dataset.rows]


def tokenizer_command(*argv):
    return subprocess.run([sys.executable, '-m', 'mmjepa.data.text', *map(str, argv)], capture_output=True, text=True)


def test_the_tokenizer_command(pairs, tmp_path):
    out = tmp_path/'new/tokenizer.spm'
    done = tokenizer_command(pairs, '--vocab-size', 285, '--output', out)
    assert (done.returncode, done.stderr) == (0, ''), done.stderr
    assert done.stdout == f'{out}: 285 ids from 120 of 120 texts of {pairs}\n'
    tok, before = load_tokenizer(out), out.read_bytes()
    assert tok.decode(tok.encode('a bold seven 7')) == 'a bold seven 7' and tok.vocab_size == 285
    done = tokenizer_command(pairs, '--vocab_size', 8000, '--output', out)
    line, = done.stderr.strip().splitlines()
    assert done.returncode == 2 and 'vocab_size is 8000, more than there are pieces in these texts; expected ' in line
    assert out.read_bytes() == before and [p.name for p in out.parent.iterdir()] == ['tokenizer.spm']
    most = int(line.split('expected ')[1].split()[0])
    assert tokenizer_command(pairs, '--vocab_size', most, '--output', out).returncode == 0


def test_the_tokenizer_command_with_bad_records(tmp_path):
    data = tmp_path/'data.jsonl'
    data.write_text('{"text": "a red fox"}\n{"text": "a blue fox"\n{"text": ""}\n{"text": "a red hen"}\n')
    done = tokenizer_command(data, '--vocab_size', 271, '--output', tmp_path/'t.spm')
    line, = done.stderr.strip().splitlines()
    assert done.returncode == 2 and f'{data}:2: broken JSON' in line and not (tmp_path/'t.spm').exists()
    done = tokenizer_command(data, '--vocab_size', 271, '--output', tmp_path/'t.spm', '--on-error', 'skip')
    assert done.returncode == 0, done.stderr
    assert f'{data}: 2 bad records skipped, such as {data}:2: broken JSON' in done.stdout


@pytest.mark.skipif(not (data_dir()/'emoji/pairs.jsonl').exists(), reason='needs the emoji of $MMJEPA_DATA')
def test_real_pairs():
    path = data_dir()/'emoji/pairs.jsonl'
    train, val = get_json_loaders(path, 'pair', 64, num_workers=2, on_error='raise', context=32)
    assert (len(train.dataset), len(val.dataset)) == (1480, 164)
    seen = torch.cat([b['index'] for loader in (train, val) for b in loader])
    assert len(seen) == 1480 // 64 * 64 + 164 == len(seen.unique())
    lines = path.read_text().splitlines()
    lengths = [len(json.loads(lines[i])['text'].encode()) for i in seen.tolist()]
    assert train.truncated + val.truncated == sum(n > 30 for n in lengths)
