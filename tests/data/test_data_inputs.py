"""What people have: files of records of every kind, images of every mode, rows with one half, captions, links."""
import bz2
import errno
import gzip
import io
import json
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mmjepa.core import UserError, content_id
from mmjepa.data.images import load_images, read_image
from mmjepa.data.loaders import RecordTransform, get_json_loaders, get_ordered_loader
from mmjepa.data.records import (EmptySource, JsonRecords, digit_pairs, record_bytes, record_groups, record_text,
                                 record_texts, split_records, split_rows)
from mmjepa.data.text import as_tokenizer, train_tokenizer
from ranks import on_ranks

SMALL = dict(image_size=8, context=16)


def quiet(line): pass


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(map(json.dumps, rows)))
    return path


def picture(path, value=0, size=(8, 8), **options):
    "A file with a picture that depends on `value` alone."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(value).integers(0, 256, (*size, 3), np.uint8)).save(path, **options)
    return path.name


@pytest.fixture
def rows(tmp_path): return [json.loads(line) for line in digit_pairs(tmp_path, 40).read_text().splitlines()]


def one_line(error, *words):
    "The message of a `UserError`: one line that holds all words."
    text = str(error.value)
    assert len(text.splitlines()) == 1 and 'Traceback' not in text
    for word in words: assert word in text, text
    return text


# ---------------------------------------------------------------- files of records

LINES = ['{"text": "one", "n": 1}', '{"text": "\u03a9 \U0001f600", "deep": [{"a": "]"}]}', '{"text": "three, [4]"}']
TEXT, ARRAY = '\n'.join(LINES), '[' + ', '.join(LINES) + ']'
FILES = {
    'lines': ('a.jsonl', TEXT.encode()), 'no ending': ('a', TEXT.encode()), 'upper': ('A.JSONL', TEXT.encode()),
    'ndjson': ('a.ndjson', TEXT.encode()), 'crlf': ('a.jsonl', TEXT.replace('\n', '\r\n').encode()),
    'mark': ('a.jsonl', b'\xef\xbb\xbf' + TEXT.encode()),
    'marked blank': ('a.jsonl', b'\xef\xbb\xbf\n' + TEXT.encode()),
    'blank': ('a.jsonl', ('\n\n \t\n' + TEXT.replace('\n', '\n\r\n\n') + '\n\n').encode()),
    'utf-16': ('a.jsonl', TEXT.encode('utf-16')), 'utf-16-be': ('a.jsonl', b'\xfe\xff' + TEXT.encode('utf-16-be')),
    'utf-32': ('a.jsonl', TEXT.encode('utf-32')), 'packed': ('a.jsonl.gz', gzip.compress(TEXT.encode())),
    'packed by another name': ('a.jsonl', gzip.compress(TEXT.encode())),
    'twice packed': ('a.jsonl.gz', gzip.compress(TEXT[:20].encode()) + gzip.compress(TEXT[20:].encode())),
    'packed utf-16': ('a.gz', gzip.compress(TEXT.encode('utf-16'))), 'array': ('a.json', ARRAY.encode()),
    'array of lines': ('a.jsonl', ARRAY.replace('}, {', '},\n{').encode()),
    'pretty array': ('a.json', json.dumps(json.loads(ARRAY), indent=4).encode()),
    'bracket alone': ('a.json', ('\n\n[\n' + ',\n'.join(LINES) + '\n]\n\n').encode()),
    'marked array': ('a.json', b'\xef\xbb\xbf' + ARRAY.encode()), 'utf-16 array': ('a.json', ARRAY.encode('utf-16')),
    'packed array': ('a.json.gz', gzip.compress(ARRAY.encode()))}


