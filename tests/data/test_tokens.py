"""`mmjepa_pack`: killed anywhere it goes on to the same files; what is damaged, half done or changed is one line."""
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from mmjepa.core import UserError
from mmjepa.data.documents import Files, JsonSource, StreamSource
from mmjepa.data.records import EmptySource, digit_pairs
from mmjepa.data.shards import write_shards
from mmjepa.data.text import ByteTokenizer
from mmjepa.data.tokens import PackedSource, Packer, map_part, pack_tokens, read_packed

TOK = ByteTokenizer()
KILLED = """
import sys
from mmjepa.data import tokens
from mmjepa.data.text import ByteTokenizer
tokens.pack_tokens(*sys.argv[1:], ByteTokenizer(), part_bytes=20_000)
"""


def silent(line): pass


def write_lines(path, records):
    path.write_text('\n'.join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return path


def texts(source): return sorted(TOK.decode(source.document(i).ids) for i in range(source.size))


def contents(folder): return {p.name: p.read_bytes() for p in folder.glob('*') if not p.name.startswith('.')}


def test_killed_it_goes_on_to_the_same_files(tmp_path):
    path = write_lines(tmp_path/'a.jsonl', [{'prompt': f'{i}? ', 'text': f'{i} ' * 40} for i in range(3000)])
    pack_tokens(str(path), tmp_path/'whole', TOK, part_bytes=20_000, say=silent)
    for parts in (1, 8, 20):
        words = [sys.executable, '-c', KILLED, str(path), str(tmp_path/'run')]
        run = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        while run.poll() is None and len([*(tmp_path/'run').glob('part-*')]) < parts: time.sleep(.001)
        run.send_signal(signal.SIGKILL)
        assert run.wait(60) == -signal.SIGKILL, 'it ended before it was killed'
        with pytest.raises(UserError, match='is not packed to its end'): PackedSource(tmp_path/'run', TOK)
    (tmp_path/'run'/'.tmp-1-part-00099.safetensors').write_text('left')
    pack_tokens(str(path), tmp_path/'run', TOK, part_bytes=20_000, say=silent)
    assert contents(tmp_path/'run') == contents(tmp_path/'whole')
    live, packed = JsonSource(path, TOK, val_split=.05), PackedSource(tmp_path/'run', TOK)
    for i in range(0, 6000, 7):
        a, b = live.document(i), packed.document(i)
        assert (a.ids == b.ids).all() and (a.learn == b.learn).all()


def test_a_full_disk_is_one_line_and_goes_on(tmp_path):
    path = write_lines(tmp_path/'a.jsonl', [{'text': f'{i} ' * 40} for i in range(500)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))
    try:
        with pytest.raises(UserError, match='cannot write, the file size limit.*the same command goes on') as e:
            pack_tokens(str(path), tmp_path/'run', TOK, part_bytes=20_000, say=silent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, kept)
    assert '\n' not in str(e.value)
    pack_tokens(str(path), tmp_path/'run', TOK, part_bytes=20_000, say=silent)
    assert PackedSource(tmp_path/'run', TOK).size == 475


def test_shards_and_streams_are_packed_with_their_pictures(tmp_path):
    "Held-out documents are those that the live source holds out."
    pairs = digit_pairs(tmp_path, 60)
    write_shards(pairs, f'{tmp_path}/{{00..}}.tar', '20K', say=silent)
    pack_tokens(f'{tmp_path}/{{00..}}.tar', tmp_path/'packed', TOK, part_bytes=3000, val_split=.2, say=silent)
    packed = [PackedSource(tmp_path/'packed', TOK, 8, held_out=h) for h in (False, True)]
    assert packed[0].size + packed[1].size == 60 and len(packed[0].index['parts']) > 2
    live = {}
    for r in map(json.loads, pairs.read_text().splitlines()):
        live.setdefault(r['text'], []).append((tmp_path/r['image']).read_bytes())
    for part in packed:
        assert all(part.document(i).images.shape == (1, 3, 8, 8) for i in range(part.size))
    assert not {*texts(packed[0])} & {*texts(packed[1])}
    stored = [map_part(p) for p in sorted((tmp_path/'packed').glob('part-*'))]
    assert sum(len(p['image_bytes']) for p in stored) == sum(len(x) for some in live.values() for x in some)


def test_a_stream_goes_on_where_it_was(tmp_path):
    "In the midst of the second file, without a look at the first."
    reads = []
    def read(file, first):
        reads.append((file, first))
        for i in range(first, 50): yield {'text': f'{file} {i}'}
    def packer(index):
        source = StreamSource(Files(2, read), TOK, 'mine', val_split=.1)
        return Packer(source, source.other_part(), tmp_path/'run', index=index, part_bytes=400)
    (tmp_path/'run').mkdir()
    index = {'parts': [], 'next': [0, 0], 'skipped': 0, 'reason': ''}
    def until(self, part, goes_on, write=Packer._write):
        write(self, part, goes_on)
        if goes_on and goes_on[0] == 1: raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Packer, '_write', until)
        with pytest.raises(KeyboardInterrupt): packer(index).pack()
    reads.clear()
    packer(json.loads((tmp_path/'run/tokens.json').read_text())).pack()
    assert reads and reads[0][0] == 1 and reads[0][1] > 0
    found = [map_part(tmp_path/'run'/p['name'])['records'].tolist() for p in parts_of(tmp_path/'run')]
    assert sorted(n for some in found for n in some) == [f << 40 | i for f in range(2) for i in range(50)]


