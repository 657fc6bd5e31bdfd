"""A step of masked image modelling against a step of the bare encoder: `python benchmarks/masked.py`.

Same images, same encoder. The bare step is forward and backward of the mean of all states; masked image modelling adds the mask, the mask token,
the normalized target, the linear head and the loss. The two take turns; the ratio is that of one round.
"""
import statistics
import time

import torch
from fastcore.script import call_parse

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
    model = MaskedModel(MultimodalEncoder(EncoderConfig(image_size, patch_size, 3, num_classes=0, emb_dim=emb_dim, depth=depth, num_heads=2, vocab_size=300, context=16))).to(device).train()
    raw = {'image': torch.randint(256, (batch, 3, image_size, image_size), dtype=torch.uint8, device=device)}
    transform, image = MaskedTransform(image_size // patch_size), torch.randn(batch, 3, image_size, image_size, device=device)

    def bare(i): model.encoder(image=image).mean().backward()

    def masked(i):
        b = transform(raw, make_generator(i))
        masked_patch_loss(model.patches(b['image'], b['mask']), model.target(b['image']), b['mask']).backward()

    def seconds(step):
        start = time.perf_counter()
        for i in range(steps): model.zero_grad(); step(i)
        if device.type == 'cuda': torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps

    seconds(bare), seconds(masked)
    times = [(seconds(bare), seconds(masked)) for _ in range(rounds)]
    a, b, ratio = (statistics.median(x) for x in zip(*((a, b, b / a) for a, b in times)))
    print(f'{batch} images of {image_size} pixels, {(image_size // patch_size)**2} patches, {depth} x {emb_dim}, {device}, {torch.get_num_threads()} threads: '
          f'encoder {1e3 * a:.0f} ms, masked {1e3 * b:.0f} ms, ratio {ratio:.2f} ({min(y / x for x, y in times):.2f} to {max(y / x for x, y in times):.2f})')
