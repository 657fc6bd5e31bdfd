"Contrastive and masked losses against the ones that the transformers library ships."
import torch
from torch.testing import assert_close

from mmjepa.contrastive import clip_loss, siglip_loss
from mmjepa.losses import masked_patch_loss, patch_pixels

TEXT = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20,
            max_position_embeddings=6, bos_token_id=1, eos_token_id=2, pad_token_id=0)
VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8,
              patch_size=4)


def outputs_of(config, model, **kwargs):
    "What a tiny random model says of six pairs, its own loss included."
    torch.manual_seed(0)
    model = model(config(text_config=TEXT, vision_config=VISION, **kwargs)).eval()
    ids = torch.cat([torch.randint(3, 20, (6, 5)), torch.full((6, 1), 2)], 1)
    return model, model(input_ids=ids, pixel_values=torch.randn(6, 3, 8, 8), return_loss=True)


def check(model, out, ours):
    "Value, and gradients of all parameters of the model."
    assert_close(ours, out.loss)
    wanted = [p for p in model.parameters() if p.requires_grad]
    expected, found = (torch.autograd.grad(x, wanted, retain_graph=True, allow_unused=True) for x in (out.loss, ours))
    for a, b in zip(found, expected):
        assert (a is None) == (b is None)
        if a is not None: assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert sum(g is not None and bool(g.any()) for g in expected) > 10


def test_clip():
    from transformers import CLIPConfig, CLIPModel
    model, out = outputs_of(CLIPConfig, CLIPModel, projection_dim=8)
    check(model, out, clip_loss(out.image_embeds, out.text_embeds, model.logit_scale.exp(), chunk=4))


def test_siglip():
    from transformers import SiglipConfig, SiglipModel
    model, out = outputs_of(SiglipConfig, SiglipModel)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-2.)
    ids, pixels = torch.randint(3, 20, (6, 6)), torch.randn(6, 3, 8, 8)
    out = model(input_ids=ids, pixel_values=pixels, return_loss=True)
    check(model, out,
          siglip_loss(out.image_embeds, out.text_embeds, model.logit_scale.exp(), logit_bias=model.logit_bias, chunk=4))


def test_masked_autoencoder():
    from transformers import ViTMAEConfig, ViTMAEForPreTraining
    torch.manual_seed(0)
    config = ViTMAEConfig(**VISION, decoder_hidden_size=16, decoder_intermediate_size=16, decoder_num_hidden_layers=1,
                          decoder_num_attention_heads=2, norm_pix_loss=True, mask_ratio=.5)
    model, images = ViTMAEForPreTraining(config).eval(), torch.rand(3, 3, 8, 8)
    assert_close(patch_pixels(images, 4, normalize=False), model.patchify(images), rtol=0, atol=0)
    out = model(images)
    assert_close(masked_patch_loss(out.logits, patch_pixels(images, 4), out.mask.bool()), out.loss)