@pytest.mark.parametrize('kind', FILES)
def test_every_file_of_records_is_read(tmp_path, kind):
    name, data = FILES[kind]
    (tmp_path/name).write_bytes(data)
    records = JsonRecords(tmp_path/name)
    wanted = [json.loads(line) for line in LINES]
    assert [records.fields(i) for i in (2, 0, 1)] == [wanted[i] for i in (2, 0, 1)]
    assert [r['text'] for r in pickle.loads(pickle.dumps(records))] == [r['text'] for r in wanted]
    array = 'array' in kind or 'bracket' in kind
    assert all(records.place(i).startswith(f'{tmp_path/name}{"[" if array else ":"}') for i in range(3))
    if array: assert records.place(2) == f'{tmp_path/name}[2]'
    for workers in (0, 2) if kind in ('lines', 'packed', 'pretty array') else (0,):
        batches = list(get_ordered_loader(tmp_path/name, 'text', num_workers=workers, **SMALL))
        assert torch.cat([b['index'] for b in batches]).tolist() == [0, 1, 2]


def test_places_are_lines_of_the_file(tmp_path):
    (tmp_path/'a.jsonl').write_text('\n{"text": "a"}\n\n\n{"text": 5}\n  \n[]\n{"text": "b"}\n')
    records = JsonRecords(tmp_path/'a.jsonl', 'skip')
    assert [records.place(i).rpartition(':')[2] for i in range(4)] == ['2', '5', '7', '8']
    assert list(records.each(record_text)) == ['a', 'b']
    assert [place.rpartition(':')[2] for place in records.skipped] == ['5', '7']


REFUSED = {
    '{"data": [{"text": "a"}]}': ('one JSON object', 'data', "jq -c '.data[]'"),
    '{"info": {}, "images": [{"id": 1}], "annotations": [{"id": 2}]}': ('images, annotations', "'.images[]'"),
    '{\n  "data": [\n    {"text": "a"}\n  ]\n}\n': ('one JSON object', "jq -c '.data[]'"),
    '{\n  "text": "a"\n}': ('over several lines', 'jq -c . writes'), '[]': ('holds no line with a record',),
    '': ('holds no line with a record',), '\n \r\n': ('holds no line with a record',),
    '[{"text": "a"}': ('a.json[1]', 'broken JSON'), '[{"text": "a"}, {"text" "b"}]': ('a.json[1]', 'broken JSON'),
    '[{"text": "a"}] {}': ('a.json[1]', 'Extra data')}


@pytest.mark.parametrize('text', REFUSED)
def test_other_files_are_one_line_that_names_them(tmp_path, text):
    (tmp_path/'a.json').write_text(text)
    with pytest.raises(UserError) as error: JsonRecords(tmp_path/'a.json')
    one_line(error, str(tmp_path/'a.json'), *REFUSED[text])


@pytest.mark.parametrize('data', [gzip.compress(b'{"text": "a"}\n' * 99)[:-9], b'\x1f\x8bno', b'\xff\xfea'],
                         ids=['cut', 'nothing packed', 'half a character'])  # packed data holds the time
def test_damaged_files_are_one_line(tmp_path, data):
    (tmp_path/'a.jsonl').write_bytes(data)
    with pytest.raises(UserError) as error: JsonRecords(tmp_path/'a.jsonl')
    one_line(error, f'{tmp_path}/a.jsonl: cannot be read (')


def test_a_bad_element_of_an_array_is_a_bad_record(tmp_path):
    (tmp_path/'a.json').write_text('[{"text": "a"}, 7, {"text": ""}, {"text": "b"}]')
    said = []
    loader = get_ordered_loader(tmp_path/'a.json', 'text', on_error='skip', say=said.append, **SMALL)
    assert next(iter(loader))['index'].tolist() == [0, 3]
    assert list(loader.skipped) == [f'{tmp_path}/a.json[1]', f'{tmp_path}/a.json[2]'] and len(said) == 1


def test_compressions_that_are_not_read_are_named_by_their_lines(tmp_path):
    (tmp_path/'a.jsonl').write_bytes(bz2.compress(b'{"text": "a"}\n'))
    with pytest.raises(UserError) as error: JsonRecords(tmp_path/'a.jsonl')[0]
    one_line(error, 'a.jsonl:1', 'broken JSON')


def test_a_function_that_fails_is_one_line_with_the_place(tmp_path):
    path = write(tmp_path/'a.jsonl', [{'text': 'a'}, {'text': 'b', 'n': 0}, {'text': 'c', 'n': 2}])
    records = JsonRecords(path, 'skip')
    assert list(records.each(lambda r: 1 / r['n'])) == [.5]
    assert [*records.skipped] == [f'{path}:1', f'{path}:2'] and 'ZeroDivisionError' in records.skipped[f'{path}:2']
    with pytest.raises(UserError) as error: list(JsonRecords(path).each(lambda r: 1 / r['n']))
    one_line(error, f'{path}:1', "KeyError: 'n'")


