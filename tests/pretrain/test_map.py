"""From embeddings to a map, as processes: two ranks, a stop in the middle, clusters that are kept, bad files."""
import json
import signal
import time

import pytest

from mmjepa.pretrain.contrastive import ContrastiveConfig, ContrastiveModel
from mmjepa.core import seed_everything
from mmjepa.data.records import digit_pairs
from mmjepa.encoders import EncoderConfig
from mmjepa.data.text import load_tokenizer
from mmjepa.pretrain.masked import save_with_tokenizer
from forked import finish, launch, start

ENV = {'ACCELERATE_USE_CPU': '1', 'CUDA_VISIBLE_DEVICES': '', 'NUMBA_NUM_THREADS': '1'}


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
    done = command('mmjepa.pretrain.embed',
                   ['--model', folder/'model', '--json-data', data, '--output', folder/'e.jsonl', '--block', 32])
    assert done.returncode == 0 and '200 embeddings' in done.stdout, done
    return folder


def test_two_ranks_write_what_one_writes(home):
    done = launch('mmjepa.pretrain.embed', '--model', home/'model', '--json-data', home/'pairs.jsonl', '--output',
                  home/'two.jsonl', '--block', 32, **ENV)
    assert [d.returncode for d in done] == [0, 0], done
    assert (home/'two.jsonl').read_text() == (home/'e.jsonl').read_text()


def test_killed_and_started_again(home):
    args = ['--model', home/'model', '--json-data', home/'pairs.jsonl', '--output', home/'killed.jsonl', '--block', '1',
            '--batch_size', '1']
    process, parts = start('mmjepa.pretrain.embed', args, **ENV), home/'killed.jsonl.parts'
    while process.is_alive() and len(list(parts.glob('*.jsonl'))) < 5: time.sleep(.01)
    process.kill()
    assert finish(process).returncode == -signal.SIGKILL
    assert not (home/'killed.jsonl').exists() and 5 <= len(list(parts.glob('*.jsonl'))) < 200
    done = command('mmjepa.pretrain.embed', args)
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
    # every thumbnail inside, nothing from a network
    assert page.count('iVBOR') >= 200 and 'http://' not in page and 'https://' not in page


def line(*v): return json.dumps({'embedding': v})


@pytest.mark.parametrize('lines, args, words', [
    ([line(1., 2.), line(1.)], (), 'bad.jsonl:2: the embedding has 1 numbers and the first one 2'),
    ([line(1., 2.), line(1., float('nan'))], (), 'bad.jsonl:2'),
    ([line(1., 2.)], (), 'holds 1 rows; expected 4 or more'),
    ([line(1., i) for i in range(6)], ('--cluster-domains', 7), 'cluster_domains is 7 for 6 rows'),
    ([line(1., i) for i in range(6)], ('--output', 'x.gif'), 'x.gif'),
    (['{"text": "a"}'], (), "bad.jsonl:1: has no field 'embedding'")])
def test_bad_files_are_one_line(tmp_path, lines, args, words):
    (tmp_path/'bad.jsonl').write_text('\n'.join(lines))
    done = command('mmjepa.pretrain.map', [tmp_path/'bad.jsonl', *(args or ('--output', tmp_path/'x.png'))])
    assert done.returncode == 2 and words in done.stderr and 'Traceback' not in done.stderr, done
