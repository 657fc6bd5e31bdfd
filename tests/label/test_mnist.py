"What a user can get wrong with the commands: one line, exit status 2, and nothing that was there is lost."
import json, os, subprocess, sys

import pytest
from PIL import Image

from mmjepa.core import run_command
from mmjepa.label.mnist import main

SMALL = ['--data', 'digits', '--epochs', '1', '--emb_dim', '16', '--depth', '1', '--num_heads', '2', '--max_steps', '3']
command = main.__wrapped__


def complaint(capsys, *argv):
    "The one line that the command prints."
    with pytest.raises(SystemExit) as stop: run_command(command, [*argv])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert 'Traceback' not in '\n'.join(lines)
    return lines[-1]


def tree(root, bad=None, train=3, shades=(0, 40, 80, 120)):
    for split, n in (('train', train), ('test', 2)):
        for k in ('cat', 'dog'):
            (root/split/k).mkdir(parents=True)
            for i in range(n): Image.new('L', (8, 8), shades[i]).save(root/split/k/f'{i}.png')
    return root


@pytest.mark.parametrize('flags, words', [
    (['--data', 'mnits'], ['mnits', 'expected']),
    (['--data', '/nowhere/at/all'], ['/nowhere/at/all', 'expected']),
    (['--preset', 'fast'], ["'fast'", 'quick']),
    ([*SMALL, '--patch-size', '3'], ['patch_size 3', 'image_size 8', 'expected one of']),
    ([*SMALL[:-2], '--num_heads', '3'], ['num_heads 3', 'emb_dim 16']),
    ([*SMALL, '--lr', '-1'], ['lr is -1']),
    ([*SMALL, '--lam', '7'], ['lam is 7']),
    ([*SMALL, '--batch-size', '-4'], ['batch_size is -4']),
    ([*SMALL, '--precision', 'int4'], ['int4', 'expected one of']),
    ([*SMALL, '--batch-size', '1'], ['batch_size is 1', 'expected 2 or more']),
    ([*SMALL, '--output-dir', '/dev/null/run'], ['/dev/null']),
    ([*SMALL, '--tracker', 'notebook'], ['notebook', 'expected one of']),
    ([*SMALL, '--label-drop-prob', '1.5'], ['label_drop_prob is 1.5']),
    ([*SMALL, '--image-size', '-8'], ['image_size is -8']),
    ([*SMALL, '--images-seen', '-5'], ['images_seen is -5']),
    ([*SMALL, '--val-split', 'nan'], ['val_split is nan']),
    ([*SMALL, '--val-split', '.9995'], ['digits', '1 images to train on, all of one class', '--val_split 0']),
])
def test_wrong_values(capsys, tmp_path, flags, words):
    line = complaint(capsys, '--output-dir', str(tmp_path/'run'), *flags)
    assert all(w in line for w in words), line
    assert not (tmp_path/'run/checkpoints').exists()


def test_wrong_folders(capsys, tmp_path):
    def run(root): return complaint(capsys, '--data', str(root), '--output-dir', str(tmp_path/'run'))
    (tmp_path/'empty').mkdir()
    assert 'train' in run(tmp_path/'empty')
    root = tree(tmp_path/'hollow')
    for p in (root/'train/dog').iterdir(): p.unlink()
    assert 'dog' in run(root)
    root = tree(tmp_path/'text')
    (root/'train/cat/1.png').write_text('not a picture')
    assert '1.png' in run(root)
    assert '2' in run(tree(tmp_path/'one', train=1))
    root = tree(tmp_path/'sizes')
    Image.new('L', (9, 12)).save(root/'train/cat/1.png')
    assert 'image_size' in run(root)


def test_the_smallest_sets_run(tmp_path):
    "Two images a class, where one of four is held out; a third of three would leave a class without images."
    flags = ['--epochs', '1', '--emb_dim', '16', '--depth', '1', '--num_heads', '2', '--val_split', '.3']
    for train in (2, 3):
        root = tree(tmp_path/f'{train}', train=train)
        run_command(command, ['--data', str(root), '--output-dir', str(tmp_path/f'run{train}'), *flags])
        assert (tmp_path/f'run{train}/report.md').is_file()


def test_images_that_are_all_the_same(capsys, tmp_path):
    root = tree(tmp_path/'same', shades=(7, 7, 7))
    line = complaint(capsys, '--data', str(root), '--output-dir', str(tmp_path/'run'))
    assert 'all 6 images are the same' in line and '--val_split 0' in line


def test_a_finished_run_is_left_alone(capsys, tmp_path):
    folder = tmp_path/'run'
    flags = [*SMALL, '--output-dir', str(folder)]
    run_command(command, flags)
    before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    assert 'add --resume' in complaint(capsys, *flags)
    assert 'experiment.lr 0.002 -> 0.5' in complaint(capsys, *flags, '--resume', '--lr', '0.5')
    assert {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()} == before
    settings = json.loads((folder/'config.json').read_text())
    settings['experiment']['emb_dim'] = 32  # the settings say one shape, the checkpoint has another
    (folder/'config.json').write_text(json.dumps(settings))
    line = complaint(capsys, *flags, '--resume', '--emb_dim', '32')
    assert 'has shape' in line and 'but the model has' in line


def test_full_disk(tmp_path):
    "A file size limit of the process stands in for a full disk: the kernel refuses the same writes."
    code = f'''
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from mmjepa.core import run_command
from mmjepa.label.mnist import main
run_command(main.__wrapped__, {[*SMALL, '--output-dir', str(tmp_path/'run')]!r})
'''
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert p.returncode == 2, p.stderr
    assert 'cannot write' in p.stderr.strip().splitlines()[-1]
    assert not list((tmp_path/'run/checkpoints').glob('*'))


NAMES = ('output_dir epochs batch_size lr depth num_heads emb_dim patch_size proj_dim no_multimodal eval_every seed '
         'lam label_drop_prob data_dir num_views max_steps resume precision tracker preset data image_size')


def process(*argv, launcher=(), **options):
    "The command as a user starts it."
    argv = [sys.executable, *launcher, '-m', 'mmjepa.label.mnist', *argv]
    return subprocess.run(argv, capture_output=True, text=True, **options)


def test_help_and_hyphens_as_a_process(tmp_path):
    help = process('--help')
    assert help.returncode == 0 and all(f'--{n}' in help.stdout for n in NAMES.split())
    wrong = process(*SMALL, '--batch-size=-4', '--output-dir', str(tmp_path/'run'))
    assert wrong.returncode == 2 and 'batch_size is -4' in wrong.stderr and 'Traceback' not in wrong.stderr


def test_two_processes_under_accelerate(tmp_path):
    "The same module under a launcher: one run, one folder, a report from the first rank."
    launcher = ('-m accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no '
                '--dynamo_backend no').split()
    env = dict(os.environ, OMP_NUM_THREADS='1')
    p = process(*SMALL, '--output-dir', str(tmp_path/'run'), launcher=launcher, env=env, timeout=600)
    assert p.returncode == 0, p.stderr
    assert p.stdout.count('report and pictures') == 1
    expected = {'report.md', 'metrics.csv', 'config.json', 'training.log', 'attention.png', 'model'}
    assert expected <= {f.name for f in (tmp_path/'run').iterdir()}
