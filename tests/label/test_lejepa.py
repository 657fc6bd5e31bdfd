"What a labelled view depends on, what each term of the objective sees, and which label is retrieved."
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.testing import assert_close

from mmjepa.core import UserError
from mmjepa.encoders import EncoderConfig
from mmjepa.label.lejepa import Encoding, LeJEPAConfig, LeJEPAObjective, MultimodalLeJEPA
from mmjepa.label.retrieval import LabelRetrieval
from mmjepa.training import TrainConfig, fit

B, V, K = 6, 2, 6  # samples, views, labels


def model(**settings):
    "All patches of labelled views are seen, no path is dropped."
    torch.manual_seed(0)
    encoder = EncoderConfig(image_size=4, patch_size=2, num_classes=K, emb_dim=8, depth=1, num_heads=2, drop_path=0.)
    return MultimodalLeJEPA(LeJEPAConfig(encoder, 8, 4, label_view_patches=1., **settings))


def origins(model):
    "For each of 12 views: which views of the batch its embedding depends on, and which labels."
    views = torch.randn(B, V, 1, 4, 4, requires_grad=True)
    embedding = model({'views': views, 'label': torch.arange(B)})['embedding'][:, :V].flatten(0, 1)
    table = model.encoder.embedders['label'].table.weight
    options = dict(retain_graph=True, allow_unused=True)
    grads = [torch.autograd.grad(e.square().sum(), (views, table), **options) for e in embedding]
    from_views = torch.stack([g.abs().sum((2, 3, 4)).flatten() for g, _ in grads]) > 0
    from_labels = torch.stack([torch.zeros(K) if g is None else g.abs().sum(1) for _, g in grads]) > 0
    return from_views, from_labels


OWN_VIEW, OWN_LABEL = torch.eye(B * V).bool(), torch.eye(K).bool().repeat_interleave(V, 0)
SAMPLE = torch.arange(B * V) // V


def test_swapped_views_show_another_sample_under_their_own_label():
    "A quarter of 12 labelled views: 3 have the patches of one view of another sample, and all have their label."
    from_views, from_labels = origins(model(label_drop_prob=0., label_view_swap=.25).train())
    assert (from_views.sum(1) == 1).all()
    swapped = ~from_views.diag()
    assert swapped.sum() == 3
    source = from_views.int().argmax(1)
    assert (SAMPLE[source] != SAMPLE)[swapped].all()
    assert from_labels.equal(OWN_LABEL)


def test_with_a_share_of_1_every_labelled_view_shows_another_sample():
    from_views, _ = origins(model(label_drop_prob=0., label_view_swap=1.).train())
    assert from_views.sum(1).equal(torch.ones(B * V, dtype=torch.int64)) and not from_views.diag().any()


def test_views_without_label_are_never_swapped():
    "Half of the views have none: they depend on themselves, and on no label."
    from_views, from_labels = origins(model(label_drop_prob=.5, label_view_swap=1.).train())
    plain = ~from_labels.any(1)
    assert plain.sum() == B * V // 2
    assert from_views[plain].equal(OWN_VIEW[plain])
    assert not from_views.diag()[~plain].any()


def test_nothing_is_swapped_without_a_share_or_in_evaluation():
    never, always = (model(label_drop_prob=0., label_view_swap=share) for share in (0., 1.))
    assert origins(never.train())[0].equal(OWN_VIEW)
    assert origins(always.eval())[0].equal(OWN_VIEW)


# ---------------------------------------------------------------- the objective

def naive_sigreg(cloud, directions):
    "The statistic of one cloud (n, d), knot by knot."
    t = torch.linspace(0, 3, 17)
    phi = (-t.square() / 2).exp()
    angles = (cloud @ directions)[..., None] * t  # n, k, knots
    distance = (angles.cos().mean(0) - phi).square() + angles.sin().mean(0).square()
    return len(cloud) * 2 * torch.trapezoid(distance * phi, t).mean()


def outputs(extra=1, seed=0):
    "Projections of 20 samples: 2 views, and the label alone, far from where a Gaussian would be."
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(20, V + extra, 4, generator=g)
    z[:, V:] += 5
    return z.requires_grad_(), {'views': torch.zeros(20, V, 1, 4, 4)}


