"Attention followed through the layers, against numbers worked out by hand, and paths that are dropped in training."
import pytest
import torch
from torch.testing import assert_close

from mmjepa.core import height_width
from mmjepa.encoders import EncoderConfig, MultimodalEncoder, attention_maps, attention_rollout


def encoder(**changes):
    torch.manual_seed(0)
    shape = dict(image_size=8, patch_size=4, num_classes=3, emb_dim=8, depth=3, num_heads=2, drop_path=0.)
    return MultimodalEncoder(EncoderConfig(**{**shape, **changes}))


def test_rollout_by_hand():
    """Two layers of two tokens, the first with two heads. Each layer passes on half of a token, and half of what it
    looks at. The mean of the heads is ((1/2, 1/2), (0, 1)), so that the first layer passes on ((3/4, 1/4), (0, 1)).
    The second one passes on ((1, 0), (1/2, 1/2)) and comes from the left."""
    first = torch.tensor([[[1., 0.], [0., 1.]], [[0., 1.], [0., 1.]]])
    second = torch.tensor([[[1., 0.], [1., 0.]]]).expand(2, 2, 2)
    found = attention_rollout([first[None], second[None]])
    assert_close(found, torch.tensor([[[3/4, 1/4], [3/8, 5/8]]]))
    assert_close(attention_rollout([first[None]]), torch.tensor([[[3/4, 1/4], [0., 1.]]]))


def test_rollout_is_a_product_of_many_layers_for_each_image():
    layers, images, heads, n = 4, 3, 2, 5
    maps = torch.rand(layers, images, heads, n, n, generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = attention_rollout([*maps])
    for image in range(images):
        passed = [(layer[image].mean(0) + torch.eye(n)) / 2 for layer in maps]
        assert_close(found[image], passed[3] @ passed[2] @ passed[1] @ passed[0])


def test_maps_come_in_the_order_of_the_layers():
    "Each one is the softmax of queries and keys of what enters its layer."
    model, x = encoder().eval(), torch.randn(2, 1, 8, 8)
    states = model.tokens(image=x)[0]
    for block, found in zip(model.blocks, attention_maps(model, image=x), strict=True):
        queries, keys, _ = block.attn.qkv(block.norm1(states)).view(2, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        assert_close(found, (queries @ keys.mT / 4**.5).softmax(-1))
        states = block(states)


def drop_rates(model):
    "Of both paths of each block; a path that is never dropped has no rate."
    return [[getattr(p, 'drop_prob', 0.) for p in (b.drop_path1, b.drop_path2)] for b in model.blocks]


@pytest.mark.parametrize('depth, rates', [(1, [0.]), (2, [0., .3]), (4, [0., .1, .2, .3])])
def test_the_rate_of_dropped_paths_rises_linearly_from_0(depth, rates):
    assert_close(drop_rates(encoder(depth=depth, drop_path=.3)), [[r, r] for r in rates])
    assert drop_rates(encoder(depth=depth)) == [[0., 0.]] * depth


def test_training_drops_paths_and_evaluation_does_not():
    "By chance, for each image of a batch by itself."
    model, x = encoder(drop_path=.5), torch.randn(1, 1, 8, 8).expand(32, 1, 8, 8)
    first, second = model(image=x), model(image=x)
    assert not first.equal(second)
    assert len(first.flatten(1).detach().round(decimals=4).unique(dim=0)) > 2
    model.eval()
    assert model(image=x).equal(model(image=x))
    assert_close(model(image=x), model(image=x[:1]).expand(32, -1, -1))


def test_the_rate_is_the_share_of_dropped_paths():
    "Two blocks, of which the second drops: a quarter of the images lose both of its paths and leave as they came in."
    model, x = encoder(depth=2, drop_path=.5), torch.randn(1, 1, 8, 8).expand(1000, 1, 8, 8)
    came = model.norm(model.blocks[0](model.tokens(image=x)[0]))
    same = (model(image=x) - came).flatten(1).abs().amax(1) < 1e-6
    assert same.float().mean() == pytest.approx(.25, abs=.05)


@pytest.mark.parametrize(('shape', 'grid'), [({'image_size': (8, 20), 'patch_size': (4, 5)}, (2, 4)),
                                             ({'image_size': (8, 20), 'patch_size': (8, 4), 'stem_convs': 2}, (1, 5)),
                                             ({'image_size': 16, 'patch_size': 4, 'stem_convs': 1}, (4, 4))])
def test_pictures_of_any_shape_and_stems(shape, grid, tmp_path):
    "A state for each patch; a saved encoder is the same one; rows don't mix."
    model = encoder(**shape).eval()
    assert model.cfg.grid == grid
    (h, w), (rows, columns) = height_width(model.cfg.image_size), grid
    x = torch.randn(3, 1, h, w)
    assert model(image=x).shape == (3, rows * columns, 8) and model.cfg.patches == rows * columns
    model.save_pretrained(tmp_path)
    again = MultimodalEncoder.from_pretrained(tmp_path)
    assert again.cfg == model.cfg
    assert_close(again(image=x), model(image=x), rtol=0, atol=0)
    one = torch.cat([model(image=x[i:i + 1]) for i in range(3)])
    assert_close(one, model(image=x), rtol=1e-5, atol=1e-6)  # a stem norms each picture by itself


def test_patches_of_a_low_picture_are_its_columns():
    "Without positions a patch's token depends on its own pixels alone, in the order of the grid."
    embed = encoder(image_size=(8, 20), patch_size=(4, 5)).embedders['image']
    x = torch.zeros(1, 1, 8, 20)
    x[..., 4:, 15:] = 1.  # second row, last column
    changed = (embed.patches(x) != embed.patches(torch.zeros_like(x))).any(-1)[0]
    assert changed.tolist() == [False] * 7 + [True]


@pytest.mark.parametrize('convs', [0, 1, 2])
def test_hidden_pixels_do_not_reach_the_other_patches(convs):
    embed = encoder(image_size=(8, 16), patch_size=4, stem_convs=convs).embedders['image']
    hidden = torch.tensor([[True, False, False, True, False, False, False, False]])
    x = torch.randn(1, 1, 8, 16, requires_grad=True)
    embed.hide(x, hidden, torch.ones(8)).square().sum().backward()
    seen = x.grad[0, 0].unfold(0, 4, 4).unfold(1, 4, 4).abs().sum((-1, -2)).flatten()
    assert ((seen == 0) == hidden[0]).all()
