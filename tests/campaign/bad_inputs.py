"Bad inputs against every command that reads them: each ends with a right result, or with one line and exit status 2."
import hashlib
import json
import os
import random
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import faults
import forked
from material import ALIGN, ENV, RECORDS, SHAPE, SHORT, towers

TIMEOUT = 120  # seconds after which a command hangs
LOADED = ['transformers', 'umap', 'sklearn.cluster', 'mmjepa.align.caption', 'mmjepa.pretrain.contrastive',
          'mmjepa.vl.evaluation']  # by the server of processes, beside what other tests need


@dataclass
class Case:
    "One run of a command."
    kind: str  # of the input
    fault: str  # what is wrong with it
    module: str  # of the command
    args: list  # of the command
    folder: Path  # of its own
    bad: Path | None = None  # the file or folder at fault
    good: bool = False  # it has to be read
    output: Path | None = None  # a file or folder with a record for each of the input
    records: int | None = None  # how many the input has, where that is clear
    wrong: list[str] = field(default_factory=list)  # what the end was not allowed to be
    status: int = 0
    said: str = ''


# ---------------------------------------------------------------- commands, by what they read

CAPTION = '--epochs 1 --batch_size 4 --precision fp32'.split()


def of_lines(root, path, out, case):
    "Those that read JSON lines: module and arguments."
    data, cache = ['--json_data', path], ['--cache_dir', case/'cache']
    return {
        'pretrain.masked': [*data, *SHAPE, *SHORT, '--output', out],
        'pretrain.contrastive': [*data, *SHAPE, *SHORT, '--output', out],
        'embed': ['--model', root/'two', *data, '--output', case/'out.jsonl'],
        'align.align': [*towers(root), *data, *ALIGN, '--output', out, *cache],
        'align.caption': ['--aligner', root/'aligned', '--model_name', root/'qwen2', *data, *CAPTION, '--output', out,
                          *cache],
        'data.text': [path, '--vocab_size', 286, '--output', case/'out.spm'],
        'data.shards': [path, '--output', case/'out/{0000..}.tar'],
        'vl.evaluate': [root/'vl', '--data', path, '--pairs', path, '--limit', 6, '--max_new_tokens', 4,
                        '--programs', 2, '--output', out]}


MAY_SKIP = 'pretrain.masked', 'pretrain.contrastive', 'embed', 'align.align', 'align.caption', 'data.shards'


def of_shards(root, path, out, case):
    return {'pretrain.masked': ['--image_data', path, '--text_data', path, *SHAPE, *SHORT, '--output', out],
            'pretrain.contrastive': ['--pair_data', path, *SHAPE, *SHORT, '--output', out],
            'data.shards': [path, '--output', case/'out.jsonl']}


def of_folders(root, case, out):
    "Those that read a folder which another program wrote: what is copied, and where its name goes."
    pairs = ['--json_data', root/'pairs.jsonl']
    copy, cache = case/'given', ['--cache_dir', case/'cache']
    return {
        ('bert', 'pretrain.masked'): ['--tokenizer', copy, *pairs, *SHAPE, *SHORT, '--output', out],
        ('one/encoder', 'pretrain.contrastive'): ['--encoder', copy, *pairs, *SHORT, '--batch_size', 4, '--output',
                                                  out],
        ('two/model', 'embed'): ['--model', copy, *pairs, '--output', case/'out.jsonl'],
        ('vl', 'vl.evaluate'): [copy, '--data', root/'text.jsonl', '--limit', 4, '--output', out],
        ('vl', 'export'): ['--checkpoint', copy, '--format', 'safetensors', '--output', out],
        ('clip', 'align.align'): ['--vision_model_name', copy, '--text_model_name', root/'bert', *pairs, *ALIGN,
                                  '--output', out, *cache],
        ('bert', 'align.align'): ['--vision_model_name', root/'clip', '--text_model_name', copy, *pairs, *ALIGN,
                                  '--output', out, *cache],
        ('aligned', 'align.caption'): ['--aligner', copy, '--model_name', root/'qwen2', *pairs, *CAPTION, '--output',
                                       out, *cache],
        ('qwen2', 'align.caption'): ['--aligner', root/'aligned', '--model_name', copy, *pairs, *CAPTION, '--output',
                                     out, *cache],
        ('one', 'pretrain.masked'): [*pairs, *SHAPE, *SHORT, '--output', copy, '--resume', '--epochs', 2]}


