"""The figures that the project stands for, from nbs/results and, for what a step costs, from nbs/results/costs.csv."""
import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

NBS = Path(__file__).resolve().parent.parent/'nbs'
RESULTS = NBS/'results'


@dataclass(frozen=True)
class Result:
    "One experiment, and what one has to know to read its figures."
    title: str     # heading of its section
    page: str      # the notebook that shows it
    question: str  # what is asked, in one line
    data: str      # what was learnt from, what was held out
    rule: str      # seeds, and which epoch counts
    machine: str   # where, and how long
    controls: str  # what stands beside it
    says: str      # what came of it, losses too
    rows: list = field(repr=False)      # of its table: the first one is its head
    headline: list = field(repr=False)  # rows of the first table: figure, score, control, outcome


def _spread(values, digits: int = 3) -> str: return f'{values.mean():.{digits}f} ± {values.std():.{digits}f}'

def _signed(mean: float, error: float, digits: int = 3) -> str: return f'{mean:+.{digits}f} ± {error:.{digits}f}'

def _mean(values) -> str: return f'{values.mean():.3f}'


# ---------------------------------------------------------------- experiments

def labels() -> Result:
    "Label retrieval on MNIST."
    runs = pd.read_csv(RESULTS/'mnist_quick.csv')
    of = dict(iter(runs.groupby('variant', sort=False)))
    names = {
        'retrieval_m1_acc': 'M1, embeddings', 'retrieval_m1_proj_acc': 'M1, projections',
        'retrieval_m2_acc': 'M2, embeddings', 'retrieval_m2_proj_acc': 'M2, projections',
        'linear_probe_acc': 'linear probe', 'knn_acc': 'k-NN',
    }
    rows = [[name, *(_spread(of[v][key]) for v in ('labels', 'baseline', 'shuffled'))] for key, name in names.items()]
    right, wrong = of['labels'], of['shuffled']
    head = ['accuracy', 'with labels', 'control: without labels', 'control: shuffled labels']
    headline = [[f'{m}, projections', _spread(right[k]), f'{_spread(wrong[k])} (shuffled labels)', 'better']
                for m, k in (('M1', 'retrieval_m1_proj_acc'), ('M2', 'retrieval_m2_proj_acc'))]
    return Result(
        'Which label belongs to a picture', 'label/32_mnist.ipynb',
        'Does an encoder that has seen pictures with their labels know the label of a new picture?',
        'MNIST, 60,000 training images; scores on all 10,000 test images; checkpoints are chosen on training images',
        'three seeds; the last step of 4 epochs, never the best one; the controls stop after 300 steps',
        'two cores of an AMD EPYC (AVX2, float32), two runs at a time; 573 seconds for one run alone',
        'no labels, shuffled labels; chance is 0.1',
        'Both methods reach the linear probe on projections. On embeddings one seed of three is up to three hundredths '
        'behind. This is retrieval of labels that training has seen, not unsupervised classification, and M1 owes its '
        'value to the swapped patches. Depth and patch size were not measured on MNIST.',
        [head, *rows], headline)


def shipped() -> Result:
    "The models that come with the project, as their cards have them."
    card = (NBS.parent/'mmjepa/models/digits/README.md').read_text(encoding='utf-8').splitlines()
    cells = [[c.strip() for c in line.strip('|').split('|')] for line in card if line.startswith('|')]
    scores = {c[0]: dict(zip(cells[0], c)) for c in cells[2:]}
    page = json.loads((NBS/'draw/mnist/metadata.json').read_text(encoding='utf-8'))['scores']
    names = {'M1 top-1': 'm1', 'M2 top-1': 'm2'}
    rows = [[k, scores[k]['this model'], scores[k]['shuffled labels'], *(f'{page[p][m]:.4f}' for p in ('fp32', 'fp16'))]
            for k, m in names.items()]
    return Result(
        'The models that come with it', 'draw.ipynb',
        'How good are the models of the package, and of the page in the browser?',
        "package: scikit-learn's digits, 1,365 to learn from, 360 test images; page: MNIST, 10,000 test images",
        'one seed each; the last epoch', 'two cores of an AMD EPYC; 190 seconds for the digits',
        'shuffled labels; for the page the same model in full precision',
        'On embeddings, without projections. Half precision costs nothing. Own drawings are another matter than test '
        'images: the page says what was tried.',
        [['top-1', 'digits', 'digits, shuffled labels', 'MNIST, float32', 'MNIST, as the page has it'], *rows],
        [['M1, digits of the package', scores['M1 top-1']['this model'],
          f"{scores['M1 top-1']['shuffled labels']} (shuffled labels)", 'better']])


