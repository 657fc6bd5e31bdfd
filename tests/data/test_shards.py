"""Shards on real processes: ranks that share uneven shards, the command both ways, damaged files in training."""
import bz2
import gzip
import http.server
import io
import json
import lzma
import os
import random
import re
import subprocess
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from PIL import Image

from mmjepa.core import UserError
from mmjepa.data.loaders import get_json_loaders, get_ordered_loader
from mmjepa.data.records import digit_pairs
from mmjepa.data.shards import get_shard_loader, read_shards, write_shards
from mmjepa.data.tars import ShardRecords, tar_samples
from forked import command
from ranks import on_ranks

SIZES, BATCH = (70, 11, 40), 8


def uneven(folder):
    "Three shards of different sizes."
    lines = digit_pairs(folder, sum(SIZES)).read_text().splitlines()
    for i, n in enumerate(SIZES):
        start = sum(SIZES[:i])
        (folder/'part.jsonl').write_text('\n'.join(lines[start:start + n]))
        write_shards(folder/'part.jsonl', f'{folder}/{i}-{{0..}}.tar', say=lambda line: None)
    return f'{folder}/{{0,1,2}}-0.tar'


def epochs(rank, world, urls, workers):
    "Rows of three epochs; every step waits for the other rank, so that an uneven end would hang or raise."
    loader = get_shard_loader(urls, 'pair', BATCH, num_workers=workers, image_size=8, context=8, say=lambda line: None)
    found = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            dist.all_reduce(torch.ones(1))
            found.append(batch['index'])
        dist.barrier()
    return {'rows': torch.stack(found), 'dropped': torch.tensor(loader.dataset.dropped)}


@pytest.mark.parametrize('workers', [0, 2])
def test_two_ranks_end_together_and_lose_nothing_silently(tmp_path, workers):
    a, b = on_ranks(epochs, 2, uneven(tmp_path), workers)
    per_epoch = sum(SIZES) // (2 * BATCH)                        # the rule: equally many full batches on each rank
    assert a['rows'].shape == b['rows'].shape == (3 * per_epoch, BATCH)
    dropped = sum(SIZES) - 2 * per_epoch * BATCH
    assert a['dropped'] == b['dropped'] == dropped > 0           # and the rest is counted
    left = []
    for e in range(3):
        seen = torch.cat([x['rows'][e * per_epoch:(e + 1) * per_epoch].flatten() for x in (a, b)]).tolist()
        assert len(set(seen)) == len(seen)                       # no row twice
        left.append(frozenset(range(sum(SIZES))) - set(seen))
    assert {len(x) for x in left} == {dropped} and len(set(left)) > 1  # others sit out in another epoch


def test_the_command_both_ways(tmp_path):
    pairs = digit_pairs(tmp_path/'in', 60)
    done = command('mmjepa.data.shards', pairs, '--output', f'{tmp_path}/out/{{0000..}}.tar', '--maxsize', '40k')
    assert done.returncode == 0 and '60 records in' in done.stdout, done
    sizes = [p.stat().st_size for p in (tmp_path/'out').glob('*.tar')]
    assert len(sizes) > 1 and max(sizes) <= 40_000
    done = command('mmjepa.data.shards', f'{tmp_path}/out/{{0000..}}.tar', '--output', tmp_path/'back.jsonl')
    assert done.returncode == 0, done
    for old, new in zip(pairs.read_text().splitlines(), (tmp_path/'back.jsonl').read_text().splitlines(), strict=True):
        old, new = json.loads(old), json.loads(new)
        assert (tmp_path/new.pop('image')).read_bytes() == (tmp_path/'in'/old.pop('image')).read_bytes() and old == new


TINY = ('--image-size 8 --patch-size 4 --emb-dim 16 --depth 1 --context 8 --num-heads 2 '
        '--epochs 1 --batch-size 8').split()


@pytest.fixture(scope='module')
def shards(tmp_path_factory): return uneven(tmp_path_factory.mktemp('shards'))


