"""A training step of the vision-language model against the sum of its matrix products: `python benchmarks/vl_step.py`.

Three stages on the same packed rows, half of them with an image: embeddings (JEPA), tokens (LM), and both (hybrid).
A step is what `fit` does with a batch: masks, forward under autocast, objective, backward, clipping, fused AdamW.
Its products are recorded from a real step as PyTorch dispatches them, forward and backward (linear layers, the patch
embedding, the language head in its chunks, and the two products of each attention, four backward), then made again
on contiguous tensors of the same shapes and types and nothing else. All take turns, so that a slow moment of the
machine hits each of them; ratios are those of one round. On a CPU with one thread the processor's own time is taken,
without what other programs had of it in between.
"""
import os
import statistics
import time
from collections import Counter
from math import prod

import torch
from fastcore.script import call_parse
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from measure import in_turn, ratios, seconds, spread
from mmjepa.core import get_device, height_width, make_generator
from mmjepa.encoders import EncoderConfig
from mmjepa.masking import JEPAMasking
from mmjepa.training import choose_precision, parameter_groups
from mmjepa.vl.hybrid import JointMasks, VLJEPAObjective, next_token_labels
from mmjepa.vl.model import VLJEPA, VLJEPAConfig

STAGES = {'JEPA': (1., 0.), 'LM': (0., 1.), 'hybrid': (.3, .7)}  # alpha, beta

GROUPS = {  # of operators that are no products, by words of their names; the first that fits
    'attention kernel': 'attention',
    'optimizer, clipping': 'adam foreach norm_except linalg_vector_norm',
    'normalization': 'norm rsqrt pow mean',
    'softmax, exp': 'softmax exp amax log',
    'GELU, SiLU': 'gelu silu',
    'copies, casts': 'copy cat clone contiguous repeat constant_pad roll',
    'indexing, masks': 'index gather scatter embedding masked where tri sort unique nonzero cum slice_backward '
                       'select_backward eq le lt bitwise rand',
    'sums': 'sum',
    'arithmetic': 'add mul sub div neg sin cos sqrt lerp maximum clamp',
    'fill': 'fill zero empty ones arange',
}
PRODUCTS = 'mm', 'convolution'


