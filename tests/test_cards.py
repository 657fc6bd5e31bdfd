"""The card beside a saved model: whoever has its folder can load it and ask it, with the code that stands there."""
import contextlib
import io
import re

import pytest
import torch
from huggingface_hub import ModelCard

import mmjepa
from mmjepa.checkpoint import packaged_models
from mmjepa.data.text import ByteTokenizer
from mmjepa.encoders import EncoderConfig, MultimodalEncoder
from mmjepa.label.lejepa import LeJEPAConfig, MultimodalLeJEPA
from mmjepa.pretrain.contrastive import ContrastiveConfig, ContrastiveModel
from mmjepa.vl.model import VLJEPA, VLJEPAConfig

SHAPE = dict(emb_dim=16, depth=1, num_heads=2)
LABELS = EncoderConfig(8, 4, 1, num_classes=7, **SHAPE)
PAIRS = EncoderConfig(8, 4, 3, num_classes=0, vocab_size=260, context=16, **SHAPE)
WIDE = EncoderConfig((8, 16), 8, 3, num_classes=0, **SHAPE)
WORDS = VLJEPAConfig(WIDE, vocab_size=260, context_length=64, hidden_size=16, num_layers=1, num_heads=2,
                     fusion_depth=1, embedding_dim=8)
MODELS = {
    'label': lambda: MultimodalLeJEPA(LeJEPAConfig(LABELS, proj_hidden=16, proj_dim=8)),
    'images alone': lambda: MultimodalLeJEPA(LeJEPAConfig(LABELS, 16, 8, multimodal=False)),
    'encoder': lambda: MultimodalEncoder(WIDE),
    'pairs': lambda: ContrastiveModel(ContrastiveConfig(PAIRS, proj_dim=8)),
    'vision-language': lambda: VLJEPA(WORDS)}
SAID = {'label': r'tensor\(\[\d, \d\]\)', 'images alone': r'\(?\[?2, 16\]?\)?', 'encoder': r'\[2, 16\]',
        'pairs': r'tensor\(\[.+, .+\]', 'vision-language': r"\['.*', '.*'\]|\["}


def code_of(card, folder):
    "What a card says that one types."
    return re.search(r'```python\n(.*?)```', card, re.S)[1].replace('FOLDER', str(folder))


@pytest.mark.parametrize('kind', MODELS)
def test_the_code_of_a_card_runs(kind, tmp_path):
    torch.manual_seed(0)
    MODELS[kind]().save_pretrained(tmp_path)
    ByteTokenizer().save(tmp_path)
    code, said = code_of((tmp_path/'README.md').read_text(encoding='utf-8'), tmp_path), io.StringIO()
    with contextlib.redirect_stdout(said): exec(code, {})
    assert re.search(SAID[kind], said.getvalue()), said.getvalue()


@pytest.mark.parametrize('name', packaged_models())
def test_a_packaged_model_has_a_whole_card(name):
    "Nothing is unknown, every score of retrieval has its controls, and its code runs."
    card = ModelCard.load(packaged_models()[name]/'README.md')
    assert card.data.license == 'mit' and 'Not recorded' not in card.text and 'none recorded' not in card.text
    assert re.findall(r'(?m)^## (.*)', card.text) == ['Use', 'Data', 'Training', 'Scores', 'Licence']
    for row in re.findall(r'(?m)^\| M[12] top-1 .*', card.text):
        own, *controls = (float(x) for x in row.split('|')[2:-1])
        assert own > .95 and len(controls) == 3 and max(controls) < .25, row
    with contextlib.redirect_stdout(io.StringIO()): exec(code_of(card.text, name), {})


def test_a_packaged_model_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch):
    "A folder of that name comes first where it holds a model, and only there."
    monkeypatch.chdir(tmp_path)
    (tmp_path/'digits/train/0').mkdir(parents=True)
    assert mmjepa.load('digits').config.encoder.num_classes == 10
    MODELS['label']().save_pretrained(tmp_path/'digits')
    assert mmjepa.load('digits').config.encoder.num_classes == 7
    assert mmjepa.load('./digits').config.encoder.num_classes == 7