def test_training_on_shards_with_held_out_ones(tmp_path, shards):
    held = ['--val-data', shards, *TINY]
    done = command('mmjepa.pretrain.contrastive', '--pair-data', shards, '--output', tmp_path/'run', *held)
    assert done.returncode == 0 and 'samples sit out each epoch' in done.stdout, done
    unpaired = ['--image-data', shards, '--text-data', shards]
    done = command('mmjepa.pretrain.masked', *unpaired, '--output', tmp_path/'one', *held)
    assert done.returncode == 0 and 'val mim' in done.stdout, done


def test_a_truncated_shard_is_named_or_skipped(tmp_path, shards):
    whole = ShardRecords(shards).urls[0]
    for i in range(2): (tmp_path/f'{i}.tar').write_bytes(Path(whole).read_bytes()[:60_000 if i else None])
    args = ['mmjepa.pretrain.contrastive', '--pair-data', f'{tmp_path}/{{0..1}}.tar', *TINY]
    done = command(*args, '--output', tmp_path/'a')
    assert done.returncode == 2 and '1.tar: cut short or damaged after sample' in done.stderr, done
    assert 'Traceback' not in done.stderr, done
    done = command(*args, '--output', tmp_path/'b', '--on-error', 'skip')
    assert done.returncode == 0 and '1 bad records skipped' in done.stdout and '1.tar: cut short' in done.stdout, done


def test_a_mixture_of_shards_and_lines(tmp_path, shards):
    pairs = digit_pairs(tmp_path/'more', 40)
    data = ['--pair-data', f'{shards}=1 {pairs}=3']
    done = command('mmjepa.pretrain.contrastive', *data, '--output', tmp_path/'run', *TINY)
    assert done.returncode == 0, done
    assert 'weights sum to 4, not 1' in done.stdout and 'an epoch of the mixture' in done.stdout, done


# ---------------------------------------------------------------- whatever is in a tar file

def jpeg(shade=0):
    "A small picture."
    with io.BytesIO() as f:
        Image.new('RGB', (8, 8), (shade, 0, 0)).save(f, 'JPEG')
        return f.getvalue()


def tar(path, members, **options):
    "A tar file of (name, bytes), or of (name, type of a member that is no file)."
    with tarfile.open(path, 'w', **options) as t:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
                info.type, info.linkname, data = data, 'elsewhere', b''
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return path


def load(urls, mode='pair', **options):
    "Records in order, the lines that were said; or the error."
    said = []
    try:
        loader = get_shard_loader(urls, mode, 8, shuffle=False, image_size=8, context=8, say=said.append, **options)
        return [i for batch in loader for i in batch['index'].tolist()], '\n'.join(said)
    except UserError as e: return str(e)


def three(path, **options): return tar(path, [(f'{i}.{e}', b) for i in range(3) for e, b in PAIR], **options)


PAIR = ('jpg', jpeg()), ('txt', b'a')


def test_keys_with_dots_say_what_the_sample_has(tmp_path):
    t = tar(tmp_path/'dots.tar', [(f'22.{k}.{e}', b) for k in ('05', '06') for e, b in PAIR])
    assert 'sample 0, 22: has no image; its members are 05.jpg, 05.txt, 06.jpg, 06.txt; a key ends at the f' in load(t)
    assert 'has no text; its members' in load(t, 'text') and '\n' not in load(t, 'text')


def test_skipped_records_are_counted_one_by_one(tmp_path):
    t = tar(tmp_path/'apart.tar', [(f'{i}.{e}', b) for e, b in PAIR for i in range(2)])
    good = three(tmp_path/'good.tar')
    rows, said = load([t, good], on_error='skip')
    assert rows == [4, 5, 6] and '4 bad records skipped' in said
    assert 'has no text; its members are jpg' in load(t) and 'side by side' in load(t)


