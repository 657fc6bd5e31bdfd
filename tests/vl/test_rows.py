"Several pictures in a row: packed or alone, by a dense mask or by FlexAttention, a document is the same."
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import mmjepa.vl.model
from mmjepa.core import make_generator
from mmjepa.encoders import EncoderConfig
from mmjepa.vl.model import VLJEPA, VLJEPAConfig, attention_masks, hybrid_loss, token_indices
from mmjepa.vl.packing import slice_rows

VISION = EncoderConfig(8, 4, 3, num_classes=0, emb_dim=16, depth=1, num_heads=2, drop_path=0.)
SHAPE = VLJEPAConfig(VISION, 40, 32, hidden_size=32, num_layers=2, fusion_depth=2, embedding_dim=12)
LAYOUTS = {'packed': [[(5, 2), (9, 0), (14, 1), (4, 3)], [(32, 1)], [(10, 0), (3, 0)], [(1, 1), (2, 1)]],
           'text': [[(9, 0), (20, 0)], [(32, 0)]], 'a picture a row': [[(9, 1)], [(32, 1)]]}


def documents(layout, g):
    "Batches of one document each, row after row, with what is hidden; and the numbers of rows and documents."
    for r, row in enumerate(LAYOUTS[layout]):
        for d, (n, k) in enumerate(row):
            text = torch.randint(40, (1, n), generator=g)
            yield r, d, {
                'text': text, 'labels': torch.cat([text[:, 1:], torch.full((1, 1), -100)], 1),
                'text_hidden': torch.rand(1, n, generator=g) < .4, 'image': torch.randn(k, 3, 8, 8, generator=g),
                'image_row': torch.zeros(k, dtype=torch.int64), 'image_at': torch.randint(n, (k,), generator=g),
                'image_hidden': torch.rand(k, 4, generator=g) < .4}


def packed(parts):
    "The same documents side by side in rows of 32, pictures in any order."
    b = 1 + max(r for r, _, _ in parts)
    empty = {'text': 0, 'labels': -100, 'document': -1, 'text_hidden': True, 'text_mask': False}
    out = {k: torch.full((b, 32), v) for k, v in empty.items()}
    end, images = [0] * b, []
    for r, d, p in parts:
        here = slice(end[r], end[r] + p['text'].shape[1])
        for k in ('text', 'labels', 'text_hidden'): out[k][r, here] = p[k][0]
        out['document'][r, here], out['text_mask'][r, here] = d, True
        owner = {'image_row': p['image_row'] + r, 'image_document': p['image_row'] + d}
        images.append({k: p[k] for k in ('image', 'image_hidden')} | owner | {'image_at': p['image_at'] + end[r]})
        end[r] = here.stop
    return out | {k: torch.cat([x[k] for x in reversed(images)]) for k in images[0]}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VLJEPA(SHAPE)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_packed_row_equals_its_documents_alone(model, layout):
    "Logits, predictions and targets, in float32; documents bring their pictures in reverse order."
    parts = [*documents(layout, make_generator('rows'))]
    batch = packed(parts)
    with torch.no_grad():
        found, logits = model(batch), model.logits(batch)
        alone = [model(p) for _, _, p in parts]
        for r, d, p in parts: assert_close(logits[r, batch['document'][r] == d], model.logits(p)[0], rtol=0, atol=1e-5)
    for name in ('predictions', 'targets'):
        for k in range(3):
            assert_close(found[name][k], torch.cat([a[name][k] for a in alone]), rtol=0, atol=1e-5)
    words = torch.tensor([(p['labels'] != -100).sum() for _, _, p in parts])
    assert_close(found['lm'], (torch.stack([a['lm'] for a in alone]) * words).sum() / words.sum(), rtol=0, atol=1e-5)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_flex_attention_sees_the_same(model, layout, monkeypatch):
    "Outputs of a step, from the same rule."
    batch = packed([*documents(layout, make_generator('rows'))])
    with torch.no_grad():
        expected = model(batch)
        monkeypatch.setattr(mmjepa.vl.model, 'uses_flex', lambda device, head, s: True)
        assert not isinstance(attention_masks(model, batch)[1], torch.Tensor)
        assert_close(model(batch), expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='PyTorch has no backward pass of it for CPUs')
def test_flex_attention_learns_the_same(monkeypatch):
    "Gradients of a step, on heads that its kernels take."
    torch.manual_seed(0)
    model, found = VLJEPA(replace(SHAPE, hidden_size=128)).cuda(), {}
    batch = {k: x.cuda() for k, x in packed([*documents('packed', make_generator('rows'))]).items()}
    for flex in (False, True):
        monkeypatch.setattr(mmjepa.vl.model, 'uses_flex', lambda device, head, s, flex=flex: flex)
        model.zero_grad()
        loss = hybrid_loss(model(batch), batch)[0]
        loss.backward()
        found[flex] = loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert_close(found[True], found[False], rtol=1e-3, atol=1e-4)


def test_a_slice_takes_its_pictures(model):
    "The logits of some rows are those that the whole batch has for them."
    batch = packed([*documents('packed', make_generator('rows'))])
    with torch.no_grad():
        every = model.logits(token_indices(batch))
        for first, many in ((0, 1), (1, 2), (2, 1), (3, 1)):
            part = slice_rows(batch, first, many)
            assert len(part['image']) == sum(k for row in LAYOUTS['packed'][first:first + many] for _, k in row)
            assert_close(model.logits(part), every[first:first + many], rtol=0, atol=1e-5)