# ---------------------------------------------------------------- rows with one half

def halves(rows): return [{k: r[k]} for i, r in enumerate(rows) for k in [('image', 'text')[i % 2]]]


@pytest.mark.parametrize('mode', ['image', 'text'])
def test_a_mode_takes_the_rows_that_have_what_it_needs(tmp_path, rows, mode):
    path, said = write(tmp_path/'mix.jsonl', halves(rows)), []
    train, val = get_json_loaders(path, mode, 4, say=said.append, **SMALL)
    drawn = {i % 2 for loader in (train, val) for b in loader for i in b['index'].tolist()}
    assert drawn == {0 if mode == 'image' else 1}
    assert len(train.dataset.rows) + len(val.dataset.rows) == 20
    out = [int(line.split(f'have no {mode}')[0].split(' of ')[0].split()[-1]) for line in said]
    assert sum(out) == 20 and all('sit out' in line for line in said)
    list(train)
    assert len(said) == 2 # told once


def test_a_pair_needs_both_and_nothing_is_lost_in_silence(tmp_path, rows):
    path = write(tmp_path/'mix.jsonl', [*rows, {'text': 'alone'}, {'domain': 'neither'}])
    for mode, place in (('pair', 41), ('image', 42), ('text', 42)):
        train = get_json_loaders(path, mode, 4, val_split=0, on_error='skip', say=quiet, **SMALL)[0]
        assert len(list(train)) == len(train) and f'{path}:42' in train.skipped
        with pytest.raises(UserError) as error: list(get_ordered_loader(path, mode, [place - 1], **SMALL))
        one_line(error, "has no field '", f'mix.jsonl:{place}')
    with pytest.raises(EmptySource) as error: get_json_loaders(write(tmp_path/'t.jsonl', [{'text': 'a'}] * 9), 'image')
    one_line(error, 't.jsonl', 'none of its 9 records', "'image'")


def test_a_tokenizer_learns_from_the_texts_that_there_are(tmp_path, rows, capsys):
    mix = halves(rows)
    mix[1]['text'] = ['a plain one', 'a unit']
    write(tmp_path/'mix.jsonl', mix)
    train_tokenizer(tmp_path/'mix.jsonl', tmp_path/'t.spm', 282)
    out = capsys.readouterr().out
    assert '20 records have an image and no text, and sit out' in out and '282 ids from 21 of 40 texts' in out


# ---------------------------------------------------------------- what belongs together

def brute(images, texts):
    "Groups by comparing all rows with all others, until nothing changes."
    groups = list(range(len(images)))
    for _ in groups:
        for i in range(len(groups)):
            for j in range(i):
                alike = (images[i] is not None and images[i] == images[j]) or texts[i] & texts[j]
                if alike and groups[i] != groups[j]: groups = [min(groups[i], groups[j]) if g in (groups[i], groups[j])
                                                               else g for g in groups]
    return np.unique(groups, return_inverse=True)[1].tolist()


@pytest.mark.parametrize('seed', range(5))
def test_groups_are_those_of_bytes_and_texts(tmp_path, seed):
    g = np.random.default_rng(seed)
    kinds = [bytes(9000), bytes(8999) + b'x', bytes(4500) + b'x' + bytes(4499), b'a', b'b', b'']
    (tmp_path/'deep').mkdir()
    images, texts, lines = [], [], []
    for i in range(30):
        content, words = int(g.integers(len(kinds))), {f'{k}' for k in g.integers(40, size=g.integers(1, 3))}
        name = f'{("", "deep/")[i % 2]}{content if i % 3 else f"copy{i}"}.png'
        (tmp_path/name).write_bytes(kinds[content])
        own = i % 5
        images.append(content if own else None)
        texts.append(words if own != 1 else set())
        lines.append({**({'image': name} if own else {}), **({'text': [f' {w}\n' for w in words]} if own != 1 else {})})
    records = JsonRecords(write(tmp_path/'a.jsonl', lines))
    assert record_groups(records).tolist() == brute(images, texts)
    some = g.permutation(30)[:12]
    assert record_groups(records, some).tolist() != [] and len(record_groups(records, some)) == 12


