"""Label and contrastive models as graphs: the answers of PyTorch at any size of a batch, and the command."""
import json
import subprocess
import sys

import pytest
import torch

from mmjepa.core import UserError, make_generator, run_command
from mmjepa.data.images import load_images
from mmjepa.data.records import digit_pairs
from mmjepa.data.text import ByteTokenizer
from mmjepa.encoders import EncoderConfig, MultimodalEncoder
from mmjepa.label.lejepa import LeJEPAConfig, MultimodalLeJEPA, load_model
from mmjepa.label.retrieval import similarities
from mmjepa.pretrain.contrastive import ContrastiveConfig, ContrastiveModel, load_pair_model

pytest.importorskip('onnxruntime', reason='pip install mmjepa[onnx]')
from mmjepa.export import export_label_model, export_pair_model, main  # noqa: E402
from mmjepa.graphs import OPSET, Graph, write_graph  # noqa: E402
from mmjepa.vl.export import read_export  # noqa: E402

SMALL = dict(emb_dim=32, depth=2, num_heads=2)


def shaken(model, seed=0):
    "A model whose biases, scales and attention matter."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters(): p.copy_(p * 2 if p.dim() > 1 else p + .2 * torch.randn(p.shape, generator=g))
    return model.eval()


def label_model(**options):
    torch.manual_seed(0)
    fields = {k: options.pop(k) for k in ('multimodal',) if k in options}
    return shaken(MultimodalLeJEPA(LeJEPAConfig(EncoderConfig(**{'image_size': 8, **SMALL, **options}), **fields)))


def pair_model(**options):
    torch.manual_seed(0)
    shape = {'image_size': 8, 'in_chans': 3, 'vocab_size': 260, 'context': 24, 'num_classes': 0, **SMALL}
    return shaken(ContrastiveModel(ContrastiveConfig(EncoderConfig(**{**shape, **options}), proj_dim=16)))


def pictures(n, *shape): return torch.randint(256, (n, *shape), dtype=torch.uint8, generator=make_generator('test', n))

def metadata(folder): return json.loads((folder/'metadata.json').read_text())


# ---------------------------------------------------------------- answers

@pytest.mark.parametrize('options', [
    {}, dict(image_size=(8, 12), in_chans=3, num_classes=3), dict(multiway=True), dict(patch_size=8, stem_convs=2),
    dict(backbone='vit_tiny_patch16_224', image_size=32, patch_size=16, emb_dim=192, depth=12, num_heads=3)], ids=str)
def test_a_label_graph_answers_as_pytorch_does(tmp_path, options):
    model = label_model(**options)
    cfg = model.config.encoder
    graph = Graph(export_label_model(model, tmp_path/'out')/'model.onnx')
    size = (cfg.image_size,) * 2 if isinstance(cfg.image_size, int) else cfg.image_size
    for n in (1, 2, 37):
        x = pictures(n, cfg.in_chans, *size)
        with torch.no_grad():
            expected = {f'm{m}': s[0] for m, s in similarities(model, x, cfg.num_classes).items()}
            expected['embedding'] = model.encode_image(x).embedding
        found = graph(image=x)
        assert {*found} == {*expected}
        for k, y in expected.items(): torch.testing.assert_close(found[k], y, rtol=1e-4, atol=1e-4)


