"""A training step at the shapes of the reference (64 patches, 2 views, batch 128): ours, a naive one, and the limit.

The naive step is what a straightforward script does: float32, fused attention, one call of the encoder a view,
labels encoded for each sample, SIGReg at 17 knots for every number, unfused AdamW. The limit is the time of the
matrix products alone, in the library's precision, forward and backward, on tensors of the same shapes.
    python benchmarks/throughput.py [--batch 128] [--rounds 3]
"""
from itertools import count

import torch
from fastcore.script import call_parse
from torch import nn

from measure import in_turn, seconds
from mmjepa.core import get_device, make_generator
from mmjepa.data.augmentation import AugmentConfig, make_views
from mmjepa.encoders import EncoderConfig
from mmjepa.label.lejepa import LeJEPAConfig, LeJEPAObjective, MultimodalLeJEPA
from mmjepa.training import choose_precision, parameter_groups


def update(model, optimizer, loss):
    "Gradients, clipping, a step."
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.)
    optimizer.step()


def ours(images, labels, bf16):
    "The step of `fit`: augmentation, forward, loss, backward, clipping, fused AdamW."
    device, numbers = images.device, count(1)
    model = MultimodalLeJEPA(LeJEPAConfig(EncoderConfig(), label_view_patches=1.)).to(device)
    objective, optimizer = LeJEPAObjective().to(device), torch.optim.AdamW(parameter_groups(model, .05), fused=True)
    def step():
        views = make_views(images, 2, AugmentConfig(), generator=make_generator(next(numbers)))
        batch = {'views': views, 'label': labels}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16): out = model(batch)
        update(model, optimizer, objective(out, batch)[0])
    return step


def embed(encoder, x=None, y=None):
    "The mean state of images, of labels, or of both."
    parts = []
    if x is not None: parts.append(encoder.embedders['image'](x))
    if y is not None: parts.append(encoder.embedders['label'](y))
    states = torch.cat(parts, 1)
    for block in encoder.blocks:
        block.attn.fused_attn = True
        states = block(states)
    return encoder.norm(states).mean(1)


def statistic(z, t):
    "SIGReg of one cloud, a sine and a cosine at every knot."
    phi = torch.exp(-t**2 / 2)
    directions = torch.randn(z.shape[1], 256, device=z.device)
    angle = (z @ (directions / directions.norm(dim=0)))[..., None] * t
    distance = (angle.cos().mean(0) - phi)**2 + angle.sin().mean(0)**2
    return len(z) * (2 * torch.trapezoid(distance * phi, t)).mean()


def naive(images, labels):
    "The same step as a plain script would write it."
    device, numbers = images.device, count(1)
    model = MultimodalLeJEPA(LeJEPAConfig(EncoderConfig())).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=False, foreach=False)
    t = torch.linspace(0, 3, 17, device=device)
    def step():
        views = make_views(images, 2, AugmentConfig(), generator=make_generator(next(numbers)))
        seen = {'x': views[:, 0]}, {'x': views[:, 1], 'y': labels}, {'y': labels}
        z = torch.stack([model.projector(embed(model.encoder, **inputs)) for inputs in seen], 1)
        invariance = (z - z.mean(1, keepdim=True)).square().mean()
        update(model, optimizer, .98 * invariance + .02 * (statistic(z[:, 0], t) + statistic(z[:, 1], t)) / 2)
    return step


def product_shapes(b, cfg):
    "Shapes of both factors of each product: four linear maps a block, two products an attention, the patches."
    d, shapes = cfg.emb_dim, []
    for n in (64, 65):
        rows, heads = b * n, b * cfg.num_heads
        linear = [(rows, d, 3 * d), (rows, d, d), (rows, d, 4 * d), (rows, 4 * d, d)]
        block = [((r, i), (i, o)) for r, i, o in linear]
        block += [((heads, n, 64), (heads, 64, n)), ((heads, n, n), (heads, n, 64))]
        shapes += [*block * cfg.depth, ((b * 64, 16), (16, d))]
    return shapes


def products(b, device, bf16):
    "The matrix products of such a step and nothing else: forward, and two backward for each."
    shapes, dtype = product_shapes(b, EncoderConfig()), torch.bfloat16 if bf16 else torch.float32
    def make(*shape): return torch.randn(*shape, device=device, dtype=dtype)
    made = {(x, w): (make(*x), make(*w), make(*x[:-1], w[-1])) for x, w in set(shapes)}
    def step():
        for s in shapes:
            x, w, grad = made[s]
            x @ w, grad @ w.mT, x.mT @ grad
    return step


@call_parse
def main(
    batch: int = 128, # images
    rounds: int = 3, # turns of each
):
    "Images a second of each, and their ratios."
    torch.manual_seed(0)
    device = get_device()
    bf16 = choose_precision('auto', device) == 'bf16'
    images = torch.randint(256, (batch, 1, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(10, (batch,), device=device)
    steps = {'library': ours(images, labels, bf16), 'naive': naive(images, labels),
             'matrix products': products(batch, device, bf16)}
    def mean_of_two(f):
        f() # warms up
        return (seconds(f) + seconds(f)) / 2
    best = {name: min(t) for name, t in in_turn(steps, rounds, warm=0, clock=mean_of_two).items()}
    print(f'{device}, {torch.get_num_threads()} threads, {"bf16" if bf16 else "fp32"} products, batch {batch}, '
          '2 views of 64 patches')
    for name, s in best.items(): print(f'{name:16} {batch / s:7.1f} images/s')
    print(f'library / naive: {best["naive"] / best["library"]:.2f}; '
          f'library / limit: {best["matrix products"] / best["library"]:.2f}')
