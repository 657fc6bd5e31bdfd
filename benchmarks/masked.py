"""A step of masked image modelling against a step of the bare encoder: `python benchmarks/masked.py`.

Same images, same encoder. The bare step is forward and backward of the mean of all states; masked image modelling
adds the mask, the mask token, the normalized target, the linear head and the loss. The two take turns; the ratio is
that of one round.
"""
import statistics

import torch
from fastcore.script import call_parse

from measure import in_turn, ratios, spread
from mmjepa.core import get_device, make_generator, seed_everything
from mmjepa.encoders import EncoderConfig, MultimodalEncoder
from mmjepa.losses import masked_patch_loss
from mmjepa.pretrain.masked import MaskedModel, MaskedTransform


@call_parse
def main(
    batch: int = 64,      # images
    image_size: int = 64, # pixels
    patch_size: int = 8,  # pixels
    emb_dim: int = 128,   # width
    depth: int = 4,       # blocks
    rounds: int = 7,      # turns of each
    steps: int = 3,       # steps a turn
):
    "Median time of both steps and of their ratio."
    seed_everything(0)
    device = get_device()
    shape = EncoderConfig(image_size, patch_size, 3, num_classes=0, emb_dim=emb_dim, depth=depth, num_heads=2,
                          vocab_size=300, context=16)
    model = MaskedModel(MultimodalEncoder(shape)).to(device).train()
    size = batch, 3, image_size, image_size
    raw, image = {'image': torch.randint(256, size, dtype=torch.uint8, device=device)}, torch.randn(size, device=device)
    transform = MaskedTransform(shape.grid)

    def bare():
        for _ in range(steps):
            model.zero_grad()
            model.encoder(image=image).mean().backward()

    def masked():
        for i in range(steps):
            model.zero_grad()
            b = transform(raw, make_generator(i))
            found = model.patches(b['image'], b['mask'])
            masked_patch_loss(found, model.target(b['image']), b['mask']).backward()

    times = in_turn({'encoder': bare, 'masked': masked}, rounds)
    print(f'{batch} images of {image_size} pixels, {shape.patches} patches, {depth} x {emb_dim}, {device}, '
          f'{torch.get_num_threads()} threads')
    for name, t in times.items(): print(f'{name:<8} {1e3 * statistics.median(t) / steps:.0f} ms a step')
    print(f'ratio {spread(ratios(times["masked"], times["encoder"]))}')