def masked() -> Result:
    "Masked pretraining on emoji."
    runs = pd.read_csv(RESULTS/'emoji_masked.csv')
    ends = {'first epoch': runs[runs.epoch == 1], 'last epoch': runs[runs.epoch == runs.epoch.max()]}
    names = {'val_loss_mim': 'hidden patches, squared error', 'val_loss_mlm': 'hidden words, nats'}
    rows = [[name, *(_spread(e[key]) for e in ends.values())] for key, name in names.items()]
    patches = ends['last epoch'].val_loss_mim
    return Result(
        'Filling in what is hidden', 'pretrain/40_masked.ipynb',
        'How much of a hidden patch or word is seen in the rest?',
        '1,644 emoji of Noto and their names, not paired; 164 of each are held out',
        'three seeds; the last of 40 epochs', 'two cores of an AMD EPYC (AVX2)',
        'a patch predicted as its own mean has an error of 1',
        'Outlines and colours go on, details do not. Names of two or three words leave little to guess a hidden one '
        'from: held-out words soon stop improving.',
        [['held out', *ends], *rows], [['error of hidden patches', _spread(patches), '1 (the mean)', 'better']])


def pairs() -> Result:
    "Contrastive pretraining on emoji."
    runs = pd.read_csv(RESULTS/'emoji_pairs.csv')
    last = dict(iter(runs[runs.epoch == runs.epoch.max()].groupby('start')))
    ways = [f'{a}_r{k}' for k in (1, 10) for a in ('image_to_text', 'text_to_image')]
    rows = [[w.replace('_', ' ').replace(' r', ', R@'), *(_spread(last[s][w]) for s in ('stage one', 'scratch')),
             f'{int(w.split("_r")[1]) / 164:.3f}'] for w in ways]
    r10 = {s: (r.image_to_text_r10 + r.text_to_image_r10) / 2 for s, r in last.items()}
    return Result(
        'Pictures and names, trained together', 'pretrain/41_contrastive.ipynb',
        'Does a held-out emoji find its name, and does masked pretraining on the same pictures help?',
        '1,644 emoji of Noto with their names, 164 held out',
        'three seeds; the last of 60 epochs', 'two cores of an AMD EPYC (AVX2)',
        'the same settings from scratch; chance at 10 of 164 is .061',
        'Six times chance at 10. **Stage one brings nothing in the end**: it is ahead after six epochs, and within the '
        'spread after sixty.',
        [['held out', 'from stage one', 'from scratch', 'chance'], *rows],
        [['R@10 of 164, both ways', _spread(r10['scratch']), '0.061 (chance)', 'better'],
         ['R@10 from stage one', _spread(r10['stage one']), f'{_spread(r10["scratch"])} (from scratch)', 'a tie']])