def test_a_model_without_labels_has_embeddings_alone(tmp_path):
    model = label_model(multimodal=False)
    graph, x = Graph(export_label_model(model, tmp_path/'out')/'model.onnx'), pictures(3, 1, 8, 8)
    with torch.no_grad(): expected = model.encode_image(x).embedding
    found = graph(image=x)
    assert [*found] == ['embedding']
    torch.testing.assert_close(found['embedding'], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('options', [{}, dict(multiway=True, image_size=(8, 16))], ids=str)
def test_graphs_of_pairs_answer_as_pytorch_does(tmp_path, options):
    "Texts of any length up to the context, with padding anywhere behind them."
    model = pair_model(**options)
    folder = export_pair_model(model, ByteTokenizer(), tmp_path/'out')
    image, text = (Graph(folder/f'{name}.onnx') for name in ('image', 'text'))
    for n, t in ((1, 1), (1, 24), (2, 9), (19, 24)):
        x = pictures(n, 3, 8, 16 if options else 8)
        ids = torch.randint(260, (n, t), generator=make_generator('ids', n, t))
        mask = torch.arange(t) < torch.randint(1, t + 1, (n, 1), generator=make_generator('mask', n, t))
        with torch.no_grad(): a, b = model.encode_image(x), model.encode_text(ids, mask)
        torch.testing.assert_close(image(image=x)['embedding'], a, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(text(text=ids, text_mask=mask)['embedding'], b, rtol=1e-4, atol=1e-4)


def test_a_graph_is_of_the_opset_that_it_says_and_of_any_batch(tmp_path):
    onnx = pytest.importorskip('onnx')
    folder = export_label_model(label_model(), tmp_path/'out')
    graph = onnx.load(folder/'model.onnx')
    onnx.checker.check_model(graph, full_check=True)
    assert [x.version for x in graph.opset_import if not x.domain] == [OPSET] == [metadata(folder)['opset']]
    (image,), outputs = graph.graph.input, graph.graph.output
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    for value in (image, *outputs): assert value.type.tensor_type.shape.dim[0].dim_param == 'batch'
    assert b'.py' not in (folder/'model.onnx').read_bytes()


@pytest.mark.parametrize('precision, gap', [('fp16', 2e-3), ('int8', .1)])
def test_a_smaller_graph_says_what_it_costs(tmp_path, precision, gap):
    model, (_, test) = label_model(emb_dim=64, num_heads=2), load_images('digits')
    full = export_label_model(model, tmp_path/'full')
    small = export_label_model(model, tmp_path/precision, precision=precision, images=test)
    assert (small/'model.onnx').stat().st_size < .65 * (full/'model.onnx').stat().st_size
    answers = [Graph(folder/'model.onnx')(image=test.images[:200]) for folder in (full, small)]
    for m in ('m1', 'm2'): assert 0 < (answers[0][m] - answers[1][m]).abs().max() < gap
    scores = metadata(small)['scores']
    parts = [Graph(small/'model.onnx')(image=x)['m2'] for x in test.images.split(256)] # int8 has a scale for a batch
    right = torch.cat(parts).argmax(1) == test.labels
    assert scores[precision]['m2'] == pytest.approx(right.float().mean().item())
    assert 1 - gap < scores[precision]['cosine'] < 1.000001 and scores['data'] == 'digits, 360 test images'
    assert read_export(small)


def test_safetensors_hold_the_whole_model(tmp_path):
    model = label_model()
    again = load_model(export_label_model(model, tmp_path/'label', format='safetensors'))
    for name, x in model.state_dict().items(): assert torch.equal(x, again.state_dict()[name]), name
    pairs = pair_model()
    folder = export_pair_model(pairs, ByteTokenizer(), tmp_path/'pairs', format='safetensors')
    again, tokenizer = load_pair_model(folder)
    for name, x in pairs.state_dict().items(): assert torch.equal(x, again.state_dict()[name]), name
    assert tokenizer.fingerprint == ByteTokenizer().fingerprint


@pytest.mark.parametrize('name', ['model.onnx', 'metadata.json'])
def test_damage_is_an_error(tmp_path, name):
    folder = export_label_model(label_model(), tmp_path/'out')
    data = bytearray((folder/name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder/name).write_bytes(data)
    with pytest.raises(UserError, match=f'{name} is damaged'): read_export(folder)


class Branches(torch.nn.Module):
    def forward(self, x): return x if x.sum() > 0 else -x


def test_a_module_that_branches_on_values_is_refused(tmp_path):
    def inputs(n): return {'x': torch.ones(n, 3)}
    with pytest.raises(UserError, match='PyTorch cannot export this model to ONNX .*; expected a forward without'):
        write_graph(Branches(), inputs(2), tmp_path/'x.onnx', outputs=('y',), free={0: torch.export.Dim('batch')},
                    examples=[inputs(3)])
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the command

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "A folder with a run of each kind, and pairs."
    root = tmp_path_factory.mktemp('models')
    label_model().save_pretrained(root/'label/model')
    pair_model().save_pretrained(root/'pairs/model')
    ByteTokenizer().save(root/'pairs/model')
    MultimodalEncoder(EncoderConfig(image_size=8, **SMALL)).save_pretrained(root/'encoder')
    digit_pairs(root/'data', 30)
    return root


def test_the_command_as_a_process(models, tmp_path):
    flags = ['--checkpoint', 'label', '--output', tmp_path/'out', '--precision', 'int8', '--data', 'digits']
    command = [sys.executable, '-m', 'mmjepa.export', *map(str, flags)]
    done = subprocess.run(command, cwd=models, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f'{tmp_path}/out: 3 files, ') and lines[0].endswith('read back and checked')
    heads = [line.split(':')[0] for line in lines[1:]]
    assert heads == ['fp32 on digits, 360 test images', 'int8 on digits, 360 test images', 'left out']
    assert ', cosine 0.99' in lines[2] or ', cosine 1.00' in lines[2]


def test_the_command_measures_pairs(models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(models)
    flags = ['--checkpoint', 'pairs', '--output', str(tmp_path/'out'), '--precision', 'fp16', '--data',
             'data/pairs.jsonl']
    run_command(main.__wrapped__, flags)
    assert 'fp16 on pairs.jsonl, 30 pairs: image_to_text_r1 ' in capsys.readouterr().out
    assert {p.name for p in (tmp_path/'out').iterdir()} >= {'image.onnx', 'text.onnx', 'tokenizer', 'metadata.json'}


@pytest.mark.parametrize('flags, words', [
    (['--checkpoint', 'nowhere'], 'nowhere: no model there'),
    (['--checkpoint', 'encoder'], 'encoder: holds an encoder; expected a vision-language model or a label model or '),
    (['--checkpoint', 'label', '--format', 'cpp'], "format is 'cpp'; expected one of onnx, safetensors"),
    (['--checkpoint', 'label', '--precision', 'int8'], 'expected --data as well'),
    (['--checkpoint', 'label', '--precision', 'half'], "precision is 'half'; expected one of fp32, fp16, int8"),
    (['--checkpoint', 'label', '--data', 'nothing'], "data is 'nothing'"),
    (['--checkpoint', 'pairs', '--data', 'nothing.jsonl'], 'nothing.jsonl')])
def test_wrong_flags(models, tmp_path, monkeypatch, capsys, flags, words):
    "One line, exit status 2, and nothing is written."
    monkeypatch.chdir(models)
    with pytest.raises(SystemExit) as stop:
        run_command(main.__wrapped__, [*flags, '--output', str(tmp_path/'out')])
    assert stop.value.code == 2 and words in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())
