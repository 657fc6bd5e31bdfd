"""M1 in batches against one pair of image and label at a time, at the shapes of the reference.

    python benchmarks/retrieval.py
"""
import time

import torch

from mmjepa.core import get_device
from mmjepa.encoders import EncoderConfig
from mmjepa.label.lejepa import LeJEPAConfig, MultimodalLeJEPA
from mmjepa.label.retrieval import similarities
from mmjepa.training import choose_precision


@torch.inference_mode()
def pairs(model, images, k):
    "The naive M1: an image, then the image with each label, one at a time."
    found = torch.zeros(len(images), k)
    for i, x in enumerate(images[:, None]):
        alone = model.encode_image(x).embedding
        for j in range(k):
            together = model.encode_multimodal(x, torch.tensor([j], device=x.device)).embedding
            found[i, j] = torch.cosine_similarity(alone, together).item()
    return found


def seconds_an_image(f, n):
    "Time of a call that returns similarities of `n` images, and these."
    start = time.perf_counter()
    found = f().cpu() # a GPU is done by then
    return (time.perf_counter() - start) / n, found


@torch.inference_mode()
def main(n=96, few=4, k=10):
    torch.manual_seed(0)
    device = get_device()
    model = MultimodalLeJEPA(LeJEPAConfig(EncoderConfig())).to(device).eval()
    images, ratios = torch.randn(n, 1, 32, 32, device=device), []
    bf16 = choose_precision('auto', device) == 'bf16'
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        pairs(model, images[:1], k)
        for _ in range(3):
            one, slow = seconds_an_image(lambda: pairs(model, images[:few], k), few)
            batch, fast = seconds_an_image(lambda: similarities(model, images, k, methods=(1,))[1][0], n)
            ratios.append(one / batch)
    assert (slow - fast[:few]).abs().max() < (2e-2 if bf16 else 1e-4)
    print(f'{device}, {torch.get_num_threads()} threads: {1e3 * one:.1f} ms an image one pair at a time, '
          f'{1e3 * batch:.2f} ms in batches; ratios of three rounds: {", ".join(f"{r:.1f}" for r in ratios)}')


if __name__ == '__main__': main()
