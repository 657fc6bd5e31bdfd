"""A step of captions may be cut anyhow; that of alignment compares all pairs; two ranks, sharded or not, are one."""
import os

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from mmjepa.align.align import PairSource, open_records, run_alignment
from mmjepa.align.aligner import AlignmentConfig, AlignmentObjective, VisionTextAligner, load_aligner
from mmjepa.align.captioner import LLMConfig, MultimodalLLM, caption_objective, caption_rows
from mmjepa.align.tiny_models import tiny_model
from mmjepa.core import UserError, seed_everything
from mmjepa.data.records import digit_pairs
from mmjepa.runs import RunConfig
from mmjepa.training import TrainConfig, fit
from cuts import assert_same_gradient
from ranks import on_ranks

SHARDED = {'ACCELERATE_USE_FSDP': 'true', 'FSDP_VERSION': '2', 'FSDP_RESHARD_AFTER_FORWARD': 'true',
           'FSDP_AUTO_WRAP_POLICY': 'NO_WRAP'}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "Tiny models and pairs; in the environment, for processes of other ranks."
    root = tmp_path_factory.mktemp('models')
    for kind in ('clip', 'bert', 'qwen2'): tiny_model(kind, root/kind)
    digit_pairs(root, 60)
    os.environ['ALIGN_TEST'] = str(root)
    return root


def config(root, **changes):
    return AlignmentConfig(f'{root}/clip', f'{root}/bert', d_align=16, mrl_dims=(8, 16), dropout=0., lr=3e-3, **changes)


def captions():
    "Rows with captions of 3 to 13 tokens."
    seed_everything(0)
    root = os.environ['ALIGN_TEST']
    model = MultimodalLLM(VisionTextAligner(config(root)), LLMConfig(f'{root}/qwen2', n_prefix=2))
    ids, real, _ = caption_rows(model.tokenizer, ['a thin two' + ' and more' * i for i in range(8)], 14)
    features = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    return model, caption_objective, [{'image_features': features[i:i + 1], 'caption': ids[i:i + 1],
                                       'caption_mask': real[i:i + 1]} for i in range(8)]


def test_a_step_of_captions_may_be_cut(root): assert_same_gradient(captions, ranks=False)


def test_a_step_of_alignment_may_not(root, tmp_path):
    with pytest.raises(UserError, match='the contrastive loss compares all rows'):
        fit(VisionTextAligner(config(root)), AlignmentObjective((8, 16)), [{}] * 4, output_dir=tmp_path,
            config=TrainConfig(epochs=1, accumulate=2, precision='fp32'))


def align(root, folder, world=1):
    "A run in steps of 16 pairs, over all ranks."
    records = open_records(PairSource(f'{root}/pairs.jsonl'))
    cfg = config(root, batch_size=16 // world, num_epochs=2, learn_temperature=True, temperature=.011)
    run_alignment(records, cfg, RunConfig(folder), cache_dir=folder.parent/'cache', precision='fp32', eval_every=1)


def align_on_rank(rank, world, root, folder, env):
    os.environ.update(env)
    align(root, folder, world)


@pytest.fixture(scope='module')
def single(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp('single')/'run'
    align(root, folder)
    return folder


@pytest.mark.parametrize('env', [{}, SHARDED], ids=['ddp', 'fsdp'])
def test_two_ranks_are_one(root, single, tmp_path, env):
    on_ranks(align_on_rank, 2, root, tmp_path/'run', env)
    tables = [pd.read_csv(f/'metrics.csv').drop(columns=['images_per_s', 'seconds']) for f in (single, tmp_path/'run')]
    assert tables[0].image_to_text_r1.notna().all()
    pd.testing.assert_frame_equal(*tables, rtol=1e-3, atol=1e-4)
    weights = [load_file(f/'aligner/adapters.safetensors') for f in (single, tmp_path/'run')]
    assert_close(weights[1], weights[0], rtol=0, atol=1e-4)
    assert load_aligner(tmp_path/'run').log_scale.exp().item() < 100.01
    assert (tmp_path/'run/report.md').read_text().count('image_to_text_r1') == (single/'report.md').read_text().count(
        'image_to_text_r1')