# ---------------------------------------------------------------- cases

def read_rows(root, name): return [json.loads(line) for line in (root/name).read_text().splitlines()]


def beside_pictures(root, folder):
    "A folder with the pictures in it."
    shutil.copytree(root/'pictures', folder/'pictures', copy_function=os.link)
    return folder


def line_cases(root, new, rng, n):
    for _ in range(n):
        folder = beside_pictures(root, new())
        name, data = rng.choice(faults.LINES)(rng, read_rows(root, 'pairs.jsonl'))
        path = folder/'pairs.jsonl'
        path.write_bytes(data)
        module, args = rng.choice(sorted(of_lines(root, path, folder/'out', folder).items()))
        if module in MAY_SKIP and rng.random() < .6: args = [*args, '--on_error', 'skip']
        try: records = sum(bool(line.strip()) for line in data.decode().split('\n'))
        except UnicodeDecodeError: records = None
        yield Case('lines', name, module, args, folder, path, **counts(module, folder, records))


def counts(module, folder, records):
    "Where the records of the result are."
    if module == 'embed': return dict(output=folder/'out.jsonl', records=records)
    if module == 'data.shards': return dict(output=folder/'out', records=records)
    return {}


def good_line_cases(root, new, rng, n):
    for _ in range(n):
        folder = beside_pictures(root, new())
        name, data = faults.good_file(rng, read_rows(root, 'pairs.jsonl'))
        path = folder/('pairs' + name.split()[0])
        path.write_bytes(data)
        module, args = rng.choice(sorted(of_lines(root, path, folder/'out', folder).items()))
        yield Case('good lines', name, module, args, folder, path, good=True, **counts(module, folder, RECORDS))


def picture_cases(root, new, rng, n):
    for _ in range(n):
        folder = beside_pictures(root, new())
        name, data = faults.picture(rng)
        path = rng.choice(sorted((folder/'pictures').iterdir()))
        path.unlink()
        path.write_bytes(data)
        shutil.copy(root/'pairs.jsonl', folder)
        commands = of_lines(root, folder/'pairs.jsonl', folder/'out', folder)
        del commands['data.text']
        if rng.random() < .15:
            shutil.copytree(root/'images', folder/'images')
            path = rng.choice(sorted((folder/'images').rglob('*.png')))
            path.write_bytes(data)
            commands = {'label.mnist': ['--data', folder/'images', *MNIST, '--output', folder/'out']}
        module, args = rng.choice(sorted(commands.items()))
        if module in MAY_SKIP and rng.random() < .6: args = [*args, '--on_error', 'skip']
        yield Case('pictures', name, module, args, folder, path, **counts(module, folder, RECORDS))


MNIST = '--emb_dim 8 --depth 1 --num_heads 2 --batch_size 4 --image_size 8 --patch_size 4 --epochs 1'.split()


def shard_cases(root, new, rng, n):
    shards = sorted((root/'shards').glob('*.tar'))
    for _ in range(n):
        folder = new()
        (folder/'shards').mkdir()
        for p in shards: os.link(p, folder/'shards'/p.name)
        path = folder/'shards'/rng.choice(shards).name
        name, data = faults.shard(rng, path.read_bytes())
        path.unlink()
        path.write_bytes(data)
        pattern = folder/f'shards/{{0000..{len(shards) - 1:04}}}.tar'
        module, args = rng.choice(sorted(of_shards(root, pattern, folder/'out', folder).items()))
        if rng.random() < .6: args = [*args, '--on_error', 'skip']
        yield Case('shards', name, module, args, folder, path)


def folder_cases(root, new, rng, n):
    for _ in range(n):
        folder = new()
        (source, module), args = rng.choice(sorted(of_folders(root, folder, folder/'out').items()))
        shutil.copytree(root/source, folder/'given')
        name = faults.damage_folder(rng, folder/'given')
        yield Case('model folders', f'{source}: {name}', module, args, folder, folder/'given')


