"""What a hybrid is worth: arms with embeddings against words alone, on several seeds, at equal word tokens and seconds.

    python benchmarks/verdict.py --output runs/verdict

Digits are written in words, with the model of examples/reads_digit.yaml, in two regimes. `plenty`: 60,000 pairs, and
embeddings beside words: masked latents, two views (predictor tokens, cosine distance) at three weights, LeVLJEPA.
`few`: 50, 300 or 4,000 labelled digits and 40,000 pictures without a text: versions of these are made to agree first,
then words are learnt; words alone are the control. Each labelled digit is there in ten looks, in both arms.

Each arm has two controls of its own seed: with as many word tokens, and with as many as are read in its seconds.
`DIR/runs.csv` has a line a run, `DIR/verdict.csv` one an arm. What is finished is used again: start it once more after
a stop. Run it on a quiet machine, because seconds are compared."""
import json
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import yaml
from fastcore.script import call_parse
from tqdm.auto import tqdm

from mmjepa.core import UserError, check_choice, write_text
from mmjepa.data.text import load_tokenizer
from mmjepa.pairs.small import digit
from mmjepa.plots import save_figure
from mmjepa.vl.config import CurriculumConfig, make_curriculum
from mmjepa.vl.curriculum import open_sources
from mmjepa.vl.evaluate import load_evaluated
from mmjepa.vl.verdict import arms_table, control_of, plot_gains, scored_run, word_tokens
from reads import EXAMPLES, TASKS, held_out, make_data, score

VIEWS = {'dim': 128, 'hidden': 256}
# arms of plentiful pairs: of the stage, of model.views, of training.views
PLENTY = {'masked': ({'alpha': .3}, {'dim': 0}, {}),
          **{f'views {alpha:g}': ({'alpha': alpha, 'jepa': 'views'}, VIEWS | {'queries': 1}, {'distance': 'cosine'})
             for alpha in (.01, .1, 1.)},
          'levljepa': ({'alpha': 1., 'jepa': 'views'}, VIEWS | {'queries': 0},
                       {'distance': 'squared', 'sigreg_weight': .02})}
FEW = {f'pictures {n}': (n, 200_000) for n in (50, 300, 4000)} # labelled pairs, and word tokens
FEW |= {f'pictures {n} half words': (n, 100_000) for n in (300, 4000)}
UNPAIRED, LOOKS, SCORED = 40_000, 10, 2_000 # pictures without a text; of each labelled picture; held-out pictures
WORD_TOKENS, PICTURE_TOKENS = 400_000, 120_000 # of plentiful pairs; of pictures: one without a text is one token


def example() -> dict:
    "Settings of the example that learns digits from pairs."
    return yaml.safe_load((EXAMPLES/'reads_digit.yaml').read_text())


def plenty(arm: str) -> dict:
    "Words and embeddings in one stage."
    settings, (stage, heads, views) = example(), PLENTY[arm]
    rate = settings['training']['optimizers']['lr']
    settings['model']['views'], settings['training']['views'] = heads, views
    words = {'name': 'both', 'share': '100%', 'lr': [rate, 1e-5], 'beta': 1, **stage}
    return settings | {'stages': [words], 'total_tokens': WORD_TOKENS}