def test_the_objective_equals_its_naive_form():
    "SIGReg is the mean over the image views, each a cloud by itself; the invariance takes the label in."
    objective, (z, batch) = LeJEPAObjective(lam=.3, num_slices=32, seed=5), outputs()
    directions = objective.sigreg.directions(4)
    loss, logs = objective({'projection': z}, batch)
    sigreg = torch.stack([naive_sigreg(z[:, v], directions) for v in range(V)]).mean()
    invariance = (z - z.mean(1, keepdim=True)).square().mean()
    assert_close(logs['loss_sigreg'], sigreg.detach(), rtol=1e-4, atol=1e-5)
    assert_close(logs['loss_inv'], invariance.detach())
    assert_close(loss, .7 * invariance + .3 * sigreg, rtol=1e-4, atol=1e-5)


def test_sigreg_does_not_see_the_label():
    "With nothing but SIGReg, what stands for the label has no gradient, and changes nothing."
    z, batch = outputs()
    loss, logs = LeJEPAObjective(lam=1., num_slices=32)({'projection': z}, batch)
    loss.backward()
    assert not z.grad[:, V:].any() and z.grad[:, :V].abs().sum((0, 2)).gt(0).all()
    alone, _ = LeJEPAObjective(lam=1., num_slices=32)({'projection': z[:, :V]}, batch)
    assert_close(loss, alone)


def test_the_invariance_sees_the_label():
    z, batch = outputs()
    LeJEPAObjective(lam=0.)({'projection': z}, batch)[0].backward()
    assert z.grad[:, V:].abs().sum() > 0


def test_a_step_in_parts_is_refused(tmp_path):
    "SIGReg of a part of the rows is another number: the run does not start, and says what to do."
    batches = [{'views': torch.randn(4, V, 1, 4, 4), 'label': torch.arange(4)}] * 2
    with pytest.raises(UserError, match='accumulate is 2, and the SIGReg statistic compares .*gradient caching'):
        fit(model(), LeJEPAObjective(num_slices=8), batches, config=TrainConfig(epochs=1, accumulate=2),
            output_dir=tmp_path)


# ---------------------------------------------------------------- retrieval

class Known(nn.Module):
    "Image i shows label i in its embedding, label i + 1 in its projection; a label that fits leaves an image as it is."
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def both(self, shown, added):
        "Of one-hot rows."
        return Encoding(self.weight * (shown + added), self.weight * (shown.roll(1, 1) + added))

    def encode_image(self, x): return self.both(x.flatten(1), 0 * x.flatten(1))
    def encode_multimodal(self, x, y): return self.both(x.flatten(1), one_hot(y, 4))

    def encode_label(self, y):
        label = one_hot(y, 4).float()
        return Encoding(label + .1, label + .1)


def test_the_label_with_the_largest_similarity_is_retrieved():
    images, labels = torch.eye(4).view(4, 1, 2, 2), torch.arange(4)
    retrieval = LabelRetrieval(Known(), num_classes=4, chunk=6)
    for method in (retrieval.method_1, retrieval.method_2):
        found = method(images, labels)
        assert found['predictions'].equal(labels) and found['top1'] == found['top3'] == 1.
        assert found['confusion'].equal(torch.eye(4, dtype=torch.int64))
        assert method(images, labels, 'projection')['predictions'].equal((labels + 1) % 4)
        assert method(images, labels, 'projection')['top1'] == 0.


def test_all_of_a_data_set_is_retrieved():
    "In two batches, in both spaces."
    images, labels = torch.eye(4).view(4, 1, 2, 2), torch.arange(4)
    batches = [{'image': images[i:i+2], 'label': labels[i:i+2]} for i in (0, 2)]
    found = LabelRetrieval(Known(), num_classes=4).evaluate(batches)
    assert {name: f['top1'] for name, f in found.items()} == {'m1': 1., 'm2': 1., 'm1_proj': 0., 'm2_proj': 0.}
    for name, f in found.items(): assert f['predictions'].equal((labels + name.endswith('proj')) % 4)