def settings_cases(root, new, rng, n):
    for _ in range(n):
        folder = beside_pictures(root, new())
        for name in ('pairs.jsonl', 'text.jsonl', 'ask.jsonl'): shutil.copy(root/name, folder)
        name, data = faults.settings(rng, (root/'stop_gradient.yaml').read_text())
        path = folder/'wrong.yaml'
        path.write_bytes(data)
        commands = {'vl.train': [path, '--output', folder/'out', '--epochs', 1, '--precision', 'fp32'],
                    'vl.scaling': [path, '--output', folder/'plan.png']}
        module, args = rng.choice(sorted(commands.items()))
        yield Case('settings', name, module, args, folder, path)


def table_cases(root, new, rng, n):
    for i in range(n):
        folder = new()
        if i % 2:
            path, module = folder/'metrics.csv', 'plots'
            name, data = faults.table(rng, (root/'two/metrics.csv').read_text())
            args = ['--metrics_csv', path, '--output_dir', folder/'out']
        else:
            path, module = folder/'embeddings.jsonl', 'pretrain.map'
            name, data = faults.vectors(rng, read_rows(root, 'embeddings.jsonl'))
            args = [path, '--cluster_domains', rng.choice([0, 3]), '--output', folder/'map.png']
        path.write_bytes(data)
        yield Case('tables', name, module, args, folder, path)


@cache
def flags(module):
    "Flags of a command that take a value."
    help = forked.command(f'mmjepa.{module}', '--help', **ENV).stdout
    return re.findall(r'--(\w+)', help), re.findall(r'^ {2}--(\w+)(?:, --\w+)* [A-Z]', help, re.M)


WRONG = ['-1', 'x', '', '0', 'nan', '1e999', '-', '1,2', 'None', '\u00bd', ' ', '-0.5', '2.5', '../nothing']


def flag_cases(root, new, rng, n):
    for _ in range(n):
        folder = new()
        shutil.copy(root/'pairs.jsonl', folder)
        os.symlink(root/'pictures', folder/'pictures')
        commands = of_lines(root, root/'pairs.jsonl', folder/'out', folder)
        commands |= of_shards(root, root/'shards/{0000..0001}.tar', folder/'out', folder)
        commands |= {'label.mnist': ['--data', root/'images', *MNIST, '--output', folder/'out'],
                     'vl.scaling': [root/'stop_gradient.yaml', '--output', folder/'plan.png'],
                     'export': ['--checkpoint', root/'vl', '--format', 'safetensors', '--output', folder/'out'],
                     'plots': ['--metrics_csv', root/'two/metrics.csv', '--output_dir', folder/'out']}
        module, args = rng.choice(sorted(commands.items()))
        _, valued = flags(module)
        fault = rng.choice(['value'] * 4 + ['unknown', 'no value', 'same', 'file in the way', 'missing'])
        if fault == 'value':
            flag, value = rng.choice([f for f in valued if f not in ('cache_dir', 'data_dir')]), rng.choice(WRONG)
            args, fault = [*args, f'--{flag}={value}'], f'--{flag}={value}'
        if fault == 'unknown': args = [*args, '--colour', 'red']
        if fault == 'no value': args = [*args, f'--{rng.choice(valued)}']
        if fault == 'file in the way':
            (folder/'file').write_text('mine')
            args = [*args, f'--{"output_dir" if module == "plots" else "output"}', folder/'file/out']
        if fault == 'missing': args = [folder/'nothing.jsonl' if a == root/'pairs.jsonl' else a for a in args]
        if fault == 'same' and 'pretrain' in module:
            lines = '--json_data' in args
            args = [*args, '--output', args[args.index('--json_data') + 1] if lines else root/'shards/0000.tar']
        yield Case('command lines', fault, module, args, folder)


KINDS = {line_cases: 110, good_line_cases: 24, picture_cases: 70, shard_cases: 45, folder_cases: 60, settings_cases: 36,
         table_cases: 20, flag_cases: 70}


