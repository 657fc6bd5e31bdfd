"Bad inputs by kind: each generator damages a copy of a good input, differently for each seed."
import gzip
import io
import json
import os
import tarfile

from PIL import Image

# ---------------------------------------------------------------- JSON lines

DEEP = '[' * 5000 + ']' * 5000
VALUES = [None, True, 0, -1, 3.5, 1e400, '', '   ', [], [1], ['a', 3], {}, {'a': 1}, 'x' * 70_000, '\ud800', '\x00',
          '../../etc/passwd', '/etc/passwd', '/dev/zero', '.', '..', 'pictures', 'pictures/nothing.png', 'a\nb',
          '𝛑' * 9, 'file:///etc/passwd', 'http://127.0.0.1:9/x.png', 'pictures/0001.png\x00.txt',
          ['pictures/0001.png'] * 2]


def a_value(rng, rows):
    "A field of one record holds something else."
    row, field = rng.choice(rows), rng.choice(['image', 'text', 'domain'])
    row[field] = rng.choice(VALUES)
    return f'{field} is {json.dumps(row[field])[:30]}', as_lines(rows)


def a_missing_field(rng, rows):
    field = rng.choice(['image', 'text'])
    for row in rows if rng.random() < .3 else [rng.choice(rows)]: row.pop(field, None)
    return f'no {field}', as_lines(rows)


def as_lines(rows): return ('\n'.join(map(json.dumps, rows)) + '\n').encode()


def a_line(rng, rows):
    "One line is something else than an object."
    texts = as_lines(rows).decode().splitlines()
    bad = rng.choice(['{', '{"image": "pictures/0001.png", "text"', '[]', '"text"', '3', 'null', 'NaN', '{"text": NaN}',
                      '{} {}', 'image,text', '{"image": 1}{"text": 2}', DEEP, '{"a": ' + DEEP + '}', '\x00' * 40,
                      "{'image': 'x'}", '// comment', '{"text": "a",}', '9' * 5000])
    texts.insert(rng.randrange(len(texts) + 1), bad)
    return f'a line {bad[:20]!r}', '\n'.join(texts).encode('utf-8', 'surrogatepass')


def a_file(rng, rows):
    "The file as a whole is something else."
    good = as_lines(rows)
    kinds = {'empty': b'', 'blank lines': b'\n\n \n', 'cut': good[:rng.randrange(1, len(good))],
             'an object': b'{"data": [' + b','.join(good.splitlines()) + b']}', 'cut gzip': gzip.compress(good)[:-9],
             'gzip named jsonl': gzip.compress(good), 'no text at all': rng.randbytes(3000),
             'latin 1': good.replace(b'a thin', 'ä thin'.encode('latin1')), 'UTF-32': good.decode().encode('utf-32'),
             'half UTF-16': good.decode().encode('utf-16')[:-1], 'an archive': b'PK\x03\x04' + good,
             'one column': b'text\na\nb\nc\n', 'a page': b'<html><body>404</body></html>'}
    name = rng.choice(sorted(kinds))
    return name, kinds[name]


LINES = [a_value, a_value, a_missing_field, a_line, a_line, a_file]


def good_file(rng, rows):
    "The same records, written as others write them."
    good = as_lines(rows)
    kinds = {'.json': b'[' + b',\n'.join(good.splitlines()) + b']', '.jsonl.gz': gzip.compress(good), '.JSONL': good,
             '.jsonl BOM': b'\xef\xbb\xbf' + good, '.jsonl UTF-16': good.decode().encode('utf-16'),
             '.jsonl CRLF': good.replace(b'\n', b'\r\n'), '.jsonl blank': good.replace(b'\n', b'\n\n') + b'\n \n',
             '.jsonl end': good.rstrip()}
    name = rng.choice(sorted(kinds))
    return name, kinds[name]


# ---------------------------------------------------------------- pictures

FORMATS = ['PNG', 'JPEG', 'BMP', 'TIFF', 'GIF', 'WEBP', 'PPM', 'JPEG2000', 'TGA', 'ICO']


def picture(rng):
    "A picture file, damaged or odd."
    kind, size = rng.choice(FORMATS), (rng.randrange(9, 40), rng.randrange(9, 40))
    f, image = io.BytesIO(), Image.effect_noise(size, 60)
    image = image.convert(rng.choice(['L', 'RGB']) if kind != 'GIF' else 'P')
    image.save(f, kind)
    data = bytearray(f.getvalue())
    fault = rng.choice(['cut', 'flipped', 'flipped', 'header', 'empty', 'page', 'zeros', 'doubled', 'huge'])
    if fault == 'cut': data = data[:rng.randrange(1, len(data))]
    if fault == 'flipped':
        for _ in range(rng.randrange(1, 9)): data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if fault == 'header': data[:rng.randrange(2, 16)] = bytes(rng.randrange(256) for _ in range(4))
    if fault == 'empty': data = b''
    if fault == 'page': data = b'<html>not found</html>'
    if fault == 'zeros': data[len(data) // 2:] = bytes(len(data) // 2)
    if fault == 'doubled': data = data * 2
    if fault == 'huge': kind, data = 'PNG', huge_png()
    return f'{kind} {fault}', bytes(data)


def huge_png():
    "A small file that says it has 60,000 x 60,000 pixels."
    import struct
    import zlib
    def chunk(name, body):
        return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
    head = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(bytes(99))) + chunk(b'IEND', b'')


# ---------------------------------------------------------------- shards

