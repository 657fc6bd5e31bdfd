"""From embeddings to a map, as processes: two ranks, a stop in the middle, clusters that are kept, bad files."""
import json
import signal
import time

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch.nn.functional import normalize
from torch.testing import assert_close

from mmjepa.pretrain.contrastive import ContrastiveConfig, ContrastiveModel
from mmjepa.core import seed_everything
from mmjepa.data.records import digit_pairs
from mmjepa.encoders import EncoderConfig
from mmjepa.data.text import load_tokenizer
from mmjepa.pretrain.map import read_embeddings
from mmjepa.pretrain.masked import save_with_tokenizer
from forked import finish, launch, start

ENV = {'ACCELERATE_USE_CPU': '1', 'CUDA_VISIBLE_DEVICES': '', 'NUMBA_NUM_THREADS': '1'}


def page_data(path): return json.loads(path.read_text().split('id="data">')[1].split('</script>')[0])

def command(module, *runs): return finish(start(module, *runs, **ENV))


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A model, its data, and the embeddings of one process."
    folder = tmp_path_factory.mktemp('map')
    data, tok = digit_pairs(folder, 200), load_tokenizer()
    seed_everything(0)
    encoder = EncoderConfig(8, 4, 3, num_classes=0, emb_dim=16, depth=1, num_heads=2, vocab_size=tok.vocab_size,
                            context=24)
    save_with_tokenizer(ContrastiveModel(ContrastiveConfig(encoder, proj_dim=8)), tok, folder/'model')
    done = command('mmjepa.embed',
                   ['--model', folder/'model', '--json-data', data, '--output', folder/'e.jsonl', '--block', 32])
    assert done.returncode == 0 and '200 embeddings' in done.stdout, done
    return folder


def test_two_ranks_write_what_one_writes(home):
    done = launch('mmjepa.embed', '--model', home/'model', '--json-data', home/'pairs.jsonl', '--output',
                  home/'two.jsonl', '--block', 32, **ENV)
    assert [d.returncode for d in done] == [0, 0], done
    assert (home/'two.jsonl').read_text() == (home/'e.jsonl').read_text()


def test_nothing_is_written_over_and_skips_are_counted(home):
    rows = (home/'pairs.jsonl').read_text().splitlines()
    rows[4], rows[150] = '{"image": "none.png", "text": "x"}', '{"text": "no image"}'
    (home/'x.jsonl').write_text('\n'.join(rows))
    (home/'mine.txt').write_text('mine')
    args, before = ['--model', home/'model', '--json_data', home/'x.jsonl', '--on_error', 'skip'], {}
    for name in ('x.jsonl', 'mine.txt', 'png', 'model/config.json', 'model'):
        if (home/name).is_file(): before[name] = (home/name).read_bytes()
        done = command('mmjepa.embed', [*args, '--output', home/name])
        assert done.returncode == 2 and name in done.stderr and len(done.stderr.splitlines()) == 1, done
    assert all((home/name).read_bytes() == content for name, content in before.items())
    assert len([*(home/'png').iterdir()]) == 200 and (home/'model/model.safetensors').exists()
    done = command('mmjepa.embed', [*args, '--output', home/'good.jsonl'])
    assert done.returncode == 0 and '198 embeddings' in done.stdout and '2 of 200 bad records skipped' in done.stdout
    done = command('mmjepa.embed', [*args, '--output', home/'good.jsonl'])  # its own output again
    assert done.returncode == 0 and len((home/'good.jsonl').read_text().splitlines()) == 198


def test_one_writer_at_a_time(home):
    args = ['--model', home/'model', '--json-data', home/'pairs.jsonl', '--output', home/'both.jsonl', '--block', 1,
            '--batch_size', 1]
    first, parts = start('mmjepa.embed', args, **ENV), home/'both.jsonl.parts'
    while first.is_alive() and not list(parts.glob('*.jsonl')): time.sleep(.01)
    second = command('mmjepa.embed', args)
    assert second.returncode == 2 and 'writes there' in second.stderr, second
    assert finish(first).returncode == 0 and (home/'both.jsonl').exists() and not parts.exists()


def test_a_record_with_captions_has_one_vector(home):
    first = json.loads((home/'pairs.jsonl').read_text().splitlines()[0])
    captions = ['a bold zero', 'a thin one', 'seven']
    rows = [{**first, 'text': captions}, *({**first, 'text': c} for c in captions)]
    (home/'captions.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    done = command('mmjepa.embed', ['--model', home/'model', '--json-data', home/'captions.jsonl', '--of',
                                             'text', '--output', home/'captions_e.jsonl'])
    assert done.returncode == 0 and '4 embeddings' in done.stdout, done
    whole, *each = (torch.tensor(json.loads(x)['embedding']) for x in open(home/'captions_e.jsonl'))
    assert_close(whole, normalize(sum(each), dim=0), atol=1e-5, rtol=0)