def cases(root, work, seed=0, share=1.):
    "All of them, the same for the same seed."
    number = iter(range(10**6))
    def new():
        folder = work/f'{next(number):04}'
        folder.mkdir(parents=True)
        return folder
    for make, n in KINDS.items():
        yield from make(root, new, random.Random(f'{make.__name__} {seed}'), max(1, round(n * share)))


# ---------------------------------------------------------------- verdicts

# progress; and what Python says of a command's module that the server of processes has loaded before
ASIDE = r'\|[ █▏▎▍▌▋▊▉#\d]*\||it/s|s/it|\[\d\d:\d\d[<,]|^<frozen runpy>'


def digest(path):
    "Of a file, or of all files of a folder."
    files = [path] if path.is_file() else sorted(p for p in path.rglob('*') if p.is_file())
    return hashlib.sha256(b''.join(str(p).encode() + p.read_bytes() for p in files)).hexdigest()


def written(output):
    "Records of a result."
    if output.is_file(): return sum(bool(line.strip()) for line in output.read_text().splitlines())
    import tarfile
    keys = {(p, m.name.partition('.')[0]) for p in output.glob('*.tar') for m in tarfile.open(p)}
    return len(keys)


def skipped(said):
    found = re.findall(r'([\d,]+)(?: of [\d,]+)? bad (?:records|ones) skipped', said)
    return sum(int(n.replace(',', '')) for n in found)


def judge(case, done, before):
    "What of the end was not allowed."
    said = done.stdout + done.stderr
    lines = [x for x in done.stderr.replace('\r', '\n').splitlines() if x.strip() and not re.search(ASIDE, x)]
    case.status = done.returncode
    if 'Traceback' in said: yield 'traceback'
    elif done.returncode not in (0, 2): yield f'exit status {done.returncode}'
    elif done.returncode == 2 and len(lines) != 1: yield f'{len(lines)} lines of errors'
    elif done.returncode == 2 and not names(case, lines[0]): yield 'the line names neither file nor flag'
    elif done.returncode == 2 and case.good: yield 'a good input is refused'
    if case.bad and not resumes(case) and digest(case.bad) != before: yield 'the input has changed'
    if done.returncode or case.records is None or case.output is None: return
    if written(case.output) + skipped(said) != case.records:
        yield f'{written(case.output)} records written, {skipped(said)} said to be skipped, of {case.records}'


def resumes(case): return '--resume' in case.args


def names(case, line):
    "Whether a line names what is wrong."
    own = [str(case.folder), *([case.bad.name] if case.bad else [])]
    words = set(re.findall(r'\w+', line))
    value = case.fault.partition('=')[2] # what was typed
    return '--' in line or any(n in line for n in [*own, value or '--']) or bool(words & {*flags(case.module)[0]})


def run(case):
    "Run a case and judge it."
    before = digest(case.bad) if case.bad and case.bad.exists() else None
    try: done = forked.finish(forked.start(f'mmjepa.{case.module}', case.args, **ENV, CWD=str(case.folder)), TIMEOUT)
    except AssertionError:
        case.wrong = ['a hang']
        return case
    case.wrong, case.said = list(judge(case, done, before)), done.stderr[-600:] or done.stdout[-300:]
    if not case.wrong: shutil.rmtree(case.folder)
    return case


def campaign(root, work, seed=0, share=1.):
    "All cases, two at a time, and a table of what came of them."
    others = ['label.mnist', 'vl.scaling', 'export', 'plots', 'vl.train', 'pretrain.map']
    for module in [*of_lines(root, root, root, root), *others]: flags(module)
    with ThreadPoolExecutor(2) as pool: return list(pool.map(run, cases(root, work, seed, share)))


def summary(done):
    "Lines of a table: kind, cases, ended well, refused in one line, wrong."
    out = ['| input | cases | right result | one line, status 2 | not allowed |', '|---|---|---|---|---|']
    for kind in [*dict.fromkeys(c.kind for c in done), 'all']:
        own = [c for c in done if kind in (c.kind, 'all')]
        n = Counter('wrong' if c.wrong else 'right' if c.status == 0 else 'line' for c in own)
        out.append(f'| {kind} | {len(own)} | {n["right"]} | {n["line"]} | {n["wrong"]} |')
    return out
