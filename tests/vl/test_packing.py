"What records may be: bad ones are one line or counted by record, long ones go on, and a stream resumes with all of it."
import gzip
import json
import shutil
from itertools import islice

import pytest
import torch

from mmjepa.core import UserError, run_command
from mmjepa.data.documents import Files, JsonSource, StreamSource, hub_stream, shard_stream, skip_notes
from mmjepa.data.records import EmptySource, digit_pairs
from mmjepa.data.shards import write_shards
from mmjepa.data.text import ByteTokenizer
from mmjepa.vl import evaluate, train
from mmjepa.vl.evaluation import read_eval_records
from mmjepa.vl.packing import TokenMixture

TOK = ByteTokenizer()


def write_lines(path, records):
    path.write_text('\n'.join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return path


def listed(*files):
    "Files of records that are lists, or functions that make them."
    def read(file, first): return islice(files[file]() if callable(files[file]) else files[file], first, None)
    return Files(len(files), read)


class Large(ByteTokenizer):
    "Says that it has 260 ids, and gives others."
    def encode(self, text):
        if 'bang' in text: raise RuntimeError('no such word\nsecond line')
        return [300] if 'big' in text else [] if 'silent' in text else super().encode(text)


BAD = {'no text': ({'image': 'a.png'}, "has no field 'text'"), 'empty': ({'text': ''}, "'text' is empty"),
       'number': ({'text': 3}, "'text' is 3"), 'half': ({'text': '\ud800'}, 'half a character'),
       'half a prompt': ({'text': 'a', 'prompt': '\ud800'}, 'half a character'),
       'prompt': ({'text': 'a', 'prompt': ['b']}, "'prompt' is ['b']"),
       'no tokens': ({'text': 'silent'}, 'has no tokens'),
       'beyond': ({'text': 'big'}, 'has tokens from 300 to 300; expected 0 to 259'),
       'tokenizer': ({'text': 'bang'}, 'the tokenizer cannot read'), 'line': ('{"text": ', 'broken JSON'),
       'list': ('[1]', 'expected'), 'null': ('{"text": null}', "'text' is None")}


@pytest.mark.parametrize('name', BAD)
def test_a_bad_record_is_one_line_or_counted(tmp_path, name):
    record, said = BAD[name]
    path = write_lines(tmp_path/'a.jsonl', [{'text': 'good'}, record, {'text': 'fine', 'prompt': None}])
    with pytest.raises(UserError) as e: [JsonSource(path, Large()).document(i) for i in range(3)]
    assert said in str(e.value) and 'a.jsonl:2' in str(e.value) and '\n' not in str(e.value)
    source = JsonSource(path, Large(), on_error='skip')
    texts = {TOK.decode(d.ids) for i in range(9) if (d := source.document(i))}
    assert texts == {'good', 'fine'} and source.skipped == {1}
    if isinstance(record, str): return
    stream = StreamSource(listed([{'text': 'good'}, record]), Large(), 'mine', on_error='skip')
    assert sorted(stream.document(i) is None for i in range(4)) == [False, False, True, True] and stream.skipped == {1}
    assert skip_notes({'a': stream})[0].startswith('a: 1 of 2 records were skipped; the first: mine: record 2: ')


def test_a_field_that_was_named_must_be_there(tmp_path):
    path = write_lines(tmp_path/'a.jsonl', [{'content': 'x'}, {'text': 'other'}])
    source = JsonSource(path, TOK, fields={'text': 'content'})
    with pytest.raises(UserError, match="has no field 'content'"): [source.document(i) for i in range(2)]


def test_broken_lines_are_counted_where_records_are_picked(tmp_path):
    path = write_lines(tmp_path/'a.jsonl', [{'text': 'a', 'kind': 'x'}, '{', {'text': 'b', 'kind': 'y'}])
    with pytest.raises(UserError, match='a.jsonl:2: broken JSON'): JsonSource(path, TOK, where={'kind': 'x'})
    source = JsonSource(path, TOK, where={'kind': 'x'}, on_error='skip')
    assert (source.size, source.skipped) == (1, {1}) and TOK.decode(source.document(5).ids) == 'a'


def broken_stream():
    yield {'text': 'a'}
    raise OSError('the disk is gone\nand more')


@pytest.mark.parametrize('start, said', [
    (broken_stream, r'mine: record 2 cannot be read \(the disk is gone\)'), ([3], 'record 1 is a int'),
    (lambda: None, 'record 1 cannot be read'), ([], 'yields no record'),
    ([{'text': ''}] * 2, 'none of 2 records can be used; the first: mine: record [12]')])
def test_a_stream_that_ends_badly(start, said):
    source = StreamSource(listed(start), TOK, 'mine', on_error='skip')
    for _ in range(2):
        with pytest.raises(UserError, match=said): [source.document(i) for i in range(9)]


def test_bad_samples_of_shards_are_counted(tmp_path):
    digit_pairs(tmp_path, 6)
    lines = (tmp_path/'pairs.jsonl').read_text().splitlines()
    write_lines(tmp_path/'some.jsonl', lines)
    write_shards(tmp_path/'some.jsonl', f'{tmp_path}/{{00..}}.tar', say=lambda line: None)
    data = (tmp_path/'00.tar').read_bytes()
    at = data.index(b'\x89PNG')
    (tmp_path/'00.tar').write_bytes(data[:at + 40] + bytes(60) + data[at + 100:])
    for name in tmp_path.glob('*.json'): name.unlink()
    def source(**kw):
        return StreamSource(shard_stream(tmp_path/'00.tar'), TOK, 'tar', image_size=8, longest=40, **kw)
    with pytest.raises(UserError, match='not an image'): [source().document(i) for i in range(6)]
    some = source(on_error='skip')
    assert sum(some.document(i) is None for i in range(12)) == 2 and len(some.skipped) == 1


KINDS = ['array.json', 'lines.JSONL', 'lines.jsonl.gz', 'utf16.jsonl', 'bom.jsonl', 'blank.jsonl']


@pytest.mark.parametrize('name', KINDS)
def test_files_of_every_kind(tmp_path, name):
    records = [{'text': f'täxt {i}'} for i in range(30)]
    lines = ('\n\n' if 'blank' in name else '\n').join(map(json.dumps, records)) + '\n'
    data = (json.dumps(records, indent=1) if 'array' in name else lines)
    data = data.encode({'utf16.jsonl': 'utf-16', 'bom.jsonl': 'utf-8-sig'}.get(name, 'utf-8'))
    (tmp_path/name).write_bytes(gzip.compress(data) if name.endswith('gz') else data)
    sides = [JsonSource(tmp_path/name, TOK, val_split=.2, held_out=h) for h in (False, True)]
    found = [{TOK.decode(s.document(i).ids) for i in range(s.size)} for s in sides]
    assert found[0] | found[1] == {r['text'] for r in records} and len(found[1]) == 6


def test_a_configuration_and_files_of_a_dataset(tmp_path):
    "As the reference's sources need them: one language of many, some files of all; what is not there is one line."
    pytest.importorskip('datasets', reason='pip install mmjepa[hub]')
    for name in ('python', 'c'):
        write_lines(tmp_path/f'{name}.jsonl', [{'meta': {'lang': name}, 'code': [f'{name} {i}']} for i in range(5)])
    configs = ''.join(f'- config_name: {n}\n  data_files: {n}.jsonl\n' for n in ('python', 'c'))
    (tmp_path/'README.md').write_text(f'---\nconfigs:\n{configs}---\n')
    said = {'text': '{code[0]}', 'prompt': '{meta.lang}: '}
    for how in ({'config': 'python'}, {'data_files': ['py*.jsonl']}):
        source = StreamSource(hub_stream(tmp_path, **how), TOK, 'hub', templates=said)
        assert {TOK.decode(source.document(i).ids) for i in range(9)} == {f'python: python {i}' for i in range(5)}
    with pytest.raises(UserError, match='config rust: cannot be streamed') as e: hub_stream(tmp_path, config='rust')
    assert '\n' not in str(e.value)


def test_one_of_several_captions_is_drawn(tmp_path):
    "Another one in other passes; the state of a stream that stopped in the midst of one finds it again."
    path = write_lines(tmp_path/'a.jsonl', [{'text': ['first caption', 'other words']}])
    source = JsonSource(path, TOK)
    said = [TOK.decode(source.document(i).ids) for i in range(20)]
    assert {*said} == {'first caption', 'other words'}
    assert said == [TOK.decode(JsonSource(path, TOK).document(i).ids) for i in range(20)]
    stream = StreamSource(listed([{'text': ['first caption', 'other words']}]), TOK, 'mine')
    assert {TOK.decode(stream.document(i).ids) for i in range(20)} == {*said}


def test_what_is_equal_is_on_one_side(tmp_path):
    "Texts after the same prompt, in a file and in a stream; the same answer to another question is another text."
    records = [{'prompt': f'{i // 3}?', 'text': 'yes'} for i in range(90)]
    path = write_lines(tmp_path/'a.jsonl', records)
    def sources(held):
        yield JsonSource(path, TOK, val_split=.2, held_out=held)
        yield StreamSource(listed(records), TOK, 'mine', val_split=.2, held_out=held)
    for learnt, held in zip(sources(False), sources(True)):
        sides = [{TOK.decode(d.ids) for d in map(s.document, range(90)) if d} for s in (learnt, held)]
        assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 30 and 1 < len(sides[1]) < 12


def mixture(path, **kw): return TokenMixture({'a': JsonSource(path, TOK, **kw)}, {'a': 1}, 8, pad_id=TOK.pad_id)


def test_a_mixture_passes_over_what_is_skipped_and_resumes(tmp_path):
    "A document of a million tokens is a number in the state, and what was skipped is counted on."
    records = [{'text': 'x' * 1_000_000}, {'text': ''}, {'text': 'end'}]
    first = mixture(write_lines(tmp_path/'a.jsonl', records), on_error='skip')
    rows = [first.row() for _ in range(60)]
    state = json.loads(json.dumps(first.state_dict()))
    assert len(json.dumps(state)) < 1000 and sum(r['text_mask'].sum() for r in rows) == 480
    again = mixture(tmp_path/'a.jsonl', on_error='skip')
    again.load_state_dict(state)
    assert again.sources['a'].skipped == first.sources['a'].skipped
    for _ in range(20):
        a, b = first.row(), again.row()
        assert all(a[k].equal(b[k]) for k in a)
    write_lines(tmp_path/'a.jsonl', [{'text': 'q'}] * 3)
    with pytest.raises(UserError, match='is not what it was'):
        changed = mixture(tmp_path/'a.jsonl')
        changed.load_state_dict(state)
        changed.row()


def test_all_records_broken_is_said_at_once(tmp_path):
    with pytest.raises(EmptySource, match='none of 4 records can be used; the first: .*a.jsonl'):
        mixture(write_lines(tmp_path/'a.jsonl', [{'text': ''}] * 4), on_error='skip').row()


def test_sources_of_equal_names_keep_their_own_counts(tmp_path):
    "The same file twice, under two names: two places in the stream, two counts."
    path = write_lines(tmp_path/'a.jsonl', [{'text': 'abc'}, {'text': ''}, {'text': 'defgh'}])
    sources = {k: JsonSource(path, TOK, on_error='skip', seed=i) for i, k in enumerate(('a', '1 a'))}
    both = TokenMixture(sources, {'a': 1, '1 a': 2}, 8, pad_id=TOK.pad_id)
    for _ in range(9): both.row()
    state = both.state_dict()
    assert {*state['at']} == {*state['sources']} == {'a', '1 a'} and state['at']['a'] != state['at']['1 a']
    assert torch.tensor([*state['drawn'].values()]).sum() == 72


# ---------------------------------------------------------------- links

def test_links_are_followed_where_it_is_said(tmp_path, capsys):
    "A folder of links to the pictures of another set, as people make them; the advice is a flag of both commands."
    (tmp_path/'here').mkdir()
    path = digit_pairs(tmp_path/'there', 12)
    for line in map(json.loads, path.read_text().splitlines()):
        link = tmp_path/'here'/line['image']
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(tmp_path/'there'/line['image'])
    path = shutil.copy(path, tmp_path/'here/pairs.jsonl')
    for read in (lambda **kw: [JsonSource(path, TOK, 8, **kw).document(i) for i in range(12)],
                 lambda **kw: read_eval_records(path, **kw)[0]):
        with pytest.raises(UserError, match='leads out of .* by a link.*--follow_links'): read()
        assert len(read(follow_links=True)) == 12
    for command in (train.main, evaluate.main):
        with pytest.raises(SystemExit): run_command(command, ['--help'])
        assert '--follow_links' in capsys.readouterr().out


def test_a_picture_that_nobody_has_described_is_a_document_without_words(tmp_path):
    digit_pairs(tmp_path, 4)
    records = [{'image': f'png/{i:04}.png'} for i in range(4)]
    source = JsonSource(write_lines(tmp_path/'alone.jsonl', records), TOK, 8, longest=3)
    documents = [source.document(i) for i in range(4)]
    assert all(d.ids.tolist() == [TOK.begin_id] and not d.learn.any() and d.at == (0,) for d in documents)
    assert all(d.images.shape == (1, 3, 8, 8) for d in documents)
    row = TokenMixture({'alone': source}, {'alone': 1}, 3, pad_id=TOK.pad_id, image_size=8).row()
    assert row['image'].shape == (3, 3, 8, 8) and (row['labels'] == -100).all()
