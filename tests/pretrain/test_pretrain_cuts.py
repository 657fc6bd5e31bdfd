"""A step of stage one is the same however it is cut; one of stage two can't be cut; the slow copy moves once a step."""
import pytest
import torch

from mmjepa.core import UserError, seed_everything
from mmjepa.encoders import EncoderConfig, MultimodalEncoder
from mmjepa.pretrain.contrastive import ContrastiveConfig, ContrastiveModel, ContrastiveObjective
from mmjepa.pretrain.masked import LatentTarget, MaskedModel, MaskedObjective, masked_objective
from mmjepa.training import TrainConfig, fit
from cuts import assert_same_gradient

T, N = 6, 16  # tokens of a text, patches


def encoder():
    seed_everything(0)
    return MultimodalEncoder(EncoderConfig(16, 4, 3, num_classes=0, emb_dim=16, depth=1, num_heads=2, drop_path=0.,
                                           vocab_size=30, context=T))


def rows_of(n=8):
    "Rows that hide 1, 2, 3, ... patches, and 6, 5, 4, ... words; one hides none."
    g, rows = torch.Generator().manual_seed(0), []
    for i in range(n):
        text, hidden = torch.randint(4, 30, (1, T), generator=g), torch.arange(T)[None] < (T - i) % T
        rows.append({'image': torch.randn(1, 3, 16, 16, generator=g), 'mask': torch.arange(N)[None] <= i, 'text': text,
                     'text_mask': torch.ones(1, T, dtype=torch.bool), 'text_hidden': hidden,
                     'text_seen': text.masked_fill(hidden, 3)})
    return rows


def pixels(): return MaskedModel(encoder()), MaskedObjective(.7), rows_of()


def latents():
    shared = encoder()
    return MaskedModel(shared, LatentTarget(shared)), masked_objective, rows_of()


def test_masked_step_is_the_same_however_it_is_cut(): assert_same_gradient(pixels)


def test_latent_targets_as_well(): assert_same_gradient(latents, ranks=False)


class Batches(list):
    "A loader of batches that are there; between two epochs there is nothing to remember."
    sampler = None
    def state_dict(self): return {}
    def load_state_dict(self, state): pass


def test_slow_copy_moves_once_a_step_and_goes_on_after_resume(tmp_path):
    def run(folder, steps=4, resume=False):
        shared = encoder()
        model, calls = MaskedModel(shared, LatentTarget(shared, momentum=.9)), []
        plain = model.target.follow
        model.target.follow = lambda e: (calls.append(1), plain(e))
        settings = TrainConfig(epochs=2, accumulate=2, precision='fp32', max_steps=steps)
        fit(model, masked_objective, Batches(rows_of(4)), config=settings, output_dir=folder, resume=resume,
            settings={'test': 1}, rate=lambda step: 1e-2)
        return len(calls), model.state_dict()
    moves, whole = run(tmp_path/'whole')
    assert moves == 4 and not whole['target.encoder.norm.weight'].equal(whole['encoder.norm.weight'])
    assert run(tmp_path/'parts', steps=2)[0] == 2
    moves, resumed = run(tmp_path/'parts', resume=True)
    assert moves == 2 and all(resumed[k].equal(whole[k]) for k in whole)


def test_contrastive_step_can_not_be_cut(tmp_path):
    model = ContrastiveModel(ContrastiveConfig(encoder().cfg, proj_dim=8))
    with pytest.raises(UserError, match='contrastive loss'):
        fit(model, ContrastiveObjective(), Batches(rows_of()), output_dir=tmp_path,
            config=TrainConfig(epochs=1, accumulate=2, precision='fp32'))
