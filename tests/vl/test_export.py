"""Exports, read by other programs: C++ under the sanitizers, onnxruntime, the command as a process."""
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmjepa.core import UserError, run_command
from mmjepa.encoders import EncoderConfig
from mmjepa.export import main
from mmjepa.vl.export import EXPORTED_PARTS, LanguagePath, cpp_include, export_model, read_export
from mmjepa.data.text import ByteTokenizer
from mmjepa.vl.model import VLJEPA, VLJEPAConfig

NORM = 'cross_modal_fusion.norm.weight'

# The example as it is, and the parts of the reader that it doesn't show.
PROBE = r'''
#define main example
#include "example.cpp"
#undef main

static std::string content(const char* path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

static void show(const mmjepa::Json& json) {
    if (json.kind == mmjepa::Json::Kind::number) std::printf("%.17g ", json.number);
    if (json.kind == mmjepa::Json::Kind::string) for (unsigned char c : json.string) std::printf("%02x", c);
    for (const auto& item : json.items) show(item);
}

int main(int argc, char** argv) {
    const std::string mode = argv[1];
    if (mode == "run") return example(argc - 1, argv + 1);
    for (int i = 2; i < argc; ++i) try {
        if (mode == "sha") {  // in pieces of 7 bytes
            const std::string text = content(argv[i]);
            mmjepa::Sha256 sum;
            const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
            for (std::size_t at = 0; at < text.size(); at += 7)
                sum.update(bytes + at, std::min<std::size_t>(7, text.size() - at));
            std::printf("%s", sum.hex().c_str());
        } else if (mode == "json") {
            const mmjepa::Json json = mmjepa::JsonParser::parse(content(argv[i]), argv[i]);
            std::printf("yes "), show(json);
        } else {
            const float first = mmjepa::LanguageModel(mmjepa::Export(argv[i])).logits({1, 2}, 1)[0];
            std::printf("yes %.9g", static_cast<double>(first));
        }
        std::printf("\n");
    } catch (const mmjepa::Error& error) { std::printf("no %s\n", error.what()); }
}
'''


def build(**shape):
    "A model whose biases, scales and attention matter."
    torch.manual_seed(1)
    settings = dict(vocab_size=260, context_length=96, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2,
                    intermediate_size=40, embedding_dim=16) | shape
    vision = EncoderConfig(8, 4, 3, num_classes=0, emb_dim=16, depth=1, num_heads=2)
    model = VLJEPA(VLJEPAConfig(vision, **settings)).eval()
    with torch.no_grad():
        for p in model.parameters(): p.copy_(p * 4 if p.dim() > 1 else p + .2 * torch.randn(p.shape))
    return model


def text_export(model, folder, **options):
    return export_model(model, ByteTokenizer(), folder, text_only=True, **options)


@pytest.fixture(scope='module')
def model(): return build()


@pytest.fixture(scope='module')
def out(model, tmp_path_factory): return text_export(model, tmp_path_factory.mktemp('export')/'cpp')


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "An export that is read fast, to be damaged in many ways."
    model = build(hidden_size=16, num_layers=1, fusion_depth=1, intermediate_size=24)
    return text_export(model, tmp_path_factory.mktemp('small')/'cpp')


@pytest.fixture(scope='module')
def programs(tmp_path_factory):
    "The example as a user compiles it, and with the sanitizers of the compiler."
    if not (compiler := shutil.which('g++')): pytest.skip('no g++ on this machine')
    folder = tmp_path_factory.mktemp('programs')
    (folder/'probe.cpp').write_text(PROBE)
    strict = [compiler, '-std=c++17', '-Wall', '-Wextra', '-Werror', '-I', cpp_include()]
    plain = subprocess.Popen([*strict, '-O2', cpp_include()/'example.cpp', '-o', folder/'example'])
    sanitizers = ['-O0', '-fsanitize=address,undefined', '-fno-sanitize-recover=all']
    checked = subprocess.Popen([*strict, *sanitizers, folder/'probe.cpp', '-o', folder/'probe'])
    assert plain.wait() == 0 and checked.wait() == 0
    return folder


def run(*command):
    "Run a program; one that a sanitizer stopped fails the test."
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60)
    found = 'Sanitizer' in done.stderr or 'runtime error' in done.stderr
    assert done.returncode in (0, 1, 2) and not found, done.stderr
    return done


def logits(*command):
    done = run(*command)
    assert done.returncode == 0, done.stderr
    return torch.tensor([[float(x) for x in line.split()] for line in done.stdout.splitlines()])


