"""What a small vision-language model reads off pictures, from nothing: pairs, training, scores, and its controls.

    python benchmarks/reads.py --seed 0 --output runs/reads

Three models learn to write what pictures show: a handwritten digit in words, a line of 3 to 8 characters, the values of
a chart with three bars (examples/reads_*.yaml). Each is scored at its last step on pictures whose texts it has never
seen (digits: whose pictures), once more with the picture of another row and with a blank one; the lines also by
retrieval. `DIR/reads.json` has all figures."""
import json
import time
from pathlib import Path

from fastcore.script import call_parse
from tqdm.auto import tqdm

from measure import machine
from mmjepa.core import UserError, write_text
from mmjepa.data.text import load_tokenizer
from mmjepa.pairs.make import PairConfig, make_pairs
from mmjepa.plots import save_figure
from mmjepa.runs import RunConfig
from mmjepa.vl.config import load_curriculum
from mmjepa.vl.curriculum import open_sources, run_curriculum
from mmjepa.vl.evaluate import load_evaluated
from mmjepa.vl.evaluation import (image_to_code, modal_embeddings, multimodal_retrieval, picture_perplexity,
                                  read_eval_records, record_ids)
from mmjepa.vl.reading import reading_figure, reading_table

EXAMPLES = Path(__file__).parent.parent/'examples'
# pairs of which nine in ten are learnt from; held-out pairs that are made beside them, and how many of these are scored
TASKS = {'digit': dict(kind='digit', n=66_667, held=10_000, scored=10_000, image_size=32),
         'strip': dict(kind='strip', n=88_889, held=1_500, scored=1_000, image_size=(32, 160)),
         'chart': dict(kind='bars', n=27_778, held=1_000, scored=1_000, image_size=(64, 96))}


def make_data(name: str, folder: Path, seed: int):
    "Pairs to learn from, and more of those that are held out."
    task = TASKS[name]
    for output, n, split in ((task['kind'], task['n'], 'both'), (f"{task['kind']}_held_out", task['held'], 'held_out')):
        if (folder/output).exists(): continue
        make_pairs(folder/output, PairConfig(task['kind'], n, seed=seed, split=split, image_size=task['image_size']))


def train(name: str, folder: Path, seed: int, total_tokens: str | None = None) -> Path:
    "Train the example's curriculum on the pairs of `make_data`; the folder of the model."
    kind = TASKS[name]['kind']
    config, words = load_curriculum(EXAMPLES/f'reads_{kind}.yaml', total_tokens), load_tokenizer('bytes')
    parts = [open_sources(config, words, held, seed=seed, root=folder) for held in (False, True)]
    run = RunConfig(folder/'runs'/name, resume=True)
    if not (run.folder/'report.md').exists():
        run_curriculum(config, run, words, sources=parts[0], held=parts[1], epochs=4, seed=seed)
    return run.folder/'model'


def held_out(name: str, folder: Path) -> list:
    "The records to score; of lines with the same text, which one picture would have to find, one."
    found, _ = read_eval_records(folder/f"{TASKS[name]['kind']}_held_out"/'pairs.jsonl')
    if name == 'strip': found = [*{r.text: r for r in found}.values()]
    if len(found) < TASKS[name]['scored']:
        raise UserError(f'{name}: {len(found)} held-out records differ; expected {TASKS[name]["scored"]}')
    return found[:TASKS[name]['scored']]


def score(model, tokenizer, records: list) -> dict[str, float]:
    "How much of the texts is written of the pictures, of others' pictures and of blank ones."
    longest = max(len(tokenizer.encode(r.text)) for r in records) + 4
    found = image_to_code(model, tokenizer, records, max_new_tokens=longest, batch_size=250)[0]['all']
    found |= picture_perplexity(model, tokenizer, records, batch_size=250)
    kept = ('exact', 'perplexity', 'character_error', *(f'{k}_{name}' for name in ('swapped', 'blank')
                                                        for k in ('exact', 'perplexity')))
    return {'n': len(records)} | {k: found[k] for k in kept}


def retrieval(model, tokenizer, records: list) -> dict[str, float]:
    "How often a picture finds its text first among all."
    pictures, texts = modal_embeddings(model, tokenizer, records, batch_size=250)
    found = multimodal_retrieval(pictures, texts, record_ids(records))
    return {'r1': found['image_to_text_r1'], 'chance': found['chance_image_to_text_r1'], 'n': len(records)}


@call_parse
def main(
    seed: int = 0, # of pairs, weights and order
    output: str = 'runs/reads', # folder; what is finished in it is used again, a training that was stopped goes on
):
    "Digits, lines and charts: make pairs, train, score; reads.json."
    folder, found, start = Path(output).expanduser(), {}, time.perf_counter()
    resumed = (folder/'runs').exists()
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=3 * len(TASKS), desc='reads', unit='part') as bar:
        for name in TASKS:
            bar.set_postfix_str(f'{name}: pairs')
            make_data(name, folder, seed)
            bar.update()
            bar.set_postfix_str(f'{name}: training')
            model, tokenizer = load_evaluated(train(name, folder, seed))
            bar.update()
            bar.set_postfix_str(f'{name}: scores')
            records = held_out(name, folder)
            found[name] = score(model, tokenizer, records)
            if name == 'strip': found['retrieval'] = retrieval(model, tokenizer, records)
            bar.update()
            print(name, {k: round(v, 4) for k, v in found[name].items()})
    found |= {'seconds': time.perf_counter() - start, 'seed': seed, 'machine': machine()}
    if resumed: found['resumed'] = True # the seconds are those of the rest
    write_text(folder/'reads.json', json.dumps(found, indent=1))
    save_figure(reading_figure(reading_table([found])), folder/'reads.png')
    print(f'results: {folder/"reads.json"}, {folder/"reads.png"}')