@pytest.mark.parametrize('pack', [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_tar_files_in_a_row_are_read_whole(tmp_path, pack):
    a, b = three(tmp_path/'a.tar'), three(tmp_path/'b.tar')
    both = tmp_path/'both.tar'
    both.write_bytes(pack(a.read_bytes()) + pack(b.read_bytes()))
    for url in (both, f'pipe:cat {both}', f'file:{both}'):
        assert load(url) == ([*range(6)], ''), url
    loader = get_shard_loader(str(both), 'pair', 2, image_size=8, say=lambda line: None)
    assert sorted(i for batch in loader for i in batch['index'].tolist()) == [*range(6)]
    both.write_bytes(both.read_bytes()[:-len(pack(b.read_bytes())) // 3])
    found = load(both)
    assert 'both.tar: cut short or damaged after sample' in found and '\n' not in found


def test_one_tar_file_behind_another_with_the_same_key(tmp_path):
    one, two = (tar(tmp_path/f'{i}.tar', [(f'k.{e}', b) for e, b in PAIR]) for i in range(2))
    both = tmp_path/'both.tar'
    both.write_bytes(one.read_bytes() + two.read_bytes())
    assert load(both) == ([0, 1], '')


@pytest.mark.parametrize('tail', [b'junk', b'x' * 512, b'x' * 5000, b'PK\3\4' * 1000])
def test_what_follows_the_end_and_is_no_tar_file_is_named(tmp_path, tail):
    t = three(tmp_path/'a.tar')
    t.write_bytes(t.read_bytes() + tail)
    assert 'a.tar: cut short or damaged' in load(t)
    assert '1 bad records skipped' in load([t, three(tmp_path/'b.tar')], on_error='skip')[1]


@pytest.mark.parametrize('data', [b'', b'\0' * 100, b'text', b'{"text": "a"}\n' * 1000, b'\x1f\x8b', b'BZh9',
                                  b'\xfd7zXZ\0', gzip.compress(b'text', mtime=0), b'\x28\xb5\x2f\xfd' + b'x' * 900,
                                  jpeg()])
def test_what_is_no_tar_file_is_one_line(tmp_path, data):
    (tmp_path/'a.tar').write_bytes(data)
    found = load(tmp_path/'a.tar')
    assert found.startswith(f'{tmp_path}/a.tar: cut short or damaged after its start') and '\n' not in found


def test_no_byte_of_a_tar_file_makes_a_traceback_or_is_lost(tmp_path):
    whole, rng = three(tmp_path/'a.tar', format=tarfile.PAX_FORMAT).read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 30))): data[rng.randrange(rng.choice((512, 6000)))] = rng.randrange(256)
        (tmp_path/'b.tar').write_bytes(data)
        found = load(tmp_path/'b.tar', 'text')
        assert isinstance(found, tuple) or '\n' not in found and 'b.tar' in found, found


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_bad_members_not_missing_ones(tmp_path, kind):
    t = tar(tmp_path/'a.tar', [('0.jpg', jpeg()), ('0.txt', b'a'), ('1.jpg', kind), ('1.txt', b'b'), ('2.txt', b'c')])
    assert load(t, 'text') == f'{t}: sample 1, 1: 1.jpg is a link or a device; expected a file'
    rows, said = load(t, 'text', on_error='skip')
    assert rows == [0, 2] and '1 bad records skipped' in said


def test_folders_and_long_names_of_all_formats(tmp_path):
    long = 'd' * 120 + '/' + 'é' * 60
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        name = 'd' * 60 + '/' + 'k' * 60 if kind == tarfile.USTAR_FORMAT else long
        t = tar(tmp_path/'a.tar', [('my.folder', tarfile.DIRTYPE), (f'{name}.JPG', jpeg()), (f'{name}.TXT', b'a')],
                format=kind)
        assert load(t) == ([0], ''), kind


def test_members_that_belong_to_no_sample_are_counted(tmp_path):
    pair = [(f'0.{e}', b) for e, b in PAIR]
    t = tar(tmp_path/'a.tar', [('README', b'x'), ('._0.jpg', b'x'), *pair, ('0.json', b'{}')])
    assert load(t) == ([0], f'{t}, in order: 1 members hidden, 1 members without an extension left out')
    none = tar(tmp_path/'none.tar', [('img1', jpeg()), ('img2', jpeg())])
    assert '1 shards without a sample (2 members without an extension)' in load(none)


def test_two_members_of_a_kind_are_one_bad_record(tmp_path):
    t = tar(tmp_path/'a.tar', [('0.txt', b'a'), ('0.TXT', b'b'), ('1.txt', b'c')])
    assert 'sample 0, 0: has two members .txt' in load(t, 'text')
    assert load(t, 'text', on_error='skip')[0] == [1]


def test_names_that_are_no_text_stay_one_line(tmp_path):
    t = tar(tmp_path/'a.tar', [('a\nb.txt', b'\xff\xff'), ('caf\udce9.txt', b'\xff\xff'), ('../../x.txt', b'\xff')],
            format=tarfile.GNU_FORMAT, errors='surrogateescape')
    rows, said = load([t, three(tmp_path/'b.tar')], 'text', on_error='skip')
    assert len(rows) == 3 and '3 bad records skipped' in said and '\n' not in said and said.encode()


def test_holes_are_read_and_large_ones_refused(tmp_path):
    if subprocess.run(['tar', '--version'], capture_output=True).returncode: pytest.skip('no tar')
    for size, version in ((70_000, '1.0'), (70_000, '0.1'), (3 << 30, '1.0')):
        with open(tmp_path/'0.txt', 'wb') as f:
            f.truncate(size)
            f.seek(size - 2)
            f.write(b'ab')
        subprocess.run(['tar', '-C', tmp_path, '-S', '--format=pax', f'--sparse-version={version}', '-cf',
                        tmp_path/'a.tar', '0.txt'], check=True)
        if size > 1 << 30: assert '0.txt claims 3,221,225,472 bytes' in load(tmp_path/'a.tar', 'text')
        else: assert [m['txt'][-3:] for _, m in tar_samples(str(tmp_path/'a.tar'))] == [b'\0ab']


def test_texts_in_other_codings(tmp_path):
    texts = ['é, Ω'.encode(code) for code in ('utf-8', 'utf-8-sig', 'utf-16', 'utf-32')]
    t = tar(tmp_path/'a.tar', [(f'{i}.txt', text) for i, text in enumerate(texts)])
    assert {record['text'] for record in ShardRecords(t)} == {'é, Ω'}
    bad = tar(tmp_path/'b.tar', [('0.txt', 'é'.encode('latin-1'))])
    assert 'sample 0, 0.txt: is not UTF-8' in load(bad, 'text')


def test_a_command_that_fails_behind_a_whole_tar_file(tmp_path):
    t = three(tmp_path/'a.tar')
    assert 'its command ended with status 1' in load(f'pipe:cat {t} {tmp_path}/none.tar 2> /dev/null')


def test_shards_of_a_server(tmp_path):
    for name in 'ab': three(tmp_path/f'{name}.tar')
    (tmp_path/'b.tar').write_bytes((tmp_path/'b.tar').read_bytes()[:1500])
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=tmp_path))
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f'http://127.0.0.1:{server.server_port}'
        assert load(f'{at}/a.tar') == ([0, 1, 2], '')
        assert f'{at}/b.tar: cut short or damaged' in load(f'{at}/{{a,b}}.tar')
        assert 'its command ended with status 22' in load(f'{at}/c.tar')
        server.shutdown()