def test_what_cannot_be_read_has_nothing_in_common(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    (tmp_path/'folder').mkdir()
    picture(tmp_path.parent/'outside.png')
    names = [n for name in ('none.png', 'pipe', 'folder', '../outside.png', 'a\0', 5) for n in (name, name)]
    path = write(tmp_path/'a.jsonl', [{'image': name, 'text': f't{i}'} for i, name in enumerate(names)])
    with open(path, 'a') as f: f.write('\nbroken\nbroken\n[]\n[]')
    assert record_groups(JsonRecords(path)).tolist() == list(range(16))


def test_no_image_and_no_text_is_on_both_sides(tmp_path):
    "Five captions an image, and a copy of each image under another name."
    lines = []
    for i in range(20):
        for name in ('a', 'b'): picture(tmp_path/f'{name}{i}.png', i)
        lines += [{'image': f'{"ab"[k % 2]}{i}.png', 'text': f'caption {k} of {i}'} for k in range(5)]
    path = write(tmp_path/'a.jsonl', lines)
    seen = []
    for mode in ('pair', 'image', 'text'):
        train, val = get_json_loaders(path, mode, 5, **SMALL)
        seen.append(val.dataset.rows.tolist())
        assert len(val.dataset.rows) == 10 and not {*train.dataset.rows // 5} & {*val.dataset.rows // 5}
        ids = [torch.cat([b['ids'] for b in loader]) for loader in (train, val)]
        if mode == 'pair': assert not {*ids[0][:, 0].tolist()} & {*ids[1][:, 0].tolist()}
    assert seen[0] == seen[1] == seen[2]
    assert [split_records(JsonRecords(path), seed=s)[1].tolist() for s in (0, 0, 1)][:2] == [seen[0]] * 2


def test_a_set_that_is_one_group_is_one_line(tmp_path):
    picture(tmp_path/'a.png')
    path = write(tmp_path/'a.jsonl', [{'image': 'a.png', 'text': f't{i}'} for i in range(12)])
    with pytest.raises(UserError) as error: get_json_loaders(path, 'pair', 4, **SMALL)
    one_line(error, str(path), 'all 12 records are one group', 'val_split 0', 'held-out data of its own')
    assert len(list(get_json_loaders(path, 'pair', 4, val_split=0, **SMALL)[0])) == 3


def test_rows_that_have_nothing_in_common_are_split_as_before():
    for n, share, seed in ((10, .1, 0), (1000, .25, 3), (17, .5, np.int64(2)), (2, .9, 0)):
        if n > 2: assert all((a == b).all() for a, b in zip(split_rows(n, share, seed),
                                                            split_rows(n, share, seed, groups=np.arange(n)[::-1])))
    assert (split_rows(50, .1, np.int64(3))[1] == split_rows(50, .1, 3)[1]).all()


def test_identities_travel_with_batches(tmp_path):
    picture(tmp_path/'a.png', 1)
    picture(tmp_path/'b.png', 1)
    picture(tmp_path/'c.png', 2)
    texts = 'one', 'two', 'one ', 'c'
    path = write(tmp_path/'a.jsonl', [{'image': f'{x}.png', 'text': t} for x, t in zip('aabc', texts)])
    ids = next(iter(get_ordered_loader(path, 'pair', **SMALL)))['ids']
    assert ids.dtype == torch.int64 and ids.shape == (4, 2)
    assert ids[:, 0].tolist() == [content_id((tmp_path/f'{x}.png').read_bytes()) for x in 'aaac']
    assert ids[:, 1].tolist() == [content_id(t) for t in ('one', 'two', 'one', 'c')]
    for mode, other in (('image', 1), ('text', 0)):
        alone = next(iter(get_ordered_loader(path, mode, **SMALL)))['ids']
        assert len(alone[:, other].unique()) == 4 and alone[:, 1 - other].equal(ids[:, 1 - other])


# ---------------------------------------------------------------- several captions

@pytest.fixture
def captions(tmp_path):
    "24 pictures with 1 to 5 captions each."
    for i in range(24): picture(tmp_path/f'{i}.png', i)
    rows = [{'image': f'{i}.png', 'text': [f'{i}: {k}' for k in range(i % 5 + 1)]} for i in range(24)]
    rows[3]['text'] = '3: 0'
    return write(tmp_path/'captions.jsonl', rows)


def drawn(rank, world, path, batch, workers, epoch, skip=0):
    "Texts of the training batches of this rank, by index."
    tok = as_tokenizer()
    train = get_json_loaders(path, 'pair', batch, num_workers=workers, val_split=.2, **SMALL)[0]
    train.sampler.set_epoch(epoch)
    state = None
    if skip:
        for _ in zip(range(skip), train): pass
        state, train = train.state_dict(), get_json_loaders(path, 'pair', batch, val_split=.2, **SMALL)[0]
        train.sampler.set_epoch(epoch)
        train.load_state_dict(state)
    return {int(i): tok.decode(row) for b in train for i, row in zip(b['index'], b['text'])}


def test_one_caption_is_drawn_in_training(captions):
    first = drawn(0, 1, captions, 2, 0, epoch=1)
    assert all(text.startswith(f'{i}: ') for i, text in first.items()) and len(first) >= 18
    assert drawn(0, 1, captions, 2, 2, epoch=1) == first
    ranks = on_ranks(drawn, 2, str(captions), 1, 0, 1)
    assert {**ranks[0], **ranks[1]} == {**first, **ranks[0], **ranks[1]} and len({**ranks[0], **ranks[1]}) == len(first)
    rest = drawn(0, 1, captions, 2, 0, epoch=1, skip=3)
    assert rest.items() <= first.items() and len(rest) == len(first) - 6
    over = [drawn(0, 1, captions, 2, 0, epoch=e) for e in range(30)]
    seen = {text for epoch in over for text in epoch.values()}
    held = get_json_loaders(captions, 'pair', 2, val_split=.2, **SMALL)[1].dataset.rows
    assert seen == {f'{i}: {k}' for i in range(24) if i not in held for k in range(1 if i == 3 else i % 5 + 1)}


def test_all_captions_are_scored(captions):
    batch = next(iter(get_ordered_loader(captions, 'pair', [4, 3, 2], **SMALL)))
    assert batch['index'].tolist() == [4] * 5 + [3] + [2] * 3
    assert [as_tokenizer().decode(row) for row in batch['text']] == [f'4: {k}' for k in range(5)] + ['3: 0'] + \
        [f'2: {k}' for k in range(3)]
    assert len(batch['ids'][:, 0].unique()) == 3 and len(batch['ids'][:, 1].unique()) == 9
    for mode, count in (('image', 24), ('text', sum(1 if i == 3 else i % 5 + 1 for i in range(24)))):
        assert sum(len(b['index']) for b in get_ordered_loader(captions, mode, **SMALL)) == count


@pytest.mark.parametrize('text, words', [([], "'text' is []"), (['a', 5], "'text' is ['a', 5]"),
                                         (['a', None], "'text' is"), (['a', ' '], 'caption 2 of 2 is empty'),
                                         ([['a']], "'text' is [['a']]")])
def test_bad_captions_are_one_bad_record(tmp_path, text, words):
    path = write(tmp_path/'a.jsonl', [{'text': 'a'}, {'text': text}, {'text': ['b', 'c']}])
    with pytest.raises(UserError) as error: list(get_ordered_loader(path, 'text', **SMALL))
    one_line(error, f'{path}:2', words)
    for workers in (0, 2):
        loader = get_ordered_loader(path, 'text', num_workers=workers, on_error='skip', say=quiet, **SMALL)
        assert [b['index'].tolist() for b in loader] == [[0, 2, 2]] and [*loader.skipped] == [f'{path}:2']
    assert record_texts({'text': ['b', 'c']}) == ['b', 'c']


# ---------------------------------------------------------------- links

def test_links_out_of_the_folder_are_followed_when_asked(tmp_path, capsys):
    picture(tmp_path/'store/a.png', 1)
    data = tmp_path/'data'
    picture(data/'b.png', 2)
    (data/'a.png').symlink_to('../store/a.png')
    (data/'c.png').symlink_to('b.png')
    (data/'all').symlink_to(tmp_path/'store')
    path = write(data/'x.jsonl', [{'image': name, 'text': name} for name in ('b.png', 'c.png', 'a.png', 'all/a.png')])
    assert len(next(iter(get_ordered_loader(path, 'pair', [0, 1], **SMALL)))['index']) == 2
    for row in (2, 3):
        with pytest.raises(UserError) as error: list(get_ordered_loader(path, 'pair', [row], **SMALL))
        one_line(error, f'{path}:{row + 1}', 'by a link', '--follow_links')
    batch = next(iter(get_ordered_loader(path, 'pair', follow_links=True, **SMALL)))
    assert batch['ids'][2, 0] == batch['ids'][3, 0] == content_id((tmp_path/'store/a.png').read_bytes())
    assert record_groups(JsonRecords(path, follow_links=True)).tolist() == [0, 0, 1, 1]
    train, val = get_json_loaders(path, 'pair', 1, val_split=.5, follow_links=True, num_workers=1, **SMALL)
    assert sorted(torch.cat([b['index'] for loader in (train, val) for b in loader]).tolist()) == [0, 1, 2, 3]
    for name in ('../store/a.png', 'all/../store/a.png', str(tmp_path/'store/a.png'), 'all/../../store/a.png'):
        for follow in (False, True):
            with pytest.raises(UserError): record_bytes({'image': name}, data, follow_links=follow)


def test_links_in_a_folder_of_pictures(tmp_path):
    for split in ('train', 'test'):
        for k in 'ab':
            for i in range(2): picture(tmp_path/f'set/{split}/{k}/{i}.png', i)
    picture(tmp_path/'out.png', 5)
    (tmp_path/'set/train/a/2.png').symlink_to(tmp_path/'out.png')
    with pytest.raises(UserError) as error: load_images(str(tmp_path/'set'))
    one_line(error, 'train/a/2.png', '--follow_links')
    assert len(load_images(str(tmp_path/'set'), follow_links=True)[0]) == 5


# ---------------------------------------------------------------- images

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width, height):
    "A PNG file that says that it is so large."
    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b'')