def test_killed_and_started_again(home):
    args = ['--model', home/'model', '--json-data', home/'pairs.jsonl', '--output', home/'killed.jsonl', '--block', '1',
            '--batch_size', '1']
    process, parts = start('mmjepa.embed', args, **ENV), home/'killed.jsonl.parts'
    while process.is_alive() and len(list(parts.glob('*.jsonl'))) < 5: time.sleep(.01)
    process.kill()
    assert finish(process).returncode == -signal.SIGKILL
    assert not (home/'killed.jsonl').exists() and 5 <= len(list(parts.glob('*.jsonl'))) < 200
    done = command('mmjepa.embed', args)
    assert done.returncode == 0 and 'were finished before' in done.stdout, done
    def records(name): return [json.loads(line) for line in (home/name).read_text().splitlines()]
    # batches of one: equal to rounding
    for a, b in zip(records('killed.jsonl'), records('e.jsonl'), strict=True):
        far = [abs(x - y) for x, y in zip(a.pop('embedding'), b.pop('embedding'), strict=True)]
        assert max(far) < 1e-5 and a == b


def test_map_clusters_and_scores(home):
    args = [home/'e.jsonl', '--cluster-domains', 10, '--kmeans-model', home/'model.pth']
    # one process: umap compiles itself once
    done = command('mmjepa.pretrain.map', [*args, '--output', home/'umap.png'], [*args, '--output', home/'umap.html'])
    assert done.returncode == 0 and (home/'umap.png').read_bytes()[:4] == b'\x89PNG', done
    first, again = [line for line in done.stdout.splitlines() if 'V-measure' in line]
    # loaded, not trained again
    assert first == again and (home/'model.pth').stat().st_mtime_ns < (home/'umap.png').stat().st_mtime_ns
    page = (home/'umap.html').read_text()
    assert 'cannot be read' not in done.stdout
    # every thumbnail inside, in one picture, nothing from a network
    data = page_data(home/'umap.html')
    assert data['sheet']['tiles'] == [*range(200)] and page.count('data:image/') == 1
    assert 'http://' not in page and 'https://' not in page
    assert data['scores'][1][1] == first.split('V-measure ')[1][:5], 'the scores stand beside the map'


def test_scores_beside_a_baseline(home):
    "Pictures and texts joined, HDBSCAN, rows held out, pixels: one line each, of one width."
    args = ['--model', home/'model', '--json-data', home/'sides.jsonl']
    rows = [json.loads(x) for x in (home/'pairs.jsonl').read_text().splitlines()]
    for i, r in enumerate(rows): r['split'] = 'test' if i % 5 == 0 else 'train'
    (home/'sides.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    done = command('mmjepa.embed', *([*args, '--of', of, '--output', home/f'{of}.jsonl']
                                              for of in ('image', 'text')))
    assert done.returncode == 0, done
    both = ['--of', 'both', '--texts', home/'text.jsonl']
    first = [*both, '--cluster', 'hdbscan', '--baseline', 'pixels', '--output', home/'b.svg']
    second = ['--cluster_domains', 10, '--baseline', home/'text.jsonl', '--output', home/'b.png']
    done = command('mmjepa.pretrain.map', [home/'image.jsonl', *first], [home/'image.jsonl', *second])
    assert done.returncode == 0, done
    lines = [x for x in done.stdout.splitlines() if 'neighbour share' in x]
    assert [x.split()[0] for x in lines] == ['both', 'pixels', 'image', 'text'] and len({*map(len, lines[:2])}) == 1
    assert all('held-out share' in x and 'V-measure' in x for x in lines) and 'have no cluster' in done.stdout
    assert 'held out' in (home/'b.svg').read_text()

    # what scikit-learn finds in the files
    table, texts = (read_embeddings(home/f'{of}.jsonl') for of in ('image', 'text'))
    held, names = table.held_out, np.array(table.domains)
    assert held.sum() == 40
    for values, line in zip((table.vectors, texts.vectors), lines[2:]):
        near = KNeighborsClassifier(1, algorithm='brute').fit(values[~held], names[~held])
        assert f'held-out share {near.score(values[held], names[held]):.4f}' in line
        near = NearestNeighbors(n_neighbors=1, algorithm='brute').fit(values).kneighbors(return_distance=False)[:, 0]
        assert f'neighbour share {(names[near] == names).mean():.4f}' in line
    for file, words in ((home/'text.jsonl', '--of text or both'), (home/'good.jsonl', 'expected the same records')):
        args = ['--texts', file] if 'text.' in file.name else ['--baseline', file]
        (home/'good.jsonl').write_text((home/'e.jsonl').read_text().split('\n', 1)[1])
        done = command('mmjepa.pretrain.map', [home/'image.jsonl', *args, '--output', home/'c.png'])
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done