# ---------------------------------------------------------------- which shard is which

def test_shards_of_one_name_in_several_folders_are_all_read(tmp_path):
    for name, n in (('a', 3), ('b', 5)):
        (tmp_path/name).mkdir()
        (tmp_path/name/'x.jsonl').write_text('\n'.join(json.dumps({'text': f'{name}{i}'}) for i in range(n)))
        write_shards(tmp_path/name/'x.jsonl', f'{tmp_path}/{name}/{{0000..}}.tar', say=lambda line: None)
    every = f'{tmp_path}/{{a,b}}/{{0000..}}.tar', f'{tmp_path}/a/{{0000..}}.tar::{tmp_path}/b/{{0000..}}.tar'
    wanted = [f'a{i}' for i in range(3)] + [f'b{i}' for i in range(5)]
    for urls in (*every, f'{tmp_path}/*/0000.tar'):
        assert [r['text'] for r in ShardRecords(urls)] == wanted
    read_shards(every[0], tmp_path/'back.jsonl', say=lambda line: None)
    assert [json.loads(line)['text'] for line in (tmp_path/'back.jsonl').open()] == wanted
    index = tmp_path/'index.json'                                # one for both: whose entry is 0000.tar?
    index.write_text((tmp_path/'a/index.json').read_text())
    assert ShardRecords(every[0], index=str(index)).sizes.tolist() == [3, 5]
    entries = [{'url': f'{name}/0000.tar', 'nsamples': n} for name, n in (('a', 2), ('b', 4))]
    index.write_text(json.dumps({'shardlist': entries}))         # by their whole addresses
    assert ShardRecords(every[0], index=str(index)).sizes.tolist() == [2, 4]
    with pytest.raises(UserError, match='holds more than were counted'): list(ShardRecords(every[0], index=str(index)))