def tokens(n, vocabulary=260): return torch.randint(vocabulary, (1, n), generator=torch.Generator().manual_seed(n))


# ---------------------------------------------------------------- the program in C++ computes what PyTorch does

@pytest.mark.parametrize('n', [1, 2, 15, 16, 17, 96])
def test_logits_equal_those_of_pytorch(programs, model, out, n):
    ids = tokens(n)
    with torch.no_grad(): expected = LanguagePath(model)(ids)[0]
    assert expected.std() > .1
    torch.testing.assert_close(logits(programs/'example', out, *ids[0].tolist()), expected, rtol=0, atol=1e-4)
    if n != 17: return
    torch.testing.assert_close(logits(programs/'probe', 'run', out, *ids[0].tolist()), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('shape', [
    dict(num_heads=2, num_kv_heads=2), dict(num_heads=4, num_kv_heads=1), dict(num_layers=1, fusion_depth=3),
    dict(hidden_size=24, num_heads=2, num_kv_heads=1, vocab_size=311, intermediate_size=13),
    dict(tie_embeddings=True), dict(target='ema')], ids=str)
def test_other_shapes(programs, tmp_path, shape):
    model, ids = build(**shape), tokens(9)
    with torch.no_grad(): expected = LanguagePath(model)(ids)[0]
    folder = text_export(model, tmp_path/'cpp')
    assert {n.split('.')[0] for n in read_export(folder)} == {*EXPORTED_PARTS}
    torch.testing.assert_close(logits(programs/'example', folder, *ids[0].tolist()), expected, rtol=0, atol=1e-4)


def test_the_language_path_is_the_models_own(model):
    "What is exported is what the model's forward computes for a text without an image."
    ids = tokens(12)
    with torch.no_grad(): found, expected = LanguagePath(model)(ids), model.logits({'text': ids})
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- damage

WEIGHT, BIAS = f'weights/{NORM}.bin', f'weights/{NORM.replace("weight", "bias")}.bin'


def metadata(folder): return json.loads((folder/'metadata.json').read_text())

def replace_file(path, content):
    "Not in place: the copies of an export share their files."
    path.unlink()
    path.write_bytes(content)

def sign(folder, text):
    "Replace the metadata, with a checksum that fits."
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    replace_file(folder/'metadata.json', text)
    replace_file(folder/'metadata.sha256', hashlib.sha256(text).hexdigest().encode())

def edit(change):
    "Metadata with a change, signed."
    def damage(d):
        about = metadata(d)
        change(about)
        sign(d, about)
    return damage

def tensor(**changes): return edit(lambda about: about['tensors'][NORM].update(changes))

def language(**changes): return edit(lambda about: about['language'].update(changes))

def without(*keys):
    def change(about):
        *outer, last = keys
        for key in outer: about = about[key]
        del about[last]
    return edit(change)

def text(change): return lambda d: sign(d, change((d/'metadata.json').read_bytes()))

def swap(old, new): return text(lambda b: b.replace(old, new))

def file(change, name=WEIGHT): return lambda d: replace_file(d/name, change((d/name).read_bytes()))

def lost(name): return lambda d: (d/name).unlink()

def link(target):
    def damage(d):
        (d/WEIGHT).unlink()
        (d/WEIGHT).symlink_to(target(d))
    return damage

def outside(d):
    shutil.copy(d/BIAS, d.parent/'outside.bin')
    return d.parent/'outside.bin'

def a_folder(d):
    (d/WEIGHT).unlink()
    (d/WEIGHT).mkdir()


OUTSIDE = ['../outside.bin', 'weights/../../outside.bin', '/etc/passwd', 'C:\\x', 'a\0b', '']
SHAPES = [[-1], [2**63], [2**40] * 2, [2**40] * 8, [0, 2**40, 2**40], [1] * 9, [15.5], ['16'], 16, None, [2**62, 4],
          [1e300], [15], [4, 5]]
LANGUAGE = [
    ('heads', 0), ('heads', 3), ('kv_heads', 0), ('kv_heads', 3), ('head_dim', 7), ('head_dim', 2**40), ('layers', 3),
    ('layers', 2**40), ('layers', -1), ('hidden_size', 2**40), ('vocab_size', 1), ('vocab_size', 2**39),
    ('fusion_heads', 5), ('fusion_heads', 0), ('fusion_layers', 9), ('intermediate_size', 0),
    ('fusion_intermediate_size', 2.5), ('context_length', 'many'), ('rms_norm_eps', 0), ('layer_norm_eps', -1),
    ('rotary_scale', None)]
BOTH = {  # refused by both readers: what is done to the folder, what C++ says
    'truncated': (file(lambda b: b[:-1]), 'has 63 bytes; expected 64'),
    'longer': (file(lambda b: b + bytes(4)), 'has 68 bytes; expected 64'),
    'emptied': (file(lambda b: b''), 'has 0 bytes'),
    'flipped': (file(lambda b: bytes([b[0] ^ 1]) + b[1:]), 'is damaged'),
    'tokenizer': (file(lambda b: b + b' ', 'tokenizer/bytes.txt'), 'bytes.txt is damaged'),
    'unsigned': (file(lambda b: b.replace(b'10000.0', b'10001.0'), 'metadata.json'), 'metadata.json is damaged'),
    'no sum': (lost('metadata.sha256'), 'no such file'),
    'empty sum': (file(lambda b: b'', 'metadata.sha256'), 'metadata.json is damaged'),
    'no metadata': (lost('metadata.json'), 'no such file'),
    'missing file': (lost(WEIGHT), 'no such file'), 'a folder': (a_folder, ''),
    'link out': (link(outside), 'leaves the folder'), 'dangling link': (link(lambda d: 'nothing'), 'no such file'),
    'loop': (link(lambda d: f'{NORM}.bin'), ''),
    **{f'path {p!r}': (tensor(path=p), 'is not a path inside the folder') for p in OUTSIDE},
    'path .': (tensor(path='.'), ''), 'path is a number': (tensor(path=7), ''), 'shared file': (tensor(path=BIAS), ''),
    'int8': (tensor(dtype='int8'), 'expected float32'),
    **{f'shape {s}': (tensor(shape=s), '') for s in SHAPES},
    'huge': (tensor(shape=[2**40]), 'expected 4398046511104'), 'no shape': (without('tensors', NORM, 'shape'), 'shape'),
    'no tensors': (without('tensors'), 'tensors'), 'no format': (without('format'), 'format'),
    'version 2': (swap(b'"version": 1', b'"version": 2'), 'version'),
    'other format': (swap(b'mmjepa-cpp', b'mmjepa-abc'), 'format'),
    'cut': (text(lambda b: b[:len(b) // 2]), ''), 'nothing': (text(lambda b: b''), ''),
    'more': (text(lambda b: b + b'{}'), ''), 'deep': (text(lambda b: b'[' * 1_000_000), ''),
    'deep objects': (text(lambda b: b'{"a":' * 200_000), ''), 'a list': (text(lambda b: b'[]'), ''),
    'not text': (text(lambda b: bytes(range(256))), ''),
    'tensors a list': (swap(b'"tensors"', b'"tensors": [], "x"'), ''),
}
CPP = {  # what only the one that computes can know
    'missing tensor': (without('tensors', NORM), f"tensor '{NORM}' is missing"),
    'other shape': (tensor(shape=[2, 8]), 'has shape (2, 8); expected (16)'),
    'twice': (swap(b'"version"', b'"format": "x", "version"'), 'is there twice'),
    'no language': (without('language'), "'language' is missing"),
    'few frequencies': (language(rotary_frequencies=[1.]), 'rotary_frequencies'),
    'words as frequencies': (language(rotary_frequencies=['1'] * 2), 'rotary_frequencies'),
    'no frequencies': (language(rotary_frequencies=3), 'rotary_frequencies'),
    **{f'{k} {v}': (language(**{k: v}), '') for k, v in LANGUAGE},
    'nan': (swap(b'"rotary_scale": 1.0', b'"rotary_scale": NaN'), 'not valid JSON'),
    'infinite': (swap(b'"rotary_scale": 1.0', b'"rotary_scale": 1e999'), 'beyond the range'),
}


@pytest.fixture(scope='module')
def damaged(small, tmp_path_factory):
    "A damaged copy of the export for each entry, by name."
    root = tmp_path_factory.mktemp('damaged')
    folders = {name: root/str(i)/'copy' for i, name in enumerate(BOTH | CPP)}
    for name, d in folders.items():
        shutil.copytree(small, d, copy_function=os.link)
        (BOTH | CPP)[name][0](d)
    return folders


@pytest.fixture(scope='module')
def answers(programs, damaged):
    "What the reader says of each, in one process; a crash or a finding of the sanitizers would end it."
    return dict(zip(damaged, run(programs/'probe', 'many', *damaged.values()).stdout.splitlines(), strict=True))


@pytest.mark.parametrize('name', [*BOTH, *CPP])
def test_damage_is_an_error(answers, damaged, name):
    "One line that says what is wrong, in C++ and in Python."
    assert answers[name].startswith('no ') and (BOTH | CPP)[name][1] in answers[name]
    if name in BOTH:
        with pytest.raises(UserError): read_export(damaged[name])


@pytest.mark.parametrize('name', ['truncated', 'flipped', 'link out', 'missing file', 'huge', 'deep', 'missing tensor',
                                  "path '../outside.bin'"])
def test_the_program_ends_with_an_error(programs, damaged, name):
    done = run(programs/'probe', 'run', damaged[name], 72, 105)
    assert done.returncode == 1 and done.stdout == ''
    assert (BOTH | CPP)[name][1] in done.stderr and done.stderr.count('\n') == 1


@pytest.mark.parametrize('ids, words', [
    (['260'], 'not in the vocabulary'), (['1'] * 97, 'the context length'), (['-1'], 'is not an id'),
    (['1x'], 'is not an id'), (['9' * 40], 'is not an id'), ([''], 'is not an id')])
def test_ids_that_are_none(programs, out, ids, words):
    done = run(programs/'probe', 'run', out, *ids)
    assert done.returncode == 1 and words in done.stderr


def test_random_changes_of_metadata_never_crash(programs, small, tmp_path):
    "Bytes changed, dropped and doubled at random, under a checksum that fits."
    chance, original, folders = random.Random(0), (small/'metadata.json').read_bytes(), []
    def marks(b): return [i for i, c in enumerate(b) if c in b'{}[]",:0123456789']
    def byte(): return bytes([chance.randrange(256)])
    for i in range(60):
        b = bytearray(original)
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.randrange(len(b)) if chance.random() < .5 else chance.choice(marks(b))
            if chance.random() < .3: del b[at:at + chance.choice((1, 1, 40))]
            else:
                new = chance.choice((b'0', b'9' * 20, b'-', b'"', b'{', b']', b'null', b'\\u0000', byte()))
                b[at:at + chance.randrange(2)] = new
        folders.append(shutil.copytree(small, tmp_path/str(i), copy_function=os.link))
        sign(folders[-1], bytes(b))
        with contextlib.suppress(UserError): read_export(folders[-1])
    lines = run(programs/'probe', 'many', *folders).stdout.splitlines()
    assert len(lines) == 60 and sum(x.startswith('no ') for x in lines) > 30


# ---------------------------------------------------------------- the reader's own SHA-256 and JSON

def test_sha256_equals_hashlib(programs, tmp_path):
    sizes = [*range(0, 130), 1000, 65_537]
    contents = [random.Random(n).randbytes(n) for n in sizes]
    for n, b in zip(sizes, contents): (tmp_path/str(n)).write_bytes(b)
    found = run(programs/'probe', 'sha', *(tmp_path/str(n) for n in sizes)).stdout.split()
    assert found == [hashlib.sha256(b).hexdigest() for b in contents]


GOOD = ['null', ' true\n', '[false, {}]', '[]', '"a\\"\\\\\\/\\b\\f\\n\\r\\t"',
        '"\\u00e9\\u20ac\\ud83d\\ude00\\u0000x"',
        '[0, -0.0, 1.5, -2e3, 1E-7, 1e+2, 0.1, 123456789012, 3.4028234663852886e+38, 5e-324]',
        '{"a": {"b": [1, "c"]}, "": 2}', '[' * 32 + ']' * 32]
BAD = ['', ' ', 'nul', 'True', '[1,]', '[,1]', '[1 2]', '{"a":1,}', '{"a" 1}', '{a: 1}', "['a']", '01', '+1', '.5',
       '1.', '1e', '-', '--1', '0x1', 'NaN', '-Infinity', '1e999', '"', '"\\x"', '"\\u12g4"',
       '"\\ud800"', '"\\ud800\\u0041"', '"\\udc00"', '"a\nb"', '"é"', '"\t"', '{"a":1,"a":2}', '[1]]', '1 1', '{', '[[',
       '[' * 33 + ']' * 33, '[' * 10**6, '\ufeff1', '1\0', '[1]\0', '/**/1']

def leaves(tree):
    "Numbers and strings, as the probe shows them."
    if isinstance(tree, dict): return ''.join(map(leaves, tree.values()))
    if isinstance(tree, list): return ''.join(map(leaves, tree))
    if isinstance(tree, str): return tree.encode().hex()
    return '' if tree is None or isinstance(tree, bool) else f'{tree:.17g} '

def test_json_is_read_as_python_reads_it_and_nothing_else(programs, tmp_path):
    for i, x in enumerate(GOOD + BAD): (tmp_path/f'{i:03}').write_bytes(x.encode())
    lines = run(programs/'probe', 'json', *sorted(tmp_path.iterdir())).stdout.splitlines()
    assert len(lines) == len(GOOD + BAD)
    for x, line in zip(GOOD, lines): assert line == f'yes {leaves(json.loads(x))}', x
    for x, line in zip(BAD, lines[len(GOOD):]): assert line.startswith('no ') and 'not valid JSON' in line, (x, line)


# ---------------------------------------------------------------- ONNX

class Doubled(nn.Linear):
    "A head that computes something else while it is traced."
    def forward(self, x): return super().forward(x) * (2 if torch.compiler.is_compiling() else 1)


def test_a_graph_computes_what_pytorch_does(tmp_path):
    "Also for shapes that the trace did not see, and without a word of this machine's files."
    onnxruntime = pytest.importorskip('onnxruntime', reason='pip install mmjepa[onnx]')
    model = build(num_layers=1, fusion_depth=1)
    folder = text_export(model, tmp_path/'onnx', format='onnx')
    session = onnxruntime.InferenceSession(str(folder/'model.onnx'), providers=['CPUExecutionProvider'])
    for shape in ((1, 1), (4, 1), (1, 50), (3, 96)):
        ids = torch.randint(260, shape, generator=torch.Generator().manual_seed(0))
        found = torch.from_numpy(session.run(None, {'ids': ids.numpy()})[0])
        with torch.no_grad(): torch.testing.assert_close(found, LanguagePath(model)(ids), rtol=0, atol=1e-4)
    assert b'.py' not in (folder/'model.onnx').read_bytes() and read_export(folder)


def test_a_graph_that_computes_something_else_is_refused(tmp_path):
    pytest.importorskip('onnxruntime', reason='pip install mmjepa[onnx]')
    other = build(num_layers=1, fusion_depth=1)
    other.autoregressive_head = Doubled(32, 260, bias=False)
    with pytest.raises(UserError, match='onnxruntime and PyTorch differ by .* nothing was written'):
        text_export(other, tmp_path/'onnx', format='onnx')
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the command

def test_the_command_as_a_process(programs, model, tmp_path):
    with contextlib.redirect_stdout(io.StringIO()): model.save_pretrained(tmp_path/'run'/'model')
    ByteTokenizer().save(tmp_path/'run'/'model')
    words = ['--checkpoint', tmp_path/'run', '--output', tmp_path/'cpp', '--text_only']
    done = subprocess.run([sys.executable, '-m', 'mmjepa.export', *words], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert 'text alone, without pictures; read back and checked' in done.stdout
    assert logits(programs/'example', tmp_path/'cpp', 72).shape == (1, 260)


@pytest.mark.parametrize('flags, words', [
    ([], '--checkpoint is missing'), (['--checkpoint', 'nowhere'], 'nowhere: no model there'),
    (['--checkpoint', 'run', '--format', 'pickle'], "format is 'pickle'"),
    (['--checkpoint', 'run', '--output', 'run'], 'run exists and is not an empty folder'),
    (['--checkpoint', 'weightless'], 'weightless/model.safetensors: cannot be read'),
    (['--checkpoint', 'smaller'], 'smaller/model.safetensors: '), (['--checkpoint', 'run'], 'the model reads pictures'),
    (['--checkpoint', 'run', '--format', 'onnx'], 'format onnx does not; expected --text_only'),
    (['--checkpoint', 'silent'], "transformers can't load")])
def test_wrong_flags(model, tmp_path, monkeypatch, capsys, flags, words):
    "One line, exit status 2, and nothing is written."
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()): model.save_pretrained('run')
    shutil.copytree('run', 'silent')  # has no tokenizer
    ByteTokenizer().save('run')
    shutil.copytree('run', 'weightless', ignore=shutil.ignore_patterns('*.safetensors'))
    shutil.copytree('run', 'smaller')
    config = Path('smaller/config.json').read_text()
    Path('smaller/config.json').write_text(config.replace('"hidden_size": 32', '"hidden_size": 16'))
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(SystemExit) as stop: run_command(main.__wrapped__, flags)
    assert stop.value.code == 2 and words in capsys.readouterr().err.strip().splitlines()[-1]
    assert sorted(tmp_path.rglob('*')) == before