def stored(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
CUT = {'PNG': 900, 'JPEG': 400, 'TIFF': 500, 'GIF': 60, 'WEBP': 99, 'BMP': 99, 'PPM': 99}
BAD = {'empty': b'', 'text': b'no picture', 'bomb': png(60000, 60000), 'zero': png(0, 5),
       **{f'cut {kind}': stored(noise, kind)[:n] for kind, n in CUT.items()},
       'broken png': stored(noise, 'PNG').replace(b'IDAT', b'IDAX'),
       'floats': stored(Image.new('F', (4, 4), .5), 'TIFF'), 'far floats': stored(Image.new('F', (4, 4), 3e9), 'TIFF'),
       'negative': stored(Image.new('I', (4, 4), -7), 'TIFF')}


@pytest.mark.parametrize('kind', BAD)
def test_a_bad_picture_is_one_line_with_file_and_record(tmp_path, kind, recwarn):
    (tmp_path/'x.png').write_bytes(BAD[kind])
    path = write(tmp_path/'a.jsonl', [{'image': 'x.png', 'text': 'a'}])
    with pytest.raises(UserError) as error: list(get_ordered_loader(path, 'pair', **SMALL))
    one_line(error, f"{path}:1: image 'x.png': not an image that can be read (")
    with pytest.raises(UserError) as error: read_image(BAD[kind])
    one_line(error, 'image: not an image that can be read (')
    with pytest.raises(UserError) as error: read_image(tmp_path/'x.png')
    one_line(error, f'{tmp_path}/x.png: not an image that can be read (')


FORMATS = ('PNG', 'JPEG', 'BMP', 'TIFF', 'PPM', 'TGA', 'JPEG2000', 'WEBP', 'GIF', 'ICO', 'MPO')


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'P', 'CMYK', '1', 'LA', 'I;16'])
def test_every_format_and_mode_is_read_by_every_reader(tmp_path, kind, mode):
    image = noise.resize((32, 32)).convert('L' if mode == 'I;16' else mode)
    if mode == 'I;16' and kind in ('GIF', 'WEBP'): pytest.skip('Pillow clips what it writes')
    if mode == 'I;16': image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    try: data = stored(image, kind)
    except (OSError, KeyError, ValueError): pytest.skip('Pillow does not write it')
    for split in ('train', 'test'):
        for k in 'ab':
            (tmp_path/split/k).mkdir(parents=True)
            for i in range(2): (tmp_path/split/k/f'{i}.img').write_bytes(data)
    pixels = np.asarray(read_image(data))
    assert pixels.shape == (32, 32, 3) and pixels.std() > 20
    path = write(tmp_path/'a.jsonl', [{'image': 'train/a/0.img', 'text': 'a'}])
    batch = next(iter(get_ordered_loader(path, 'pair', image_size=32)))
    assert (batch['image'][0].permute(1, 2, 0).numpy() == pixels).all()
    images = load_images(str(tmp_path))[0].images[0].expand(3, -1, -1).permute(1, 2, 0).numpy()
    assert (images == pixels).all()


