"""An epoch of alignment from cached features against one through CLIP ViT-B/32: `python benchmarks/features.py [pairs]`.

Both train the same adapters on the same records; the tower has random weights of CLIP ViT-B/32's shape, pictures are 224 pixels wide."""
import contextlib, io, sys, tempfile
from pathlib import Path

import torch
import transformers
from PIL import Image

from mmjepa.align.aligner import AlignmentConfig, VisionTextAligner, train_alignment
from mmjepa.align.inputs import ImageTextDataset, create_dataloader
from mmjepa.align.tiny_models import quiet_transformers, tiny_model

n = int(sys.argv[1]) if len(sys.argv) > 1 else 128
folder = Path(tempfile.mkdtemp())
with quiet_transformers():
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=32, image_size=224)).save_pretrained(folder/'clip')
    transformers.CLIPImageProcessor().save_pretrained(folder/'clip')
tiny_model('bert', folder/'bert')
g = torch.Generator().manual_seed(0)
pairs = [(Image.fromarray(torch.randint(256, (240, 300, 3), generator=g, dtype=torch.uint8).numpy()), f'picture {i}') for i in range(n)]
model = VisionTextAligner(AlignmentConfig(str(folder/'clip'), str(folder/'bert'), num_epochs=1))

def epoch(**options) -> float:
    "Seconds of training in one epoch."
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return train_alignment(model, create_dataloader(ImageTextDataset(pairs)), 1, output_dir=Path(tempfile.mkdtemp())/'run', val_split=0., cache_dir=folder/'cache', eval_every=1, **options).seconds.iloc[0]

epoch()                                                              # fills the cache
through, cached = [epoch(cache=False) for _ in range(2)], [epoch() for _ in range(5)]
print(f'{n} pairs, batches of 32, {torch.get_num_threads()} threads: {min(through):.2f} s through the tower, {min(cached):.3f} s from the cache: {min(through) / min(cached):.0f} times')