def test_an_index_that_is_older_than_its_shard_is_not_believed(tmp_path):
    (tmp_path/'x.jsonl').write_text('{"text": "a"}\n' * 3)
    shard, = write_shards(tmp_path/'x.jsonl', f'{tmp_path}/{{0..}}.tar', say=lambda line: None)
    size = shard.stat().st_size
    (tmp_path/'y.jsonl').write_text('{"text": "b"}\n' * 2)
    other, = write_shards(tmp_path/'y.jsonl', f'{tmp_path}/other/{{0..}}.tar', say=lambda line: None)
    os.utime(other, (0, 0))
    other.rename(shard)                                          # an old file of the same size
    assert shard.stat().st_size == size
    assert [r['text'] for r in ShardRecords(shard)] == ['b'] * 2


# ---------------------------------------------------------------- packing and unpacking

def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    pairs = digit_pairs(tmp_path/'in', 20)
    def full(*args, **options): raise OSError(28, 'No space left on device')
    for place in ('webdataset.TarWriter.write', 'mmjepa.data.shards.write_text'):
        with monkeypatch.context() as m:
            m.setattr(place, full)
            with pytest.raises(UserError, match='cannot write, the disk is full; no shard is written'):
                write_shards(pairs, f'{tmp_path}/out/{{0..}}.tar')
        assert not [*(tmp_path/'out').glob('*')]