def parts_of(folder): return json.loads((folder/'tokens.json').read_text())['parts']


def test_bad_records_are_told_or_counted(tmp_path):
    records = [{'text': f'good {i}'} for i in range(20)] + ['{"text": ', {'text': ''}, {'text': 'x', 'image': 'no.png'}]
    path = write_lines(tmp_path/'a.jsonl', records)
    with pytest.raises(UserError, match=r'a\.jsonl:21: broken JSON'):
        pack_tokens(str(path), tmp_path/'strict', TOK, val_split=0, say=silent)
    said = []
    pack_tokens(str(path), tmp_path/'skips', TOK, val_split=0, say=said.append, on_error='skip')
    assert '20 documents to learn from' in said[0] and '3 records were skipped; the first: ' in said[0]
    with pytest.raises(EmptySource, match='none of|has no record to pack'):
        bad = write_lines(tmp_path/'b.jsonl', [{'text': ''}] * 3)
        pack_tokens(str(bad), tmp_path/'none', TOK, val_split=0, say=silent, on_error='skip')
    with pytest.raises(EmptySource, match='no document held out'):
        PackedSource(tmp_path/'skips', TOK, held_out=True)


@pytest.mark.parametrize('damage, said', [
    (lambda p: p.write_bytes(p.read_bytes()[:-50]), 'would end at byte'), (lambda p: p.unlink(), 'No such file'),
    (lambda p: p.write_bytes(b'abc'), 'cannot be read'), (lambda p: p.write_bytes(b''), 'cannot be read')])
def test_a_damaged_part_is_one_line(tmp_path, damage, said):
    path = write_lines(tmp_path/'a.jsonl', [{'text': f'text {i}'} for i in range(30)])
    pack_tokens(str(path), tmp_path/'run', TOK, say=silent)
    damage(tmp_path/'run/part-00000.safetensors')
    with pytest.raises(UserError, match=said) as e: PackedSource(tmp_path/'run', TOK).document(0)
    assert '\n' not in str(e.value) and 'part-00000' in str(e.value)
    (tmp_path/'run/tokens.json').write_text('{}')
    with pytest.raises(UserError, match='is of another format'): PackedSource(tmp_path/'run', TOK)


def test_the_command(tmp_path):
    records = [{'q': f'{i}?', 'a': [{'says': f'{i}'}], 'of': 'xy'[i % 2]} for i in range(60)]
    path = write_lines(tmp_path/'a.jsonl', records)
    words = [sys.executable, '-m', 'mmjepa.data.tokens', str(path), '--output', str(tmp_path/'run')]
    how = ['--template', '{a[0].says}', '--prompt_template', '{q}', '--where', 'of=x']
    run = subprocess.run(words + how, text=True, capture_output=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert run.returncode == 0 and 'documents to learn from' in run.stdout, run.stderr
    found = read_packed(tmp_path/'run')['parts'][0]
    assert found['learnt'] + found['held_out'] == 30
    assert all(int(x.partition('?')[0]) % 2 == 0 for x in texts(PackedSource(tmp_path/'run', TOK)))
    run = subprocess.run(words + how[:4], text=True, capture_output=True)
    assert run.returncode == 2 and 'expected the same, or another output' in run.stderr.splitlines()[-1]
