"Pictures of any height and width, and stems of convolutions, through all that a vision-language model does."
import numpy as np
import torch
import yaml
from torch.testing import assert_close

from cuts import assert_same_gradient
from curricula import small_curriculum
from mmjepa.core import make_generator
from mmjepa.data.records import digit_pairs
from mmjepa.data.text import load_tokenizer
from mmjepa.encoders import EncoderConfig
from mmjepa.runs import RunConfig
from mmjepa.vl.config import load_curriculum
from mmjepa.vl.train import main
from mmjepa.vl.generation import generate, model_images
from mmjepa.vl.hybrid import VLJEPAObjective, joint_masks, next_token_labels
from mmjepa.vl.model import VLJEPA, VLJEPAConfig, load_vl_jepa, token_indices
from mmjepa.vl.packing import slice_rows
from mmjepa.vl.scaling import DEVICES, plan_cost
from test_vl_cuts import joined

VISION = EncoderConfig((8, 24), (8, 4), 3, num_classes=0, emb_dim=16, depth=1, num_heads=2, drop_path=0., stem_convs=2)
SHAPE = VLJEPAConfig(VISION, 40, 12, hidden_size=16, num_layers=1, fusion_depth=1, embedding_dim=12, mask_ratio=.4)


def make(rows=8):
    "Rows with none, one or two pictures."
    torch.manual_seed(0)
    model, g = VLJEPA(SHAPE), make_generator('rows')
    text, row = torch.randint(40, (rows, 12), generator=g), torch.arange(rows).repeat_interleave(torch.arange(rows) % 3)
    batch = {'text': text, 'text_mask': torch.ones_like(text, dtype=torch.bool), 'labels': next_token_labels(text),
             'image': torch.randn(len(row), 3, 8, 24, generator=g), 'image_row': row}
    batch = joint_masks(SHAPE)(batch, g)
    rows = [slice_rows(batch, i, 1) for i in range(rows)]
    return model, VLJEPAObjective(.3, .7, sigreg_weight=.1, num_slices=16), rows


def test_the_gradient_is_that_of_the_step(): assert_same_gradient(make, join=joined, ranks=False)


def test_hidden_pixels_are_not_seen_by_their_neighbours():
    model, _, rows = make()
    batch, n = token_indices(joined(rows), 3), model.patches
    assert n == 6 and batch['image_hidden'].shape == (7, 6) and batch['image_hidden'].any()
    other = batch | {'image': batch['image'].clone()}
    other['image'][batch['image_hidden'][:, None, None].repeat_interleave(4, 3).expand(7, 3, 8, 24)] = 9.
    for a, b in zip(model(batch)['predictions'], model(other)['predictions']): assert_close(a, b, rtol=0, atol=0)


def test_saved_loaded_and_asked(tmp_path):
    model = make()[0].eval()
    model.save_pretrained(tmp_path)
    again = load_vl_jepa(str(tmp_path))
    assert again.config == SHAPE and again.config.vision.image_size == (8, 24)
    picture = np.random.default_rng(0).integers(0, 256, (16, 48, 3), dtype=np.uint8)  # twice the size
    assert model_images(model, [picture])['image'].shape == (1, 3, 8, 24)


def test_a_curriculum_of_low_pictures(tmp_path):
    "Read, planned, trained, continued, and asked, with sizes as a file has them."
    digit_pairs(tmp_path, 40)
    settings = small_curriculum(tmp_path, '1K', 2)
    settings['model']['vision'] |= {'image_size': [8, 24], 'patch_size': [8, 4], 'stem_convs': 2}
    path, folder = tmp_path/'low.yaml', tmp_path/'run'
    path.write_text(yaml.safe_dump(settings))
    assert plan_cost(load_curriculum(path), DEVICES['h200']).flops.sum() > 0
    for resume in (False, True):
        main(str(path), epochs=1, precision='fp32', run=RunConfig(str(folder), resume=resume, save_every=2))
    model = load_vl_jepa(str(folder))
    assert (model.config.vision.grid, model.config.vision.stem_convs) == ((1, 6), 2)
    picture = next(tmp_path.rglob('*.png'))
    assert len(generate(model, load_tokenizer('bytes'), ['a'], images=[picture], max_new_tokens=2)) == 1
