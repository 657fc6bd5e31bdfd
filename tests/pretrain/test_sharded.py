"""Both stages on two processes, with the weights on each (DDP) and shared out (FSDP): one process, to rounding."""
import os

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from mmjepa.core import content_id
from mmjepa.data.records import digit_pairs
from mmjepa.pretrain.contrastive import ContrastiveRun, PairTransform, run_contrastive
from mmjepa.pretrain.masked import MaskedRun, MaskedTransform, run_masked
from mmjepa.runs import RunConfig
from ranks import on_ranks

SHARDED = {
    'ACCELERATE_USE_FSDP': 'true', 'FSDP_VERSION': '2', 'FSDP_RESHARD_AFTER_FORWARD': 'true',
    'FSDP_AUTO_WRAP_POLICY': 'TRANSFORMER_BASED_WRAP', 'FSDP_TRANSFORMER_CLS_TO_WRAP': 'Block'}
SHAPE = dict(context=24, image_size=16, patch_size=4, emb_dim=16, depth=2, drop_path=0., augment=0., lr=3e-3, epochs=2,
             precision='fp32')
WEIGHTS = {'latent': 'encoder', 'pixels': 'encoder', 'contrastive': 'model'}


def by_content(plain):
    "A transform whose chances depend on each row alone, not on the rank that has it."
    def call(self, batch, generator):
        rows = []
        for i in range(len(batch['text'])):
            row = {k: v[i:i + 1] for k, v in batch.items()}
            seed = content_id(row['text'].numpy().tobytes() + row['image'].numpy().tobytes())
            rows.append(plain(self, row, torch.Generator().manual_seed(seed)))
        return {k: torch.cat([r[k] for r in rows]) for k in rows[0]}
    return call


def train(stage, data, folder, world=1):
    "A run in steps of eight rows, over all ranks."
    old = {kind: kind.__call__ for kind in (MaskedTransform, PairTransform)}
    for kind in old: kind.__call__ = by_content(old[kind])
    common = dict(json_data=str(data), batch_size=8 // world, **SHAPE)
    try:
        if stage != 'contrastive': run_masked(MaskedRun(target=stage, val_split=0., **common), RunConfig(folder))
        else: run_contrastive(ContrastiveRun(proj_dim=8, max_scale=15, accum_contrastive=2, **common),
                              RunConfig(folder))
    finally:
        for kind, call in old.items(): kind.__call__ = call


def train_on_rank(rank, world, data, folder, env):
    os.environ.update(env)
    for stage in WEIGHTS: train(stage, data, folder/stage, world)


@pytest.fixture(scope='module')
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp('single')
    data = digit_pairs(folder, 60)
    for stage in WEIGHTS: train(stage, data, folder/stage)
    return folder


def read(path):
    "Weights, but the biases of keys: they change no output, so that their gradient is nothing but rounding."
    weights = load_file(path/'model.safetensors')
    for name, w in weights.items():
        if name.endswith(('qkv.bias', 'in_proj_bias')): w.view(3, -1)[1] = 0
    return weights


@pytest.mark.parametrize('env', [{}, SHARDED], ids=['ddp', 'fsdp'])
def test_two_ranks_are_one(single, tmp_path, env):
    on_ranks(train_on_rank, 2, single/'pairs.jsonl', tmp_path, env)
    for stage, place in WEIGHTS.items():
        tables = [pd.read_csv(f/stage/'metrics.csv').drop(columns=['images_per_s', 'seconds'])
                  for f in (single, tmp_path)]
        assert tables[0].loss_total.notna().all()
        pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-5)
        assert_close(*(read(f/stage/place) for f in (single, tmp_path)), rtol=0, atol=1e-5)
        assert (tmp_path/stage/'report.md').exists()
    scale = load_file(tmp_path/'contrastive/model/model.safetensors')['log_scale']
    assert 0 < scale.exp().item() <= 15.1
