"""The commands and snippets of the four documents that this library comes from, with their flags and file names, by a
shell: only module names are ours, and what makes a run small is added at the end."""
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmjepa.data.records import digit_pairs

PROGRAMS = {  # in the documents: here
    'python train_multimodal_retrieval.py': 'python -m mmjepa.label.mnist',
    'python plot_results.py': 'python -m mmjepa.plots',
    'musk.masked_pretrain': 'mmjepa.pretrain.masked', 'musk.contrastive_pretrain': 'mmjepa.pretrain.contrastive',
    'musk.umap_json': 'mmjepa.pretrain.map', 'musk.json_dataset': 'mmjepa.data.loaders'}
DIGITS = '--data digits --max_steps 3'  # a label run: three steps
SMALL = '--image_size 8 --patch_size 4 --emb_dim 16 --depth 1 --num_heads 2 --context 8'  # a run on pairs


def bash(command, folder, small='', **env):
    "What a command of a document says, and its status."
    for theirs, ours in PROGRAMS.items(): command = command.replace(theirs, ours)
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    env = {**os.environ, 'PATH': path, 'MPLBACKEND': 'agg', 'ACCELERATE_USE_CPU': 'true', **env}
    done = subprocess.run(['bash', '-c', f'{command.strip()} {small}'], cwd=folder, env=env, text=True, timeout=300,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout

def works(command, folder, small='', **env):
    code, out = bash(command, folder, small, **env)
    assert code == 0 and 'Traceback' not in out, out[-3000:]
    return out

def files(folder, *names):
    for name in names: assert (folder/name).exists(), f'{name}: {sorted(p.name for p in folder.rglob("*"))}'

def losses_of_both_splits(run, epochs, *names):
    "Every epoch has each loss of the training and of the held-out records, and they are numbers."
    table = pd.read_csv(run/'metrics.csv')
    columns = [f'{side}loss_{name}' for name in names for side in ('', 'val_')]
    assert len(table) == epochs and np.isfinite(table[columns]).all(axis=None), table[columns]


# ---------------------------------------------------------------- A: images and labels

LABELS = {
    'multimodal': '''python train_multimodal_retrieval.py \\
    --output_dir ./experiments/multimodal \\
    --epochs 50 \\
    --batch_size 128 \\
    --lr 1e-3 \\
    --depth 6 \\
    --num_heads 3 \\
    --emb_dim 192 \\
    --patch_size 4''',
    'baseline': '''python train_multimodal_retrieval.py \\
    --output_dir ./experiments/baseline \\
    --no_multimodal \\
    --epochs 50''',
    'exp_baseline': 'python train_multimodal_retrieval.py --no_multimodal --output_dir exp_baseline --epochs 30',
    'exp_multimodal': 'python train_multimodal_retrieval.py --output_dir exp_multimodal --epochs 50',
    'exp_shallow': 'python train_multimodal_retrieval.py --depth 3 --output_dir exp_shallow',
    'exp_small_patch': 'python train_multimodal_retrieval.py --patch_size 2 --output_dir exp_small_patch'}
LARGE = {  # the same flags with larger numbers
    'exp_deep': 'python train_multimodal_retrieval.py --depth 12 --output_dir exp_deep',
    'exp_large_patch': 'python train_multimodal_retrieval.py --patch_size 8 --output_dir exp_large_patch',
    'all_flags': '''python train_multimodal_retrieval.py --output_dir all_flags --emb_dim 192 --depth 6 --num_heads 3
    --patch_size 4 --proj_dim 64 --epochs 50 --batch_size 128 --lr 1e-3 --eval_every 5'''.replace('\n', ' \\\n')}

def label_run(command, folder):
    where = re.search(r'--output_dir (\S+)', command)[1]
    works(command, folder, DIGITS)
    files(folder/where, 'metrics.csv', 'report.md', 'model/model.safetensors')
    return folder/where

@pytest.mark.parametrize('command', LABELS.values(), ids=LABELS)
def test_label_runs(tmp_path, command):
    run = label_run(command, tmp_path)
    if 'experiments/multimodal' not in command: return
    works('''python plot_results.py \\
    --metrics_csv ./experiments/multimodal/metrics.csv \\
    --output_dir ./experiments/multimodal/plots''', tmp_path)
    assert [*(run/'plots').glob('*.png')]

@pytest.mark.slow
@pytest.mark.parametrize('command', LARGE.values(), ids=LARGE)
def test_larger_label_runs(tmp_path, command): label_run(command, tmp_path)


RETRIEVAL = '''
# Add retrieval evaluation
from retrieval_eval import LabelRetrievalEvaluator

evaluator = LabelRetrievalEvaluator(lejepa_model, device=device)
results = evaluator.evaluate_retrieval(test_loader, max_batches=10)

logger.info(f"Retrieval M1: {results['method1']['accuracy']:.2%}")
logger.info(f"Retrieval M2: {results['method2']['accuracy']:.2%}")
'''
EVALUATOR = '''
# `LabelRetrieval` by the names of the document
from itertools import islice
from mmjepa import LabelRetrieval

class LabelRetrievalEvaluator(LabelRetrieval):
    def __init__(self, model, device=None): super().__init__(model)
    def evaluate_retrieval(self, loader, max_batches):
        scores = self.evaluate(islice(loader, max_batches))
        return {f'method{m}': {'accuracy': scores[f'm{m}']['top1']} for m in (1, 2)}
    def compute_confusion_matrix(self, images, labels, method):
        return (self.method_1, self.method_2)[method - 1](images, labels)['confusion']
'''
BEFORE = '''
import logging, sys, torch
from mmjepa import EncoderConfig, LeJEPAConfig, MultimodalLeJEPA, image_loader, load_images
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
logger, device = logging.getLogger(), 'cpu'
_, test = load_images('digits')
test_loader = image_loader(test, 32)
channels = next(iter(test_loader))['image'].shape[1]
encoder = EncoderConfig(8, 4, channels, num_classes=10, emb_dim=16, depth=1, num_heads=2)
lejepa_model = model = MultimodalLeJEPA(LeJEPAConfig(encoder))
'''
CONFUSION = '''
from retrieval_eval import LabelRetrievalEvaluator
from mmjepa.data.images import to_float
batch = next(iter(test_loader))
test_images, test_labels = to_float(batch['image']), batch['label']

evaluator = LabelRetrievalEvaluator(model)
conf = evaluator.compute_confusion_matrix(test_images, test_labels, method=1)

import matplotlib.pyplot as plt
import seaborn as sns
sns.heatmap(conf, annot=True, fmt='d')
plt.savefig('confusion_method1.png')
'''

def test_label_retrieval_of_a_model(tmp_path):
    (tmp_path/'retrieval_eval.py').write_text(EVALUATOR)
    (tmp_path/'snippets.py').write_text(BEFORE + RETRIEVAL + CONFUSION)
    out = works('python snippets.py', tmp_path)
    assert re.search(r'Retrieval M1: \d+\.\d\d%', out) and 'Retrieval M2: ' in out
    assert Image.open(tmp_path/'confusion_method1.png').width > 100


# ---------------------------------------------------------------- B: a curriculum

TRAINING = '''training:
  batch_size: 256
  micro_batch_size: 4
  gradient_accumulation_steps: 64

  optimizers:
    type: adamw
    lr: 3.0e-4
    beta1: 0.9
    beta2: 0.95
    weight_decay: 0.1
    grad_clip: 1.0

  scheduler:
    type: cosine_decay
    warmup_tokens: 5B
    min_lr: 1.0e-6

  # JEPA-specific
  jepa:
    mask_ratio: 0.15
    prediction_steps: 3
    step_weights: [1.0, 0.8, 0.6]
    embedding_dim: 512

  # LM-specific
  lm:
    context_length: 4096
    vocab_size: 50000
    tie_embeddings: false

  # Hybrid
  hybrid:
    alpha: 0.3  # JEPA weight
    beta: 0.7   # LM weight
'''

@pytest.mark.parametrize('devices', [1, 64])
def test_the_training_configuration(tmp_path, devices):
    (tmp_path/'training.yaml').write_text(TRAINING)
    out = works(f'python -m mmjepa.vl.scaling training.yaml --device h200 --devices {devices}', tmp_path)
    assert f'256 sequences of 4096 tokens, 4 at a time on {devices} x h200' in out
    assert f'gradients accumulated over {64 // devices}' in out and 'all: 250,000,000,000 tokens' in out, out


# ---------------------------------------------------------------- C: alignment

QUICK_START = '''
from core import AlignmentConfig, VisionTextAligner, get_device, set_seed

# Setup
cfg = AlignmentConfig(
    vision_model_name="openai/clip-vit-base-patch32",
    text_model_name="sentence-transformers/all-MiniLM-L6-v2",
    d_align=512,
    batch_size=32,
    num_epochs=3,
)
cfg.device = get_device()
set_seed(cfg.seed)

# Create model
model = VisionTextAligner(cfg)

# Train
from train import train_alignment
from data import create_dataloader, ImageTextDataset

train_loader = create_dataloader(your_dataset, batch_size=32)
history = train_alignment(model, train_loader, num_epochs=3)

# Connect to LLM (Phase 2)
from llm_integration import LLMConfig, MultimodalLLM

llm_cfg = LLMConfig(model_name="Qwen/Qwen2.5-1.5B-Instruct")
mm_model = MultimodalLLM(model, llm_cfg)

# Generate
output = mm_model.generate([image], prompt="Describe this image:")
'''
CORE = 'from mmjepa.align.aligner import *\nfrom mmjepa.core import get_device, seed_everything as set_seed'
MODULES = {'core': CORE,
           'train': 'from mmjepa.align.aligner import train_alignment', 'data': 'from mmjepa.align.inputs import *',
           'llm_integration': 'from mmjepa.align.captioner import *'}

def test_the_quick_start_of_alignment(tmp_path):
    "Verbatim: small models of random weights lie in folders of these names."
    from mmjepa.align.tiny_models import tiny_model
    for kind, name in (('clip', 'openai/clip-vit-base-patch32'), ('bert', 'sentence-transformers/all-MiniLM-L6-v2'),
                       ('qwen2', 'Qwen/Qwen2.5-1.5B-Instruct')): tiny_model(kind, tmp_path/name)
    for name, text in MODULES.items(): (tmp_path/f'{name}.py').write_text(text)
    digit_pairs(tmp_path, 64)
    before = ('from data import ImageTextDataset\nfrom PIL import Image\n'
              'your_dataset = ImageTextDataset("pairs.jsonl")\nimage = Image.new("RGB", (40, 30))\n')
    (tmp_path/'quick.py').write_text(f'{before}{QUICK_START}\nprint(history)\nprint(len(output), type(output[0]))')
    out = works('python quick.py', tmp_path)
    assert "1 <class 'str'>" in out and out.count('R@10') >= 3 and 'nan' not in out.lower(), out


# ---------------------------------------------------------------- D: masked and contrastive pretraining

@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    "A working folder with the files of the document: `pairs.jsonl`, `data.jsonl` and 101 shards of pairs."
    folder = tmp_path_factory.mktemp('work')
    digit_pairs(folder, 60)
    (folder/'data.jsonl').write_text((folder/'pairs.jsonl').read_text())
    (folder/'pairs').mkdir(exist_ok=True)
    records = [json.loads(line) for line in (folder/'pairs.jsonl').read_text().splitlines()]
    for i in range(101):
        with tarfile.open(folder/f'pairs/{i:04}.tar', 'w') as tar:
            r = records[i % len(records)]
            for name, data in ((f'{i}.png', (folder/r['image']).read_bytes()), (f'{i}.txt', r['text'].encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder

def in_place(command, pairs, folder):
    "The command with the folder of the fixture in the place of /path/to, and links to its files in an empty folder."
    for name in ('pairs.jsonl', 'data.jsonl'): (folder/name).write_text((pairs/name).read_text())
    image = json.loads((pairs/'pairs.jsonl').read_text().splitlines()[0])['image']
    for p in (pairs/image).parent.iterdir():
        if p.suffix == '.png':
            (folder/image).parent.mkdir(exist_ok=True)
            ((folder/image).parent/p.name).write_bytes(p.read_bytes())
    return command.replace('/path/to', str(pairs))


MASKED = '''accelerate launch -m musk.masked_pretrain \\
       --json-data data.jsonl \\
       --epochs 5 --output musk_pretrained.pt \\
       --encoder-out musk_pretrained_encoder.pt'''
MASKED_SHARDS = '''accelerate launch -m musk.masked_pretrain \\
       --image-data /path/to/pairs/{0000..0100}.tar \\
       --text-data /path/to/pairs/{0000..0100}.tar \\
       --epochs 5 --output musk_pretrained.pt \\
       --encoder-out musk_pretrained_encoder.pt'''
FROM_JSON = '''accelerate launch -m musk.contrastive_pretrain \\
       --json-data pairs.jsonl \\
       --epochs 20 --output musk_stage2.pt'''
FROM_SHARDS = '''accelerate launch -m musk.contrastive_pretrain \\
       --pair-data /path/to/pairs/{0000..0100}.tar \\
       --epochs 20 --output musk_stage2.pt'''
FROM_ENCODER = '''accelerate launch --mixed_precision fp16 -m musk.contrastive_pretrain \\
       --json-data pairs.jsonl \\
       --encoder musk_pretrained_encoder.pt \\
       --batch-size 16 --epochs 20 --output musk_stage2.pt'''

def test_both_stages_from_json_lines(tmp_path, pairs):
    out = works(in_place(MASKED, pairs, tmp_path), tmp_path, f'{SMALL} --batch_size 16')
    files(tmp_path, 'musk_pretrained.pt', 'musk_pretrained_encoder.pt')
    losses_of_both_splits(tmp_path/'musk_pretrained.pt', 5, 'mim', 'mlm')
    assert out.count('val mlm') == 5 and out.count('val mim') == 5, out
    works(FROM_ENCODER, tmp_path)
    losses_of_both_splits(tmp_path/'musk_stage2.pt', 20, 'clip', 'mlm')

def test_contrastive_from_json_lines(tmp_path, pairs):
    out = works(in_place(FROM_JSON, pairs, tmp_path), tmp_path, f'{SMALL} --batch_size 16')
    losses_of_both_splits(tmp_path/'musk_stage2.pt', 20, 'clip', 'mlm')
    assert out.count('val clip') == 20 and out.count('val mlm') == 20, out

@pytest.mark.parametrize('command, losses', [(FROM_SHARDS, ('clip', 'mlm')), (MASKED_SHARDS, ('mim', 'mlm'))],
                         ids=['contrastive', 'masked'])
def test_shards_with_braces_that_the_shell_expands(tmp_path, pairs, command, losses):
    works(in_place(command, pairs, tmp_path), tmp_path, f'{SMALL} --batch_size 16')
    run = tmp_path/re.search(r'--output (\S+)', command)[1]
    table = pd.read_csv(run/'metrics.csv')
    assert len(table) == int(re.search(r'--epochs (\d+)', command)[1])
    assert np.isfinite(table[[f'loss_{name}' for name in losses]]).all(axis=None)
    assert table.samples.iloc[-1] > 0 if 'samples' in table else True

def test_wandb_is_asked_for(tmp_path, pairs):
    try: import wandb  # noqa: F401
    except ImportError: code, words = 2, 'wandb'
    else: code, words = 0, ''
    command = in_place(FROM_JSON.replace('--epochs 20', '--epochs 1') + ' --wandb-project digits', pairs, tmp_path)
    done, out = bash(command, tmp_path, f'{SMALL} --batch_size 16', WANDB_MODE='offline')
    assert bool(done) == bool(code) and words in out, out  # the launcher shows where it called us


LOADERS = '''
from musk.json_dataset import get_json_loaders
train_img_loader, val_img_loader = get_json_loaders("data.jsonl", mode="image", batch_size=64, num_workers=4)
train_txt_loader, val_txt_loader = get_json_loaders("data.jsonl", mode="text", batch_size=64, num_workers=4, \\
    tokenizer=tokenizer)
'''.replace('musk.json_dataset', PROGRAMS['musk.json_dataset'])
AFTER = '''
parts = [len(x.dataset) for x in (train_img_loader, val_img_loader, train_txt_loader, val_txt_loader)]
print(parts, [sorted(next(iter(x))) for x in (train_img_loader, val_txt_loader)])
'''
OWN, THEIRS = 'from mmjepa.data.text import ByteTokenizer\ntokenizer = ByteTokenizer()\n', '''
from mmjepa.align.tiny_models import tiny_tokenizer
tokenizer = tiny_tokenizer(wrap=True)
'''

@pytest.mark.parametrize('tokenizer', [OWN, THEIRS], ids=['ours', 'of transformers'])
def test_loaders_of_one_file(tmp_path, tokenizer):
    digit_pairs(tmp_path, 80)
    (tmp_path/'pairs.jsonl').rename(tmp_path/'data.jsonl')
    (tmp_path/'loaders.py').write_text(tokenizer + LOADERS + AFTER)
    out = works('python loaders.py', tmp_path)
    parts = json.loads(re.search(r'^\[[\d, ]+\]', out, re.M)[0])
    assert sum(parts[:2]) == sum(parts[2:]) == 80 and 1 <= parts[1] <= 24 and "'image'" in out and "'text_mask'" in out


def test_a_map_of_embeddings(tmp_path):
    rng, domains = np.random.default_rng(0), ('cat', 'dog', 'bird')
    vectors = [rng.normal(size=8) + 20 * np.eye(8)[i % 3] for i in range(60)]
    rows = [{'embedding': v.tolist(), 'domain': domains[i % 3]} for i, v in enumerate(vectors)]
    (tmp_path/'data.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    command = '''# train clusters and save centroids
python -m musk.umap_json data.jsonl --cluster-domains 3 --kmeans-model model.pth --output umap.png'''
    first = works(command, tmp_path)
    files(tmp_path, 'umap.png', 'model.pth')
    assert 'V-measure 1.0' in first, first