def line(*v): return json.dumps({'embedding': v})


@pytest.mark.parametrize('lines, args, words', [
    ([line(1., 2.), line(1.)], (), 'bad.jsonl:2: the embedding has 1 numbers and the first one 2'),
    ([line(1., 2.), line(1., float('nan'))], (), 'bad.jsonl:2'),
    ([line(1., 2.)], (), 'holds 1 rows; expected 4 or more'),
    ([line(1., i) for i in range(6)], ('--cluster-domains', 7), 'cluster_domains is 7 for 6 rows'),
    ([line(1., i) for i in range(6)], ('--output', 'x.gif'), 'x.gif'),
    (['{"text": "a"}'], (), "bad.jsonl:1: has no field 'embedding'"),
    (['{"embedding": ["1", "2"]}'] * 6, (), "bad.jsonl:1: 'embedding' is ['1'"),
    (['{"embedding": [[1, 2]]}'] * 6, (), "bad.jsonl:1: 'embedding' is [[1"),
    (['{"embedding": [null, true]}'] * 6, (), "bad.jsonl:1: 'embedding' is [None"),
    ([line(1., 2.)] * 6, ('--cluster-domains', 2), 'the rows have only 1 different vectors')])
def test_bad_files_are_one_line(tmp_path, lines, args, words):
    (tmp_path/'bad.jsonl').write_text('\n'.join(lines))
    done = command('mmjepa.pretrain.map', [tmp_path/'bad.jsonl', *(args or ('--output', tmp_path/'x.png'))])
    assert done.returncode == 2 and words in done.stderr and 'Traceback' not in done.stderr, done


def test_rows_without_a_domain_and_pictures_that_are_not_there(tmp_path, home):
    "0 and False are domains; what is missing is counted, and clusters are scored on the others."
    domains = [0, 0, 0, False, False, False, None, float('nan'), '', 'drop']
    rows = [json.loads(x) for x in (home/'e.jsonl').read_text().splitlines()[:10]]
    for i, (row, d) in enumerate(zip(rows, domains)):
        row |= {'domain': d, 'embedding': [1. + i % 2, 0.] if i < 3 else [0., 1. + i % 2]}
        if d == 'drop': del row['domain']
    (tmp_path/'e.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    page, image = tmp_path/'m.html', tmp_path/'m.PNG'
    done = command('mmjepa.pretrain.map', [tmp_path/'e.jsonl', '--cluster_domains', 2, '--output', page],
                   [tmp_path/'e.jsonl', '--output', image], [tmp_path/'e.jsonl', '--output', page, '--images', home])
    assert done.returncode == 0, done
    html, png, found = done.stdout.split(f'map: {page}')[0], image.read_bytes()[:4], done.stdout.split('map: ')[-2]
    assert 'V-measure 1.0000' in html and 'on 6 rows with a domain' in html and '4 of 10 rows have no domain' in html
    assert '10 of 10 pictures cannot be read, such as row 1' in html and '--images' in html and png == b'\x89PNG'
    assert 'cannot be read' not in found and page_data(page)['sheet']['tiles'] == [*range(10)]


def test_other_peoples_embeddings(tmp_path):
    "Names that a picture or a page could take for more than text; one vector for all; as many domains as rows."
    names = ['</script><script>alert(1)</script>', '$x^2', '_a', '$\\frac{', 'a' * 300, '']
    rows = [{'embedding': [1, 2, 3], 'domain': names[i % 6], 'text': names[i % 6], 'id': i} for i in range(24)]
    many = [{'embedding': [i, 1, i % 7], 'domain': i / 3} for i in range(150)]
    for name, lines in {'same': rows, 'many': many}.items():
        (tmp_path/f'{name}.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    runs = [[tmp_path/f'{name}.jsonl', '--output', tmp_path/f'{name}.{suffix}']
            for name in ('same', 'many') for suffix in ('svg', 'html')]
    done = command('mmjepa.pretrain.map', *runs)
    assert done.returncode == 0 and '_a' in (tmp_path/'same.svg').read_text() and 'Traceback' not in done.stderr, done
    assert (tmp_path/'same.html').read_text().count('</script>') == 2
