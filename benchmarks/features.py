"""An epoch of alignment from cached features against one through CLIP ViT-B/32: `python benchmarks/features.py
[pairs]`.

Both train the same adapters on the same records; the tower has random weights of CLIP ViT-B/32's shape, pictures are
224 pixels wide.
"""
import contextlib
import io
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from PIL import Image

from mmjepa.align.aligner import AlignmentConfig, VisionTextAligner, train_alignment
from mmjepa.align.inputs import ImageTextDataset, create_dataloader
from mmjepa.align.tiny_models import quiet_transformers, tiny_model


def towers(folder: Path) -> AlignmentConfig:
    "A vision tower of CLIP's shape and a tiny text tower."
    shape = transformers.CLIPVisionConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                                          num_attention_heads=12, patch_size=32, image_size=224)
    with quiet_transformers():
        transformers.CLIPVisionModel(shape).save_pretrained(folder/'clip')
        transformers.CLIPImageProcessor().save_pretrained(folder/'clip')
    tiny_model('bert', folder/'bert')
    return AlignmentConfig(str(folder/'clip'), str(folder/'bert'), num_epochs=1)


def pairs(n: int) -> list:
    "Noise, with a text each."
    g = torch.Generator().manual_seed(0)
    pixels = (torch.randint(256, (240, 300, 3), generator=g, dtype=torch.uint8).numpy() for _ in range(n))
    return [(Image.fromarray(p), f'picture {i}') for i, p in enumerate(pixels)]


def main(n: int = 128):
    folder = Path(tempfile.mkdtemp())
    model, data = VisionTextAligner(towers(folder)), ImageTextDataset(pairs(n))
    def epoch(**options) -> float:
        "Seconds of training in one epoch."
        output = Path(tempfile.mkdtemp())/'run'
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            table = train_alignment(model, create_dataloader(data), 1, output_dir=output, val_split=0.,
                                    cache_dir=folder/'cache', eval_every=1, **options)
        return table.seconds.iloc[0]
    epoch() # fills the cache
    through, cached = min(epoch(cache=False) for _ in range(2)), min(epoch() for _ in range(5))
    print(f'{n} pairs, batches of 32, {torch.get_num_threads()} threads: {through:.2f} s through the tower, '
          f'{cached:.3f} s from the cache: {through / cached:.0f} times')


if __name__ == '__main__': main(*map(int, sys.argv[1:2]))
