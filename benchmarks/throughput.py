"""A training step at the shapes of the reference (64 patches, 2 views, batch 128): the library's step, a naive one, and the limit.

The naive step is what a straightforward script does: float32, fused attention, one call of the encoder a view, labels encoded for each sample, SIGReg at 17 knots
for every number, unfused AdamW. The limit is the time of the matrix products alone, in the library's precision, forward and backward, on tensors of the same shapes.
    python benchmarks/throughput.py [--batch 128] [--rounds 3]
"""
import argparse, time

import torch

from mmjepa.core import get_device, make_generator
from mmjepa.encoders import EncoderConfig
from mmjepa.data.augmentation import AugmentConfig, make_views
from mmjepa.label.lejepa import LeJEPAConfig, LeJEPAObjective, MultimodalLeJEPA
from mmjepa.training import choose_precision, parameter_groups


def ours(images, labels, device, bf16):
    "The step of `fit`: augmentation, forward, loss, backward, clipping, fused AdamW."
    model, objective = MultimodalLeJEPA(LeJEPAConfig(EncoderConfig(), label_view_patches=1.)).to(device), LeJEPAObjective().to(device)
    opt, n = torch.optim.AdamW(parameter_groups(model, .05), fused=True), [0]
    def step():
        n[0] += 1
        batch = {'views': make_views(images, 2, AugmentConfig(), generator=make_generator(n[0])), 'label': labels}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16): out = model(batch)
        loss, _ = objective(out, batch)
        opt.zero_grad(); loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
    return step


def naive(images, labels, device):
    "The same step as a plain script would write it."
    model = MultimodalLeJEPA(LeJEPAConfig(EncoderConfig())).to(device)
    opt, n = torch.optim.AdamW(model.parameters(), fused=False, foreach=False), [0]
    t = torch.linspace(0, 3, 17, device=device)
    phi, dt = torch.exp(-t**2 / 2), 3 / 16
    weight = torch.full((17,), 2 * dt, device=device); weight[0] = weight[-1] = dt
    def tokens(x=None, y=None):
        e = model.encoder.embedders
        h = torch.cat([*([e['image'](x)] if x is not None else []), *([e['label'](y)] if y is not None else [])], 1)
        for b in model.encoder.blocks:
            b.attn.fused_attn = True
            h = b(h)
        return model.encoder.norm(h).mean(1)
    def statistic(z):
        u = torch.randn(z.shape[1], 256, device=device); u = u / u.norm(dim=0)
        x = (z @ u)[..., None] * t
        return ((((x.cos().mean(0) - phi)**2 + x.sin().mean(0)**2) * phi) @ weight).mean() * len(z)
    def step():
        n[0] += 1
        views = make_views(images, 2, AugmentConfig(), generator=make_generator(n[0]))
        z = torch.stack([model.projector(e) for e in (tokens(views[:, 0]), tokens(views[:, 1], labels), tokens(y=labels))], 1)
        loss = .98 * (z - z.mean(1, keepdim=True)).square().mean() + .02 * (statistic(z[:, 0]) + statistic(z[:, 1])) / 2
        opt.zero_grad(); loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
    return step


def products(b, device, bf16):
    "The matrix products of such a step and nothing else: three for each linear map, twice three for attention, 64 and 65 tokens."
    cfg, dtype = EncoderConfig(), torch.bfloat16 if bf16 else torch.float32
    d, make = cfg.emb_dim, lambda *s: torch.randn(*s, device=device, dtype=dtype)
    shapes = []
    for n in (64, 65):
        rows = b * n
        linear = [(rows, d, 3 * d), (rows, d, d), (rows, d, 4 * d), (rows, 4 * d, d)]
        shapes += [((r, i), (i, o)) for r, i, o in linear for _ in range(cfg.depth)]
        heads = b * cfg.num_heads
        shapes += [((heads, n, 64), (heads, 64, n)), ((heads, n, n), (heads, n, 64))] * cfg.depth
        shapes.append(((b * 64, 16), (16, d)))
    pairs = {s: (make(*s[0]), make(*s[1])) for s in set(shapes)}
    grads = {s: make(*s[0][:-1], s[1][-1]) for s in pairs}
    def step():
        for s in shapes:
            (x, w), g = pairs[s], grads[s]
            x @ w, g @ w.mT, x.mT @ g
    return step


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--batch', type=int, default=128); p.add_argument('--rounds', type=int, default=3)
    args = p.parse_args()
    torch.manual_seed(0)
    device = get_device()
    bf16 = choose_precision('auto', device) == 'bf16'
    images, labels = torch.randint(256, (args.batch, 1, 32, 32), dtype=torch.uint8, device=device), torch.randint(10, (args.batch,), device=device)
    steps = {'library': ours(images, labels, device, bf16), 'naive': naive(images, labels, device), 'matrix products': products(args.batch, device, bf16)}
    best = dict.fromkeys(steps, float('inf'))
    for _ in range(args.rounds):  # in turn, so that a noisy minute hits all of them
        for name, f in steps.items():
            f()
            start = time.perf_counter(); f(); f()
            if device.type == 'cuda': torch.cuda.synchronize()
            best[name] = min(best[name], (time.perf_counter() - start) / 2)
    print(f'{device}, {torch.get_num_threads()} threads, {"bf16" if bf16 else "fp32"} products, batch {args.batch}, 2 views of 64 patches')
    for name, s in best.items(): print(f'{name:16} {args.batch / s:7.1f} images/s')
    print(f'library / naive: {best["naive"] / best["library"]:.2f}; library / limit: {best["matrix products"] / best["library"]:.2f}')


if __name__ == '__main__': main()