def taught() -> Result:
    "Contrastive pretraining on emoji with a teacher."
    runs = pd.read_csv(RESULTS/'emoji.csv')
    rows = [[f'R@{k}, both ways', _spread(runs[f'contrastive_r{k}']), _spread(runs[f'control_r{k}']),
             f'{k / 164:.3f}'] for k in (1, 10)]
    return Result(
        'Pictures and names, with a teacher', 'pretrain/41_contrastive.ipynb',
        'What do the same pairs teach where a frozen text tower says which names are alike?',
        '1,644 emoji of Noto with names and keywords, about 164 held out; queries are names alone',
        'three seeds, each with its own split; the last of 100 epochs',
        f'two cores of an AMD EPYC (Zen 4), {runs.seconds.min() / 60:.0f} to {runs.seconds.max() / 60:.0f} minutes a '
        'seed with alignment and controls',
        'adapters between principal components of the pixels and the text tower, which have seen no training of vision',
        'With words cut as in all-MiniLM-L6-v2, mirror images, and embeddings that predict its vectors, recall is a '
        'third higher than with the contrast alone. A start from its word embeddings brings more (.66, one seed).',
        [['held out', 'trained together', 'pixel components + adapters', 'chance'], *rows],
        [['R@10 of 164, both ways', _spread(runs.contrastive_r10), f'{_spread(runs.control_r10)} (no vision training)',
          'better']])


def clusters() -> Result:
    "The map of emoji."
    alone, runs = pd.read_csv(RESULTS/'emoji_map.csv'), pd.read_csv(RESULTS/'emoji.csv')
    of = {name: _spread(part.v_measure) for name, part in alone.groupby('of')}
    near = [_spread(runs[f'neighbour_{x}_held_out']) for x in ('image', 'pixels')]
    rows = [['pictures', _spread(runs.v_image), near[0]], ['pictures and names together', _spread(runs.v_both), ''],
            ['pictures, contrast alone', of['image'], ''], ['bare pixels', _spread(runs.v_pixels), near[1]],
            ['names and keywords, TF-IDF', _spread(runs.v_words), ''],
            ['names and keywords, all-MiniLM-L6-v2', _spread(runs.v_teacher), '']]
    return Result(
        'Clusters and named groups', 'pretrain/43_map.ipynb',
        'Do clusters and neighbours of the embeddings agree with the ten groups of Unicode?',
        '1,644 emoji: clusters of all of them, neighbours of about 164 held-out ones among the others',
        'three seeds; the last epoch of the runs with a teacher, and of those with the contrast alone',
        'two cores of an AMD EPYC', 'the same of the bare pixels, and of names and keywords',
        'A contrast alone pushes each pair away from all others, whatever their groups: pixels agree with the groups '
        'better. With a teacher the clusters agree as well as those of the texts. Training pictures get that by heart; '
        'held-out ones show what was seen: eight in a hundred more have a neighbour of their group.',
        [['embeddings of', 'V-measure of ten clusters', 'held out: nearest has the same group'], *rows],
        [['V-measure of picture embeddings', _spread(runs.v_image), f'{_spread(runs.v_pixels)} (bare pixels)',
          'better'],
         ['held-out neighbour of the same group', near[0], f'{near[1]} (bare pixels)', 'better'],
         ['V-measure, contrast alone', of['image'], f'{of["pixels"]} (bare pixels)', 'worse']])


def aligned() -> Result:
    "Alignment of frozen towers on emoji."
    runs, plain = pd.read_csv(RESULTS/'emoji.csv'), pd.read_csv(RESULTS/'emoji_align.csv')
    plain = plain[~plain.standardize]
    def both(table, k, name='{}_r{}'):
        return _spread(sum(table[name.format(w, k)] for w in ('image_to_text', 'text_to_image')) / 2)
    rows = [[f'R@{k}, both ways', _spread(runs[f'aligned_r{k}']), _spread(runs[f'control_r{k}']), both(plain, k),
             both(plain, k, 'neighbours_{}_r{}'), f'{k / 164:.3f}'] for k in (1, 10)]
    return Result(
        'Two frozen towers, aligned', 'align/56_align.ipynb',
        'Can small adapters bring two towers together that were trained apart?',
        '1,644 emoji of Noto with their names, about 164 held out; the vision tower is pretrained on the other nine '
        'tenths, the text tower is all-MiniLM-L6-v2',
        'three seeds, each with its own split; the last epoch',
        'two cores of an AMD EPYC, 20 seconds after the towers have spoken once',
        'principal components of the pixels in the place of the vision tower; nearest neighbours of the training '
        'pairs in the frozen spaces; chance',
        'A tower that was pretrained with a teacher finds more than one of masked pretraining, and that one no more '
        'than the components of the pixels do: most of what these find, the text tower knew before.',
        [['held out', 'tower of stage two', 'pixel components', 'tower of stage one', 'its nearest neighbours',
          'chance'], *rows],
        [['R@10 of 164, both ways', _spread(runs.aligned_r10), f'{_spread(runs.control_r10)} (no vision training)',
          'better']])