def test_the_first_picture_of_an_animation(tmp_path):
    for kind in ('GIF', 'WEBP', 'PNG', 'TIFF'):
        data = stored(noise, kind, save_all=True, append_images=[Image.new('RGB', (40, 30))] * 2)
        assert np.asarray(read_image(data)).shape == (30, 40, 3) and np.asarray(read_image(data)).std() > 20


@pytest.mark.parametrize('dtype', [np.uint8, np.int32, np.int64, np.uint16, bool])
@pytest.mark.parametrize('shape', [(9, 7), (9, 7, 1), (9, 7, 3), (9, 7, 4), (3, 9, 7), (1, 9, 7), (4, 9, 7), (3, 2, 2)])
def test_arrays_are_images(shape, dtype):
    x = np.full(shape, 1 if dtype is bool else 200, dtype)
    for item in (x, torch.from_numpy(x.astype(np.int32) if dtype is np.uint16 else x)):
        if dtype is np.uint16 and isinstance(item, torch.Tensor): continue
        image = read_image(item)
        assert image.size == ((7, 9) if 7 in shape else (2, 2)) and image.mode == 'RGB'
        value = image.getpixel((0, 0))[0] # alpha of 200 on white
        assert value == 255 if dtype is bool else value in (200, 212)


ODD = [*(np.zeros(shape, np.uint8) for shape in ((2, 9, 7), (9,), (1, 3, 9, 7), (0, 9, 3), (9, 7, 5))),
       np.full((9, 9), -1), np.full((9, 9), 256), torch.rand(3, 9, 7), torch.zeros(3, 9, 7, dtype=torch.bfloat16),
       np.zeros((3, 9, 7), complex), np.array([['a']]), None, [[1, 2]], Image.new('RGB', (0, 4))]


