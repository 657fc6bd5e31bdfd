"Pictures of any height and width, and stems of convolutions, through all that a vision-language model does."
import numpy as np
import torch
from torch.testing import assert_close

from cuts import assert_same_gradient
from mmjepa.core import make_generator
from mmjepa.encoders import EncoderConfig
from mmjepa.vl.generation import model_images
from mmjepa.vl.hybrid import VLJEPAObjective, joint_masks, next_token_labels
from mmjepa.vl.model import VLJEPA, VLJEPAConfig, load_vl_jepa, token_indices
from test_vl_cuts import joined

VISION = EncoderConfig((8, 24), (8, 4), 3, num_classes=0, emb_dim=16, depth=1, num_heads=2, drop_path=0., stem_convs=2)
SHAPE = VLJEPAConfig(VISION, 40, 12, hidden_size=16, num_layers=1, fusion_depth=1, embedding_dim=12, mask_ratio=.4)


def make(rows=8):
    torch.manual_seed(0)
    model, g = VLJEPA(SHAPE), make_generator('rows')
    text = torch.randint(40, (rows, 12), generator=g)
    batch = {'text': text, 'text_mask': torch.ones_like(text, dtype=torch.bool), 'labels': next_token_labels(text),
             'image': torch.randn(rows, 3, 8, 24, generator=g)}
    batch = joint_masks(SHAPE)(batch, g)
    rows = [{k: v[i:i + 1] for k, v in batch.items()} for i in range(rows)]
    return model, VLJEPAObjective(.3, .7, sigreg_weight=.1, num_slices=16), rows


def test_the_gradient_is_that_of_the_step(): assert_same_gradient(make, join=joined)


def test_hidden_pixels_are_not_seen_by_their_neighbours():
    model, _, rows = make()
    batch, n = token_indices(joined(rows), 3), model.patches
    assert n == 6 and batch['image_hidden'].shape == (8, 6) and batch['image_hidden'].any()
    other = batch | {'image': batch['image'].clone()}
    other['image'][batch['image_hidden'][:, None, None].repeat_interleave(4, 3).expand(8, 3, 8, 24)] = 9.
    for a, b in zip(model(batch)['predictions'], model(other)['predictions']): assert_close(a, b, rtol=0, atol=0)


def test_saved_loaded_and_asked(tmp_path):
    model = make()[0].eval()
    model.save_pretrained(tmp_path)
    again = load_vl_jepa(str(tmp_path))
    assert again.config == SHAPE and again.config.vision.image_size == (8, 24)
    picture = np.random.default_rng(0).integers(0, 256, (16, 48, 3), dtype=np.uint8)  # twice the size
    assert model_images(model, [picture])[0].shape[-3:] == (3, 8, 24)