def test_a_second_packer_is_refused(tmp_path):
    pairs = digit_pairs(tmp_path/'in', 3)
    done = command('mmjepa.data.shards', pairs, '--output', f'{tmp_path}/out/{{0..}}.tar')
    assert done.returncode == 0, done
    hold = ('import sys, time; from mmjepa.runs import one_writer\n'
            'with one_writer(sys.argv[1]): print(1, flush=True); time.sleep(60)')
    with subprocess.Popen([sys.executable, '-c', hold, tmp_path/'out'], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        done = command('mmjepa.data.shards', pairs, '--output', f'{tmp_path}/out/b-{{0..}}.tar')
        other.kill()
    assert done.returncode == 2 and 'writes there' in done.stderr and len(list((tmp_path/'out').glob('*.tar'))) == 1


@pytest.mark.parametrize('kind', ['JPEG', 'BMP', 'TIFF', 'PPM', 'TGA', 'JPEG2000', 'GIF'])
def test_pictures_of_all_kinds_there_and_back(tmp_path, kind):
    suffix = {'JPEG2000': 'jp2'}.get(kind, kind.lower())
    for name in (f'a.{suffix}', f'A.{suffix.upper()}', 'plain', 'b.img'):
        Image.new('RGB', (8, 8), 'red').save(tmp_path/name, kind)
    names = [f'a.{suffix}', f'A.{suffix.upper()}', *(() if kind == 'TGA' else ('plain', 'b.img'))] # TGA has no mark
    (tmp_path/'x.jsonl').write_text('\n'.join(json.dumps({'image': name, 'text': 'red'}) for name in names))
    write_shards(tmp_path/'x.jsonl', f'{tmp_path}/s/{{0..}}.tar', say=lambda line: None)
    assert load(f'{tmp_path}/s/{{0..}}.tar') == ([*range(len(names))], '')
    read_shards(f'{tmp_path}/s/{{0..}}.tar', tmp_path/'y.jsonl', say=lambda line: None)
    for name, line in zip(names, (tmp_path/'y.jsonl').open(), strict=True):
        assert (tmp_path/json.loads(line)['image']).read_bytes() == (tmp_path/name).read_bytes()


def test_sounds_other_files_and_the_rest_are_kept_or_counted(tmp_path):
    for name in ('a.wav', 'b.mp4', 'c.png'): (tmp_path/name).write_bytes(b'x')
    rows = [{'audio': 'a.wav', 'text': 'a', 'domain': 'd', 'n': [1, {'b': None}]},
            {'video': 'b.mp4', 'text': '\ufeffa'},
            {'video': 'b.mp4', 'mask': 'c.png', 'text': ['one', 'two']}, {'text': 'a\0b'}, {}]
    (tmp_path/'x.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    done = command('mmjepa.data.shards', tmp_path/'x.jsonl', '--output', f'{tmp_path}/s/{{0..}}.tar')
    assert done.returncode == 0, done
    assert "1 files that the field 'mask' names are not packed; 2 files that the field 'video' names" in done.stdout
    members = {'0.txt': b'a', '0.json': b'{"text": "b", "n": 1}', '0.cls': b'7', 'x': b''}
    extra = tar(tmp_path/'extra.tar', members.items())
    done = command('mmjepa.data.shards', f'{tmp_path}/s/{{0..}}.tar::{extra}', '--output', tmp_path/'y.jsonl')
    assert done.returncode == 0, done
    for words in ("1 fields 'text' of a json beside", '1 members .cls left out', '1 members without an extension left'):
        assert words in done.stdout, words
    *found, last = map(json.loads, (tmp_path/'y.jsonl').read_text().splitlines())
    assert (tmp_path/found[0].pop('audio')).read_bytes() == b'x' and rows[0].pop('audio')
    assert found == rows and last == {'text': 'a', 'n': 1}
    for source, output in ((tmp_path/'x.jsonl', tmp_path/'z.jsonl'), (extra, f'{tmp_path}/z/{{0..}}.tar')):
        done = command('mmjepa.data.shards', source, '--output', output)
        assert done.returncode == 2 and 'expected JSON lines on one side' in done.stderr, done


def test_links_are_packed_where_a_flag_says_so(tmp_path):
    (tmp_path/'a.jpg').write_bytes(jpeg())
    (tmp_path/'in').mkdir()
    (tmp_path/'in/a.jpg').symlink_to(tmp_path/'a.jpg')
    (tmp_path/'in/x.jsonl').write_text('{"image": "a.jpg", "text": "a"}')
    args = 'mmjepa.data.shards', tmp_path/'in/x.jsonl', '--output', f'{tmp_path}/s/{{0..}}.tar'
    done = command(*args)
    assert done.returncode == 2 and 'leads out of' in done.stderr and done.stderr.count('\n') == 1, done
    assert command(*args, '--follow-links').returncode == 0 and load(f'{tmp_path}/s/0.tar') == ([0], '')


def test_fewer_shards_and_batches_than_ranks_and_workers(tmp_path):
    t = three(tmp_path/'a.tar')
    assert load(t, num_workers=2) == ([0, 1, 2], '')
    rows = [load(t, shard=(r, 5))[0] for r in range(5)]
    assert sorted(sum(rows, [])) == [0, 1, 2]
    with pytest.raises(UserError, match='batch_size is 1 on each of 4 ranks.*holds 3 samples'):
        get_shard_loader(t, 'pair', 1, shard=(0, 4))


def test_captions_and_identities_of_shards_are_those_of_lines(tmp_path):
    captions = ['one', 'two', 'three']
    for i in range(16): (tmp_path/f'{i}.jpg').write_bytes(jpeg(i // 2 * 30))
    rows = [{'image': f'{i}.jpg', 'text': captions if i % 2 else 'one'} for i in range(16)]
    (tmp_path/'x.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    write_shards(tmp_path/'x.jsonl', f'{tmp_path}/{{0..}}.tar', say=lambda line: None)
    options = dict(batch_size=16, image_size=8, context=8, say=lambda line: None)
    shards = get_shard_loader(f'{tmp_path}/0.tar', 'pair', shuffle=False, **options)
    lines = get_ordered_loader(tmp_path/'x.jsonl', 'pair', **options)
    for a, b in zip(shards, lines, strict=True):                 # in order, all captions
        assert len(a['index']) == 32 and a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
        assert len(a['ids'][:, 0].unique()) == 8 and len(a['ids'][:, 1].unique()) == 3
    loader, drawn = get_shard_loader(f'{tmp_path}/0.tar', 'pair', **options), set()
    for epoch in range(8):                                       # in training, one of them
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            assert len(batch['index']) == 16
            drawn |= set(batch['ids'][batch['index'] == 1, 1].tolist())
    assert len(drawn) == 3


def test_a_state_holds_for_its_shards_ranks_and_workers(tmp_path):
    for name in 'ab':
        (tmp_path/name).mkdir()
        three(tmp_path/name/'0.tar')
    def opened(name='a', **options):
        return get_shard_loader(tmp_path/name/'0.tar', 'text', 1, context=8, say=lambda line: None, **options)
    first = opened()
    next(iter(first))
    again = opened()
    again.load_state_dict(first.state_dict())
    assert len(list(again)) == 2
    three(tmp_path/'b/0.tar')
    for other in (opened('b'), opened(num_workers=1), opened(shard=(0, 2)), opened(seed=1)):
        with pytest.raises(UserError, match='cannot go on in the middle of an epoch with other'):
            other.load_state_dict(first.state_dict())


def test_a_state_of_lines_holds_for_its_file_ranks_and_workers(tmp_path):
    pairs = digit_pairs(tmp_path, 64)
    def opened(batch=8, **options):
        return get_json_loaders(pairs, 'text', batch, val_split=0, context=8, say=lambda line: None, **options)[0]
    first = opened()
    next(iter(first))
    others = {'batch_size (was 8, is 4)': opened(4), 'num_workers (was 0, is 2)': opened(num_workers=2),
              'seed (was 0, is 1)': opened(seed=1), 'ranks (was 1, is 2)': opened(shard=(0, 2))}
    with open(pairs, 'a') as f: f.write('{"text": "one more"}\n')
    others['records (was 64 of'] = opened()
    for words, other in others.items():
        with pytest.raises(UserError, match=re.escape(words)): other.load_state_dict(first.state_dict())


def test_sides_that_are_packed_together_are_told(tmp_path):
    "A stage learns from all records of a shard; `mmjepa_pairs` writes a set of shards for each side."
    lines = [{'text': f't{i}', 'split': 'held_out' if i % 4 else 'train'} for i in range(12)]
    for name, part in (('both', lines), ('one', lines[::4])):
        said = []
        (tmp_path/f'{name}.jsonl').write_text('\n'.join(map(json.dumps, part)))
        write_shards(tmp_path/f'{name}.jsonl', f'{tmp_path}/{name}/{{0..}}.tar', say=said.append)
        assert ("; 9 of them are held out by their field 'split'" in said[0]) == (name == 'both')
