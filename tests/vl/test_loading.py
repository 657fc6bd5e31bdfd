"A model's folder is read as it was written, or the key or the tensor that is wrong is named in one line."
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmjepa
from mmjepa.core import UserError
from mmjepa.encoders import EncoderConfig, MultimodalEncoder
from mmjepa.vl.model import VLJEPA, VLJEPAConfig, load_vl_jepa

CONFIG = VLJEPAConfig(EncoderConfig(8, 4, 3, num_classes=0, emb_dim=16, depth=1, num_heads=2), 40, 24, hidden_size=16,
                      num_layers=1, fusion_depth=1, embedding_dim=8)


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp('model')/'good'
    VLJEPA(CONFIG).save_pretrained(folder)
    return folder


def vision(**changes): return {'vision': {**vars(CONFIG.vision), **changes}}


@pytest.mark.parametrize('changes, said', [
    ({'depht': 3}, 'unknown key depht; expected some of vision, '), (vision(foo=1), 'vision: unknown key foo'),
    ({'hidden_size': '16'}, "hidden_size is '16'; expected a whole number"),
    ({'hidden_size': None}, 'hidden_size is None'),
    ({'num_layers': [1]}, 'num_layers is [1]'), ({'num_layers': 1.5}, 'num_layers is 1.5'),
    ({'num_layers': True}, 'num_layers is True'), ({'mask_ratio': math.nan}, 'mask_ratio is nan; expected a number'),
    ({'tie_embeddings': 'no'}, "tie_embeddings is 'no'; expected true or false"), ({'target': 3}, 'target is 3'),
    ({'step_weights': 3}, 'step_weights is 3; expected a list of numbers'),
    ({'vision': 3}, 'vision is 3; expected keys'),
    (vision(depth='x'), "vision: depth is 'x'"), ({'vocab_size': -1}, 'vocab_size is -1; expected 1 or more'),
    ({'vocab_size': 10**12}, 'no model of this shape can be made')], ids=str)
def test_a_key_that_is_wrong(good, tmp_path, changes, said):
    folder = shutil.copytree(good, tmp_path/'wrong')
    about = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps(about | changes))
    for read in (load_vl_jepa, mmjepa.load, VLJEPA.from_pretrained):
        with pytest.raises(UserError) as e: read(folder)
        assert said in str(e.value) and f'{folder}/config.json: ' in str(e.value) and '\n' not in str(e.value)


def test_a_setting_that_is_missing(good, tmp_path):
    "Another number of heads has weights of the same shapes: a default would be another model, in silence."
    about = json.loads((good/'config.json').read_text())
    for part, place in ((about, 'config.json: '), (about['vision'], 'config.json: vision: ')):
        heads = part.pop('num_heads')
        folder = shutil.copytree(good, tmp_path/place.strip(': '))
        (folder/'config.json').write_text(json.dumps(about))
        for read in (load_vl_jepa, mmjepa.load, VLJEPA.from_pretrained):
            with pytest.raises(UserError, match=f'{place}num_heads is missing; expected all of '): read(folder)
        part['num_heads'] = heads
    encoder = MultimodalEncoder(CONFIG.vision)
    encoder.save_pretrained(tmp_path/'encoder')
    file = tmp_path/'encoder/config.json'
    for wrong, said in (({'cfg': {}}, 'cfg: image_size is missing'), ({'cgf': 1}, 'unknown key cgf'), ([], 'a list')):
        file.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=f'{file}: .*{said}'): MultimodalEncoder.from_pretrained(file.parent)
    with pytest.raises(UserError, match='no such folder'): MultimodalEncoder.from_pretrained(tmp_path/'nowhere')


@pytest.mark.parametrize('change, said', [
    (lambda w: w.pop('jepa_head.embed.weight'), 'lacks weight jepa_head.embed.weight'),
    (lambda w: w.update(stranger=torch.ones(1)), 'has the unknown weight stranger'),
    (lambda w: w.update({'jepa_head.embed.bias': torch.ones(3)}), 'jepa_head.embed.bias has shape (3,), but')])
def test_a_tensor_that_is_wrong(good, tmp_path, change, said):
    folder = shutil.copytree(good, tmp_path/'wrong')
    weights = load_file(folder/'model.safetensors')
    change(weights)
    save_file(weights, folder/'model.safetensors')
    with pytest.raises(UserError) as e: load_vl_jepa(folder)
    assert said in str(e.value) and f'{folder}/model.safetensors' in str(e.value) and '\n' not in str(e.value)


def test_damaged_files_are_one_line(good, tmp_path):
    "Cut short, empty, or with changed bytes in the header; each file in turn."
    for file in ('config.json', 'model.safetensors'):
        data = (good/file).read_bytes()
        changed = b'\x00' + data[1:], data[:30] + b'\xff' + data[31:]
        for i, wrong in enumerate((b'', data[:20], data[:-9], *changed, None)):
            folder = shutil.copytree(good, tmp_path/f'{file}-{i}')
            (folder/file).unlink()
            if wrong is not None: (folder/file).write_bytes(wrong)
            with pytest.raises(UserError) as e: load_vl_jepa(folder)
            assert str(folder) in str(e.value) and '\n' not in str(e.value)
