"Two gloo ranks give the value and, after DDP's averaging, the gradient of one process that holds the whole batch."
import tempfile
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mmjepa.core import global_mean, seed_everything
from mmjepa.encoders import EncoderConfig, GlobalBatchNorm
from mmjepa.data.images import ImageSet, to_float
from mmjepa.data.loaders import image_loader
from mmjepa.label.lejepa import LeJEPAConfig, LeJEPAObjective, MultimodalLeJEPA
from mmjepa.losses import invariance_loss
from mmjepa.training import TrainConfig, fit
from ranks import on_ranks

SHARES = {1: [12], 2: [5, 7]}  # rows of each rank: unequal on purpose


def share(x, rank, world):
    return x.split(SHARES[world])[rank]


def loss_and_gradient(rank, world, f):
    "Value of a loss of 12 rows and the gradient of a shared weight, averaged over ranks as DDP does."
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(12, 3, 4, generator=g), torch.randn(4, 4, generator=g).requires_grad_()
    loss = f(share(x, rank, world) @ w)
    loss.backward()
    grad = w.grad
    if world > 1:
        torch.distributed.all_reduce(grad)
        grad /= world
    return loss.detach(), grad


def invariance(z): return invariance_loss(z)
def squares(z): return global_mean(z.square())
def normalized(z): return global_mean(GlobalBatchNorm(4)(z.flatten(0, 1)).pow(3).cos())


def compare(f):
    (value, grad), = [loss_and_gradient(0, 1, f)]
    for other, other_grad in on_ranks(loss_and_gradient, 2, f):
        assert_close(other, value)
        assert_close(other_grad, grad, rtol=1e-4, atol=1e-6)


def test_invariance_loss(): compare(invariance)
def test_global_mean(): compare(squares)
def test_global_batch_norm(): compare(normalized)


def running_statistics(rank, world):
    norm, x = GlobalBatchNorm(4), torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(3): norm(share(x, rank, world))
    return norm.state_dict()


def test_batch_norm_keeps_the_same_running_statistics():
    one = running_statistics(0, 1)
    for other in on_ranks(running_statistics, 2): assert_close(dict(other), dict(one))


def train_five_steps(rank, world, folder, multimodal):
    "The real loop on the real model, 16 images a step over all ranks, without dropped paths or hidden patches."
    g = torch.Generator().manual_seed(0)
    data = ImageSet(torch.randint(256, (80, 1, 8, 8), generator=g, dtype=torch.uint8),
                    torch.randint(4, (80,), generator=g), list('abcd'), name='noise')
    encoder = EncoderConfig(image_size=8, patch_size=4, num_classes=4, emb_dim=16, depth=2, num_heads=2, drop_path=0.)
    seed_everything(0)
    config = LeJEPAConfig(encoder, proj_hidden=24, proj_dim=8, label_view_patches=1., label_view_swap=0.,
                          multimodal=multimodal)
    model = MultimodalLeJEPA(config)
    loader = image_loader(data, 16 // world, shuffle=True, drop_last=True)
    def views(batch, generator):
        x = to_float(batch['image'])
        return {**batch, 'views': torch.stack([x, x.flip(-1)], 1)}
    losses = []
    def objective(outputs, batch):
        loss, logs = lejepa(outputs, batch)
        losses.append(loss.item())
        return loss, logs
    lejepa = LeJEPAObjective(num_slices=16)
    fit(model, objective, loader, config=TrainConfig(epochs=1, lr=1e-2, precision='fp32'),
        output_dir=Path(folder)/str(world), transform=views)
    return torch.tensor(losses)


@pytest.mark.parametrize('multimodal', [True, False])
def test_five_steps_of_training(multimodal):
    "Losses, not weights: a bias before a batch norm has no gradient but rounding, which Adam makes large."
    with tempfile.TemporaryDirectory() as folder:
        one, = on_ranks(train_five_steps, 1, folder, multimodal)
        assert len(one) == 5 and one[-1] != one[0]
        for other in on_ranks(train_five_steps, 2, folder, multimodal): assert_close(other, one, rtol=1e-4, atol=1e-5)
