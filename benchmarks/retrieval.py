"""M1 in batches against one pair of image and label at a time, at the shapes of the reference.

    python benchmarks/retrieval.py
"""
import time

import torch

from mmjepa.encoders import EncoderConfig
from mmjepa.label.lejepa import LeJEPAConfig, MultimodalLeJEPA
from mmjepa.label.retrieval import similarities
from mmjepa.training import choose_precision
from mmjepa.core import get_device


@torch.inference_mode()
def pairs(model, images, k):
    "The naive M1: an image, then the image with each label, one at a time."
    rows = []
    for x in images[:, None]:
        e = model.encode_image(x).embedding
        rows.append([torch.cosine_similarity(e, model.encode_multimodal(x, torch.tensor([j], device=x.device)).embedding).item() for j in range(k)])
    return torch.tensor(rows)


@torch.inference_mode()
def main(n=96, few=4, k=10):
    torch.manual_seed(0)
    device = get_device()
    model = MultimodalLeJEPA(LeJEPAConfig(EncoderConfig())).to(device).eval()
    images = torch.randn(n, 1, 32, 32, device=device)
    bf16 = choose_precision('auto', device) == 'bf16'
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        pairs(model, images[:1], k)
        ratios = []
        for _ in range(3):
            start = time.perf_counter(); slow = pairs(model, images[:few], k)
            one = (time.perf_counter() - start) / few
            start = time.perf_counter(); fast = similarities(model, images, k, methods=(1,))[1][0].cpu()
            batch = (time.perf_counter() - start) / n
            ratios.append(one / batch)
    assert (slow - fast[:few]).abs().max() < (2e-2 if bf16 else 1e-4)
    print(f'{device}, {torch.get_num_threads()} threads: {1e3 * one:.1f} ms an image one pair at a time, {1e3 * batch:.2f} ms in batches; '
          f'ratios of three rounds: {", ".join(f"{r:.1f}" for r in ratios)}')


if __name__ == '__main__': main()