@pytest.mark.parametrize('item', ODD, ids=range(len(ODD)))
def test_what_is_no_image_is_one_line(item):
    with pytest.raises(UserError) as error: read_image(item)
    one_line(error, 'image')


def test_a_closed_picture_of_pillow_is_one_line(tmp_path):
    with Image.open(io.BytesIO(stored(noise, 'JPEG'))) as image: pass
    with pytest.raises(UserError) as error: read_image(image)
    one_line(error, 'image of mode RGB')


# ---------------------------------------------------------------- tokenizers

def words_tokenizer(**special):
    "A tokenizer of transformers that knows a few words."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    names = ['[UNK]', *special.values(), 'a', 'plain', 'thin', 'bold', 'one', 'two']
    fast = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token='[UNK]'))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=fast, unk_token='[UNK]', **special)


def test_a_tokenizer_of_transformers_is_taken_as_it_is(tmp_path, rows):
    given = words_tokenizer(pad_token='[PAD]', mask_token='[MASK]')
    path = write(tmp_path/'x.jsonl', rows)
    for tokenizer in (given, given.backend_tokenizer):
        for workers in (0, 1):
            batch = next(iter(get_json_loaders(path, 'pair', 4, tokenizer=tokenizer, num_workers=workers, **SMALL)[0]))
            assert batch['text'].shape == (4, 16) and batch['text_mask'].sum(1).tolist() == [5] * 4
            assert batch['text'].max() < as_tokenizer(tokenizer).vocab_size
    assert next(iter(get_ordered_loader(path, 'text', tokenizer=given, **SMALL)))['text_mask'][:, :5].all()
    assert RecordTransform('text', given)({'text': 'a [MASK]'})['text'].count(as_tokenizer(given).mask_id) == 0


