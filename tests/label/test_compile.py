"The label LeJEPA as one graph: compiled without a break, with the results and the names of the plain model."
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmjepa.data.images import ImageSet, to_float
from mmjepa.data.loaders import image_loader
from mmjepa.encoders import EncoderConfig
from mmjepa.label.lejepa import LeJEPAConfig, LeJEPAObjective, MultimodalLeJEPA, labelled_views
from mmjepa.training import TrainConfig, fit

ENCODER = EncoderConfig(image_size=8, patch_size=2, emb_dim=16, depth=2, num_heads=2)
SMALL = LeJEPAConfig(ENCODER, proj_hidden=16, proj_dim=8)
BATCH = {'views': torch.randn(6, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 'label': torch.arange(6)}


def make(config=SMALL):
    torch.manual_seed(0)
    return MultimodalLeJEPA(config)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


@pytest.mark.parametrize('change', [{}, {'label_drop_prob': 0.}, {'label_drop_prob': 1.}, {'multimodal': False}])
def test_the_forward_pass_is_one_graph(change):
    "In training, whatever share of the views has labels."
    found = torch._dynamo.explain(make(replace(SMALL, **change)).train())(BATCH)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_one_graph_serves_all_steps():
    "The number of hidden patches is drawn anew in each, and nothing is compiled again."
    model, graphs = make(), []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward
    compiled = torch.compile(model, backend=count, fullgraph=True)
    for _ in range(4): compiled(BATCH)['projection'].sum().backward()
    assert len(graphs) == 1


@pytest.mark.parametrize('training', [True, False])
def test_compiled_is_plain(training):
    "The same draws, the same outputs and gradients, to rounding."
    found = []
    for compiled in (False, True):
        model = make(replace(SMALL, encoder=replace(ENCODER, drop_path=0.))).train(training)
        run = torch.compile(model, backend='eager') if compiled else model
        torch.manual_seed(1)
        out = run(BATCH)
        out['projection'].square().mean().backward()
        found.append([*out.values(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def in_place(model):
    model.compile(backend='eager')
    return model


@pytest.mark.parametrize('compiled', [in_place, lambda model: torch.compile(model, backend='eager')])
def test_a_compiled_model_keeps_its_names(tmp_path, compiled):
    "Checkpoints and saved models of a compiled model are those of the plain one."
    pixels = torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8)
    loader = image_loader(ImageSet(pixels, torch.arange(16) % 10, [*map(str, range(10))]), 8, True, drop_last=True)

    def two_views(batch, generator):
        return {**batch, 'views': to_float(batch['image'])[:, None].expand(-1, 2, -1, -1, -1)}
    model = make()
    run = dict(config=TrainConfig(epochs=1), output_dir=tmp_path/'run', transform=two_views)
    fit(compiled(model), LeJEPAObjective(num_slices=8), loader, **run)
    model.save_pretrained(tmp_path/'saved')
    checkpoint, = (tmp_path/'run').rglob('model.safetensors')
    for file in (checkpoint, tmp_path/'saved/model.safetensors'):
        assert load_file(file).keys() == make().state_dict().keys()


def test_labelled_views_as_python_counts_them():
    for b, v, p in ((7, 3, .3), (64, 2, .5), (5, 8, 1/3), (128, 4, .9), (3, 1, 1.), (4, 2, 0.)):
        ends = [round(i * v * (1 - p)) for i in range(b + 1)]
        assert labelled_views(b, v, p).sum(1).tolist() == [e - s for s, e in zip(ends, ends[1:])]