def few(arm: str) -> dict:
    "Pictures first, then words. Rows are short, so that a step has 256 pictures or 32 pairs."
    settings, (labels, words) = example(), FEW[arm]
    training, rate = settings['training'], settings['training']['optimizers']['lr']
    training |= {'batch_size': 32, 'micro_batch_size': 32}
    training['lm'] |= {'context_length': 8}
    training['scheduler'] |= {'warmup_tokens': PICTURE_TOKENS // 20}
    settings['model']['views'] = VIEWS | {'queries': 0}
    first = {'name': 'pictures', 'tokens': PICTURE_TOKENS, 'lr': [rate, rate / 2], 'alpha': 1, 'beta': 0,
             'jepa': 'pictures', 'mixture': {'unpaired': 1}}
    second = {'name': 'words', 'tokens': words, 'lr': [rate, 1e-5], 'alpha': 0, 'beta': 1,
             'warmup': .1, 'mixture': {'labelled': 1}}
    sources = {'labelled': f'labelled-{labels}.jsonl', 'unpaired': 'unpaired.jsonl'}
    sources = {name: {'path': path, 'topic': 'vision', 'weight': 1} for name, path in sources.items()}
    return settings | {'stages': [first, second], 'sources': sources, 'total_tokens': words + PICTURE_TOKENS}


def lines(path: Path) -> list[dict]: return [json.loads(line) for line in path.read_text().splitlines()]


def write_few(folder: Path, seed: int):
    "Labelled digits, each in several looks, with some held-out ones for the curves; and pictures without a text."
    if (folder/'unpaired.jsonl').exists(): return
    size, labelled, looks = TASKS['digit']['image_size'], [], folder/'looks'
    looks.mkdir(exist_ok=True)
    for number in tqdm(range(max(FEW.values())[0]), desc='looks of labelled digits', leave=False):
        for k in range(LOOKS):
            drawn, name = digit(LOOKS * number + k + seed, size, number=number), f'looks/{number:05}-{k}.png'
            drawn.paint().save(folder/name)
            labelled.append({'image': name, 'text': drawn.text, 'split': 'train'})
    def held_out(record: dict) -> dict: return record | {'image': f'digit_held_out/{record["image"]}'}
    held = [held_out(r) for r in lines(folder/'digit_held_out/pairs.jsonl')[:500]]
    for n in {n for n, _ in FEW.values()}:
        write_text(folder/f'labelled-{n}.jsonl', '\n'.join(map(json.dumps, labelled[:n * LOOKS] + held)))
    known = [r for r in lines(folder/'digit/pairs.jsonl') if r['split'] == 'train'][-UNPAIRED:]
    pictures = [{'image': f'digit/{r["image"]}', 'split': 'train'} for r in known]
    write_text(folder/'unpaired.jsonl', '\n'.join(map(json.dumps, pictures)))


def measured(records: list, table: pd.DataFrame, folder: Path, tokenizer, held) -> dict[str, float]:
    "The line of a run: what it took, and its scores on held-out pictures."
    model, _ = load_evaluated(folder/'model')
    took = {'word_tokens': int(table.word_tokens.iloc[-1]), 'seconds': float(table.seconds.sum())}
    return took | score(model, tokenizer, records)


def three_runs(config: CurriculumConfig, arm: str, run, *, base: CurriculumConfig, shared: str, bar: tqdm):
    "An arm and the two controls of `base`; the one of equal word tokens is that of all arms which name it alike."
    found = []
    def add(name: str, settings: CurriculumConfig, folder: str):
        bar.set_postfix_str(f'{arm}: {name}')
        found.append({'compared': arm, 'arm': name, **run(settings, folder)})
        bar.update()
        return found[-1]
    hybrid, alone = add('hybrid', config, arm), add('control', control_of(base), shared)
    tokens = round(word_tokens(config) * hybrid['seconds'] / alone['seconds'])
    add('control_seconds', control_of(base, tokens), f'{arm} control_seconds')
    return found


def chosen(regime: str, arms: str) -> list[tuple[str, str, dict]]:
    "Regime, arm and settings of what is asked for."
    every = {'plenty': {arm: plenty(arm) for arm in PLENTY}, 'few': {arm: few(arm) for arm in FEW}}
    if regime: check_choice('regime', regime, tuple(every))
    wanted = [a.strip() for a in arms.split(',') if a.strip()]
    if unknown := {*wanted} - {*PLENTY, *FEW}:
        raise UserError(f'arms has {", ".join(sorted(unknown))}; expected some of {", ".join([*PLENTY, *FEW])}')
    return [(name, arm, settings) for name, own in every.items() if regime in ('', name)
            for arm, settings in own.items() if not wanted or arm in wanted]


@call_parse
def main(
    output: str = 'runs/verdict', # folder; pairs and runs in it that are finished are used again
    seeds: int = 3, # of weights and order, from 0
    arms: str = '', # some of them, separated by commas; all if empty
    regime: str = '', # plenty or few; both if empty
    total_tokens: str = '', # of each hybrid, such as 20K; the usual ones if empty
):
    "All arms with their controls: verdict.csv."
    folder, words, runs = Path(output).expanduser(), load_tokenizer('bytes'), []
    asked = chosen(regime, arms)
    folder.mkdir(parents=True, exist_ok=True)
    make_data('digit', folder, 0)
    write_few(folder, 0)
    records = held_out('digit', folder)[:SCORED]
    with tqdm(total=3 * seeds * len(asked), desc='verdict', unit='run') as bar:
        for seed in range(seeds):
            for name, arm, settings in asked:
                config = make_curriculum(settings, total_tokens or None, place=arm)
                opened = partial(open_sources, config, words, root=folder, say=lambda line: None)
                def run(settings: CurriculumConfig, at: str, opened=opened, seed=seed) -> dict:
                    return scored_run(settings, folder/'runs'/f'{at.replace(" ", "_")}-{seed}', words, opened=opened,
                                      seed=seed, score=partial(measured, records), epochs=2)
                base, shared = config, f'{arm} control'
                if name == 'plenty': # a model without heads for views, which words have no use for
                    base, shared = make_curriculum(plenty('masked'), total_tokens or None), 'plenty control'
                found = three_runs(config, arm, run, base=base, shared=shared, bar=bar)
                runs += [{'regime': name, 'seed': seed, **line} for line in found]
                pd.DataFrame(runs).to_csv(folder/'runs.csv', index=False)
                arms_table(pd.DataFrame(runs)).to_csv(folder/'verdict.csv', index=False)
    table = arms_table(pd.DataFrame(runs))
    keys = ['exact', 'exact_difference_tokens', 'exact_error_tokens', 'exact_verdict_tokens',
            'exact_difference_seconds', 'exact_error_seconds', 'exact_verdict_seconds']
    print(table[['regime', 'arm', *keys]].round(4).to_string(index=False))
    fig, ax = plt.subplots(figsize=(8, 1 + .6 * len(table)), layout='constrained')
    plot_gains(table, 'exact', ax)
    save_figure(fig, folder/'verdict.png')
    print(f'results: {folder/"verdict.csv"}, {folder/"verdict.png"}, runs: {folder/"runs.csv"}')