def captions() -> Result:
    "Captions of MNIST."
    table = pd.read_csv(RESULTS/'mnist_captions.csv')
    rows = [[r.tower_epochs, r.trained, f'{r.exact_match:.4f}', f'{r.probe:.4f}', f'{r.bleu:.1f}', f'{r.cider:.2f}']
            for r in table.itertuples()]
    best = table.iloc[0]
    return Result(
        'Digits described in words', 'align/58_caption.ipynb',
        'Does a frozen language model write what is in a picture, through a projector alone?',
        'MNIST: towers and projector learn from training images; scores on all 10,000 test images',
        'one seed; the last epoch', 'two cores of an AMD EPYC (Zen 3, float32), 11.7 minutes in all with two epochs',
        'a linear classifier with all labels on the same tower (probe)',
        'Captions reach the probe, and no more: the tower has never seen a label, the captions have. One seed.',
        [['epochs of the tower', 'what is trained', 'exact match', 'probe', 'BLEU', 'CIDEr'], *rows],
        [['exact captions', f'{best.exact_match:.3f}', f'{best.probe:.3f} (linear probe)', 'as good']])


def reading() -> Result:
    "What a small vision-language model reads."
    runs = json.loads((RESULTS/'reads.json').read_text(encoding='utf-8'))
    names = {'digit': 'handwritten digits', 'strip': 'lines of 3 to 8 characters', 'chart': 'charts of three bars'}
    of = {task: pd.DataFrame([run[task] for run in runs]) for task in names}
    keys = ['exact', 'exact_swapped', 'exact_blank', 'character_error']
    rows = [[name, f'{of[task].n[0]:,}', *(_spread(of[task][k]) for k in keys)] for task, name in names.items()]
    found = pd.DataFrame([run['retrieval'] for run in runs])
    minutes = [run['seconds'] / 60 for run in runs]
    headline = [[f'exact, {name}', _spread(of[task].exact), f'{_mean(of[task].exact_swapped)} (swapped pictures)',
                 'better'] for task, name in names.items()]
    headline.append(['R@1 of 1,000 lines', ', '.join(f'{r:.3f}' for r in found.r1), '0.001 (chance)', 'better'])
    return Result(
        'What a small model reads', 'vl/91_reading.ipynb',
        'Does a decoder read its picture, or guess what is likely?',
        '80,000 pictures of lines, 60,000 of digits, and charts; texts of lines and charts that are asked are nowhere '
        'in training; digits are those of the test set of MNIST',
        'three seeds; the last step', f'two cores of an AMD EPYC, {min(minutes):.1f} to {max(minutes):.1f} minutes',
        'the picture of another record, and a blank one',
        f'It reads. Lines vary with the seed ({of["strip"].exact.min():.3f} to {of["strip"].exact.max():.3f}), and so '
        f'does R@1 of pictures that look for their line ({found.r1.min():.3f} to {found.r1.max():.3f}).',
        [['pictures', 'held out', 'exact', 'with swapped pictures', 'with blank ones', 'character error'], *rows],
        headline)