def shard(rng, good):
    "A tar, damaged or odd."
    fault = rng.choice(['cut', 'flipped', 'flipped', 'empty', 'gzip', 'text', 'link', 'outside', 'apart', 'no text',
                        'no image', 'twice', 'bad image', 'bad text', 'device', 'no members', 'joined'])
    data = bytearray(good)
    if fault == 'cut': data = data[:rng.randrange(1, len(data))]
    if fault == 'flipped':
        for _ in range(rng.randrange(1, 9)): data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if fault == 'empty': data = b''
    if fault == 'gzip': data = gzip.compress(good)
    if fault == 'text': data = b'not a tar\n' * 200
    if fault == 'joined': data = good + good
    if fault in ('cut', 'flipped', 'empty', 'gzip', 'text', 'joined'): return fault, bytes(data)
    members = []
    with tarfile.open(fileobj=io.BytesIO(good)) as t: members = [(m.name, t.extractfile(m).read()) for m in t]
    def kind(name): return name.rpartition('.')[2]
    at = rng.randrange(len(members))
    text = next(i for i, (n, _) in enumerate(members) if kind(n) == 'txt')
    image = next(i for i, (n, _) in enumerate(members) if kind(n) in ('png', 'jpg'))
    if fault == 'outside': members[at] = ('../../' + members[at][0], members[at][1])
    if fault == 'apart': members.sort(key=lambda m: kind(m[0]))
    if fault == 'no text': del members[text]
    if fault == 'no image': del members[image]
    if fault == 'twice': members.insert(at, members[at])
    if fault == 'bad image': members[image] = (members[image][0], b'no image')
    if fault == 'bad text': members[text] = (members[text][0], b'\xff\xfe\xfa\x00\x80')
    if fault == 'no members': members = []
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w') as t:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            if fault in ('link', 'device') and name == members[at][0]:
                info.type = tarfile.SYMTYPE if fault == 'link' else tarfile.CHRTYPE
                info.size, info.linkname = 0, '/etc/passwd'
            t.addfile(info, io.BytesIO(body) if info.size else None)
    return fault, f.getvalue()


# ---------------------------------------------------------------- folders of models and tokenizers

def damage_folder(rng, folder):
    "One file of a folder is cut, flipped, emptied, replaced or gone."
    files = sorted(p for p in folder.rglob('*') if p.is_file())
    path = rng.choice(files)
    fault = rng.choice(['cut', 'flipped', 'flipped', 'empty', 'gone', 'a list', 'a page', 'a folder'])
    data = bytearray(path.read_bytes())
    if fault == 'cut': path.write_bytes(data[:rng.randrange(len(data))])
    if fault == 'flipped':
        for _ in range(rng.randrange(1, 5)): data[rng.randrange(min(len(data), 4096))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    if fault == 'empty': path.write_bytes(b'')
    if fault == 'gone': path.unlink()
    if fault == 'a list': path.write_text('[1, 2]')
    if fault == 'a page': path.write_text('<html>not found</html>')
    if fault == 'a folder':
        path.unlink()
        path.mkdir()
    return f'{path.relative_to(folder)} {fault}'


# ---------------------------------------------------------------- settings

def settings(rng, text):
    "A file of YAML with something else in a line."
    rows = text.splitlines()
    at = rng.randrange(len(rows))
    key = rows[at].partition(':')[0]
    fault = rng.choice(['value', 'value', 'value', 'gone', 'tab', 'twice', 'unknown', 'cut', 'binary', 'list', 'tag'])
    if fault == 'value':
        values = ['-1', '0', 'many', '1e99', '.nan', '[1, 2]', '{a: 1}', 'null', "''", 'true', '3.7', '1KB', '-.inf',
                  '"x"', '9' * 20]
        rows[at] = f'{key}: {rng.choice(values)}'
    if fault == 'gone': del rows[at]
    if fault == 'tab': rows[at] = '\t' + rows[at]
    if fault == 'twice': rows.insert(at, rows[at])
    if fault == 'unknown': rows[at] = rows[at].replace(key.strip(), key.strip() + 's', 1)
    if fault == 'list': rows = ['- ' + r for r in rows]
    if fault == 'tag': rows[at] = f'{key}: !!python/object/apply:os.system ["touch hacked"]'
    data = '\n'.join(rows).encode()
    if fault == 'cut': data = data[:rng.randrange(1, len(data))]
    if fault == 'binary': data = bytes(rng.randrange(256) for _ in range(300))
    return f'{fault}: {rows[min(at, len(rows) - 1)].strip()[:40]}', data


# ---------------------------------------------------------------- tables

def table(rng, text):
    "A CSV with something else in it."
    rows = text.splitlines()
    fault = rng.choice(['cut', 'empty', 'head', 'words', 'binary', 'ragged', 'no epoch'])
    if fault == 'head': rows = rows[:1]
    if fault == 'words': rows[-1] = ','.join(['many'] * len(rows[-1].split(',')))
    if fault == 'ragged': rows[-1] += ',1,2,3'
    if fault == 'no epoch': rows[0] = rows[0].replace('epoch', 'time')
    data = '\n'.join(rows).encode()
    if fault == 'cut': data = data[:rng.randrange(1, len(data))]
    if fault == 'empty': data = b''
    if fault == 'binary': data = os.urandom(0) + bytes(rng.randrange(256) for _ in range(300))
    return fault, data


def vectors(rng, rows):
    "Lines of embeddings with something else in one."
    row = rng.choice(rows)
    row['embedding'] = rng.choice([None, [], [1.], 'x', [float('nan')] * 128, [float('inf')] * 128, [None] * 128,
                                   [[1.]] * 128, {'a': 1}, [1e300] * 128, ['1'] * 128, [True] * 128])
    return f'embedding is {str(row["embedding"])[:20]}', as_lines(rows)