class Odd(type(as_tokenizer())):
    "A tokenizer that is not as it should be."
    def __init__(self, ids):
        super().__init__()
        self.ids = ids
    def encode(self, text): return self.ids if isinstance(self.ids, list) else 1 // self.ids


@pytest.mark.parametrize('ids, words', [([], 'has no token'), ([9, 260], 'expected 0 to 259'), ([-1], 'ids from -1'),
                                        (0, "can't encode (integer division")])
def test_what_a_tokenizer_does_is_one_line_with_the_record(tmp_path, ids, words):
    path = write(tmp_path/'a.jsonl', [{'text': 'some text'}])
    with pytest.raises(UserError) as error: list(get_ordered_loader(path, 'text', tokenizer=Odd(ids), **SMALL))
    one_line(error, f'{path}:1', words)


# ---------------------------------------------------------------- counts, small sets

def test_the_line_about_cut_texts_comes_once(tmp_path):
    path, said = write(tmp_path/'a.jsonl', [{'text': 'x' * 50 + str(i)} for i in range(8)] + [{'text': ''}]), []
    loader = get_ordered_loader(path, 'text', context=8, on_error='skip', say=said.append)
    for _ in range(3): list(loader)
    assert ['cut to' in line for line in said] == [True, False, False]
    assert all('1 bad records skipped' in line for line in said)


@pytest.mark.parametrize('n', [1, 2, 3, 5, 9, 14])
@pytest.mark.parametrize('batch', [1, 4, 64])
def test_a_small_set_runs_or_says_why_not(tmp_path, n, batch):
    for i in range(n): picture(tmp_path/f'{i}.png', i)
    path = write(tmp_path/'a.jsonl', [{'image': f'{i}.png', 'text': f'text {i}'} for i in range(n)])
    try: train, val = get_json_loaders(path, 'pair', batch, **SMALL)
    except UserError as e:
        assert str(path) in str(e) and (n == 1 or batch > n - 1) and len(str(e).splitlines()) == 1
        return
    assert n > 1 and batch <= n - 1 and sum(len(b['index']) for b in train) == (n - 1) // batch * batch
    assert sum(len(b['index']) for b in val) == 1


def test_held_out_rows_that_are_all_bad_are_counted(tmp_path, rows):
    path = write(tmp_path/'x.jsonl', rows)
    for i in split_records(JsonRecords(path))[1]: rows[i]['image'] = 'nope.png'
    write(path, rows)
    val = get_json_loaders(path, 'pair', 4, on_error='skip', say=quiet, **SMALL)[1]
    assert [*val] == [] and len(val.skipped) == len(val.dataset.rows) > 0


def test_one_file_by_many_names(tmp_path):
    picture(tmp_path/'png/a.png')
    (tmp_path/'b.png').symlink_to('png/a.png')
    (tmp_path/'c.png').hardlink_to(tmp_path/'png/a.png')
    names = ['png/a.png', './png/../png/a.png', str(tmp_path/'png/a.png'), 'b.png', 'c.png', 'png//a.png']
    path = write(tmp_path/'a.jsonl', [{'image': name, 'text': f't{i}'} for i, name in enumerate(names)])
    assert record_groups(JsonRecords(path)).tolist() == [0] * 6


def test_a_full_disk_is_no_bad_record(tmp_path):
    def use(record): raise OSError(errno.ENOSPC, 'No space left on device')
    records = JsonRecords(write(tmp_path/'a.jsonl', [{}, {}]), 'skip')
    with pytest.raises(OSError, match='No space left'): list(records.each(use))