class Recorded(TorchDispatchMode):
    "In this block, `shapes` counts the matrix products: (batch or 0, m, k, n, type)."
    def __init__(self):
        super().__init__()
        self.shapes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, t = func._schema.name.removeprefix('aten::'), [x for x in args if isinstance(x, torch.Tensor)]
        if name in ('mm', 'bmm'): self.add(*t[:2])
        elif name in ('addmm', 'addmm_', 'baddbmm'): self.add(*t[1:3])
        elif name == 'convolution': self.patches(t[0], t[1])
        elif name == 'convolution_backward': self.patches(t[1], t[2], args[-1][:2])
        elif 'scaled_dot_product' in name or '_flash_attention' in name:
            backward = 'backward' in name
            q, k, _ = t[1:4] if backward else t[:3]
            self.attention(q, k, backward)
        return func(*args, **(kwargs or {}))

    def count(self, batch, shape, dtype, n=1): self.shapes[(batch, *shape, dtype)] += n

    def add(self, a, b): self.count(a.shape[0] if a.ndim == 3 else 0, (*a.shape[-2:], b.shape[-1]), a.dtype)

    def patches(self, image, weight, wanted=None):
        "A strided convolution is a product of patches and weights; backward, one for each gradient that is wanted."
        grid = [size // patch for size, patch in zip(image.shape[2:], weight.shape[2:])]
        m, k, n = image.shape[0] * prod(grid), prod(weight.shape[1:]), weight.shape[0]
        if wanted is None: return self.count(0, (m, k, n), image.dtype)
        of_image, of_weight = wanted
        if of_image: self.count(0, (m, n, k), image.dtype)
        if of_weight: self.count(0, (k, m, n), image.dtype)

    def attention(self, q, k, backward):
        "Scores and values; backward the gradients of probabilities, of queries, and of keys and values."
        b, (t, e), s = q.shape[0] * q.shape[1], q.shape[2:], k.shape[2]
        made = {(t, e, s): 1, (t, s, e): 1}
        if backward: made[s, t, e] = 2
        for shape, n in made.items(): self.shapes[(b, *shape, q.dtype)] += n


def make_batch(config, rows, device):
    "Two documents a row, half of the rows with an image."
    g, t, v = make_generator('vl_step'), config.context_length, config.vision
    text = torch.randint(config.vocab_size, (rows, t), generator=g)
    document = (torch.arange(t) // (t // 2)).expand(rows, t).contiguous()
    real = torch.ones_like(text, dtype=torch.bool)
    batch = {'text': text, 'text_mask': real, 'document': document, 'labels': next_token_labels(text, real, document),
             'image': torch.randn(rows // 2, v.in_chans, *height_width(v.image_size), generator=g),
             'image_row': torch.arange(rows // 2) * 2}
    return {k: x.to(device) for k, x in batch.items()}


def make_step(config, batch, weights, *, bf16):
    "A training step with these weights of embeddings and tokens."
    device, (alpha, beta) = batch['text'].device, weights
    torch.manual_seed(0)
    model, objective = VLJEPA(config).to(device), VLJEPAObjective(alpha, beta).to(device)
    model.alpha, model.beta = alpha, beta
    optimizer = torch.optim.AdamW(parameter_groups(model, .1), lr=3e-4, fused=True)
    masks, g = JointMasks(JEPAMasking(config.mask_ratio), model.patches), make_generator('masks')
    def step():
        seen = masks(batch, g) if alpha else batch
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16): out = model(seen)
        loss = sum(objective(out, seen)[0].values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
    return step


def make_products(shapes, device):
    "All products of a step."
    pairs = []
    for (b, m, k, n, dtype), count in shapes.items():
        batch = [b] if b else []
        x, y = (torch.randn(*batch, *s, device=device, dtype=dtype) for s in ((m, k), (k, n)))
        pairs.append((x, y, count))
    def run():
        for x, y, count in pairs:
            for _ in range(count): x @ y
    return run


def milliseconds(f):
    "Of a call."
    own = not torch.cuda.is_available() and torch.get_num_threads() == 1
    return 1000 * seconds(f, time.process_time if own else time.perf_counter)


def group_of(name):
    "The group of an operator, '' for a product."
    name = name.removeprefix('aten::').lower()
    if any(p in name for p in PRODUCTS) and 'comm' not in name: return ''
    return next((g for g, words in GROUPS.items() if any(w in name for w in words.split())), 'other operators')


def shares(step, device, steps=3):
    "Share of a step's time by group of operators, and of each operator."
    cuda = device.type == 'cuda'
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    def several():
        for _ in range(steps): step()
    with profile(activities=activities) as p: ms = 1000 * seconds(several)
    own = 'self_device_time_total' if cuda else 'self_cpu_time_total' # microseconds
    spent = {e.key: getattr(e, own) / 1000 / ms for e in p.key_averages()}
    groups = Counter()
    for name, share in spent.items(): groups[group_of(name)] += share
    groups['between operators'] = 1 - sum(groups.values())
    return groups, spent


def tell_times(times):
    "Steps and products, their ratio, and what a hybrid step costs beside the two others."
    for name in STAGES:
        step, product = times[name, 'step'], times[name, 'products']
        print(f'{name:<7} step {statistics.median(step):7.1f} ms, products {statistics.median(product):7.1f} ms, '
              f'step / products {spread(ratios(step, product))}')
    hybrid, jepa, lm = (times[name, 'step'] for name in ('hybrid', 'JEPA', 'LM'))
    print(f'hybrid / (JEPA + LM) {spread(ratios(hybrid, map(sum, zip(jepa, lm))))}: two passes of three would be 0.67, '
          'and the language head is paid once on either side')


def tell_shares(name, groups, spent, *, most):
    "What a step does beside its products, and its slowest operators."
    products = groups.pop('')
    told = ', '.join(f'{g} {s:.1%}' for g, s in groups.most_common() if s >= .005)
    print(f'{name:<7} {products:.0%} in products; the rest: {told}')
    if most: print('   ' + ', '.join(f'{k} {s:.1%}' for k, s in Counter(spent).most_common(most)))


@call_parse
def main(
    rows: int = 4,          # of a batch
    context: int = 256,     # tokens of text in a row
    image_size: int = 128,  # side, pixels; patches have 16
    hidden: int = 256,      # width of a text state
    layers: int = 4,        # of the language encoder
    vocabulary: int = 8000, # words
    rounds: int = 7,        # timed steps of each stage
    threads: int = 0,       # of PyTorch; 0 for its default
    names: int = 0,         # also print so many of the slowest operators of each stage
):
    "Step, products, their ratio, what the rest is; and what a hybrid step costs beside the two others."
    if threads: torch.set_num_threads(threads)
    device = get_device()
    bf16 = choose_precision('auto', device) == 'bf16'
    vision = EncoderConfig(image_size, 16, 3, num_classes=0, emb_dim=192, depth=4, num_heads=3, drop_path=0.)
    config = VLJEPAConfig(vision, vocabulary, context, hidden_size=hidden, num_layers=layers,
                          num_heads=max(1, hidden // 64), num_kv_heads=max(1, hidden // 128))
    batch, timed = make_batch(config, rows, device), {}
    for name, weights in STAGES.items():
        step = make_step(config, batch, weights, bf16=bf16)
        step() # the first batch looks for collapse, too
        with Recorded() as found: step()
        timed[name, 'step'], timed[name, 'products'] = step, make_products(found.shapes, device)
        timed[name, 'products']()
    times = in_turn(timed, rounds, warm=0, clock=milliseconds)
    size = sum(p.numel() for p in VLJEPA(config).parameters()) / 1e6
    print(f'{size:.1f} M parameters, {rows} rows of {context} tokens and {vision.patches} patches, {device}, '
          f'{torch.get_num_threads()} threads, {"bf16" if bf16 else "fp32"} products, load {os.getloadavg()[0]:.1f}')
    tell_times(times)
    for name in STAGES: tell_shares(name, *shares(timed[name, 'step'], device), most=names)