def verdict() -> Result:
    "What embeddings beside words are worth, on digits."
    table = pd.read_csv(RESULTS/'verdict.csv')
    rows = []
    for r in table.itertuples():
        gains = [(getattr(r, f'exact_difference_{e}'), getattr(r, f'exact_error_{e}'), getattr(r, f'exact_verdict_{e}'))
                 for e in ('tokens', 'seconds')]
        rows.append([r.regime, r.arm, f'{r.exact:.3f}', *(f'{_signed(d, e)}, {v}' for d, e, v in gains)])
    arms = table.set_index('arm')
    headline = []
    for arm, name in (('levljepa', 'two views beside words, many pairs'), ('masked', 'masked latents, many pairs'),
                      ('pictures 50', 'pictures first, 50 labels')):
        r = arms.loc[arm]
        for equal in ('tokens', 'seconds'):
            gain = _signed(r[f'exact_difference_{equal}'], r[f'exact_error_{equal}'])
            control = f'{r[f"exact_control_{equal}"]:.3f} (words alone, equal {equal})'
            headline.append([f'exact, {name}', f'{gain} over control', control, r[f'exact_verdict_{equal}']])
    return Result(
        'What embeddings are worth beside words', 'vl/92_verdict.ipynb',
        'Is a hybrid better than words alone, at equal word tokens and at equal seconds?',
        'digits of MNIST read in words: 60,000 pairs (plenty), or 50, 300 and 4,000 labelled digits with 40,000 '
        'pictures without a text (few); scores on 2,000 test pictures',
        'three seeds, paired differences with their standard error; the last step',
        'one core of an AMD EPYC for each run',
        'the same stages with words alone, at equal word tokens and at equal seconds',
        'Two views help each word and do not pay for their time. **Masked latents lose at equal seconds.** Pictures '
        'without a text help where words are few; at equal seconds they pay with 50 labels alone.',
        [['pairs', 'arm', 'exact', 'gain at equal word tokens', 'gain at equal seconds'], *rows], headline)


def curriculum() -> Result:
    "A small curriculum on code and drawings."
    runs = pd.read_csv(RESULTS/'curriculum.csv')
    end = runs.groupby(['run', 'seed']).last().reset_index()
    wide = end.pivot(index='seed', columns='run', values='perplexity').dropna(axis=1)
    tokens, seconds = wide.hybrid - wide.control, wide.hybrid - wide.control_seconds
    gaps = [_signed(d.mean(), d.std() / len(d) ** .5, 1) for d in (tokens, seconds)]
    rows = [['four stages with two views, weight .01', _spread(wide.hybrid, 1)],
            ['words alone, equal word tokens', _spread(wide.control, 1)],
            ['words alone, equal seconds', _spread(wide.control_seconds, 1)]]
    first = end[end.seed == 0].set_index('run')
    rows.append(['weight 1, seed 0 alone', f'{first.perplexity["weight 1"]:.1f}'])
    last = end[end.run == 'hybrid']
    look = (last.perplexity_swapped / last.perplexity_pictured - 1).abs().max()
    return Result(
        'A small curriculum on code and drawings', 'vl/86_curriculum.ipynb',
        'Do embeddings help a model of 7 million weights on a million tokens, and does it read its pictures?',
        'the standard library of Python and 800 pictures each of code, charts, formulas, statements and mock-ups; '
        'mmjepa_pairs holds one record in ten out',
        'three seeds; the last of a million tokens', 'one core of an AMD EPYC for each run, float32',
        'words alone at equal word tokens and at equal seconds; pictures of other records',
        'A tie by the word, **worse by the second**, and worse by a third with a weight of 1. **No arm reads its '
        f'pictures**: with those of other records perplexity changes by {100 * look:.0f}% at most.',
        [['run', 'perplexity of held-out rows'], *rows],
        [[f'perplexity, equal {equal}', f'{gap} over control', f'{control.mean():.1f} (words alone)', outcome]
         for equal, gap, control, outcome in (('word tokens', gaps[0], wide.control, 'a tie'),
                                              ('seconds', gaps[1], wide.control_seconds, 'worse'))])


EXPERIMENTS = labels, shipped, masked, pairs, taught, clusters, aligned, captions, reading, verdict, curriculum


def costs() -> list:  # dicts with what, figure, beside, conditions and page
    "What steps and products cost, as their notebooks have it."
    return list(csv.DictReader((RESULTS/'costs.csv').read_text(encoding='utf-8').splitlines()))
