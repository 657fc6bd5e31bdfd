"Good inputs for all commands, small, made on the spot: records, shards, models, files of settings."
import shutil

import torch
import yaml

from mmjepa.align.tiny_models import tiny_model
from mmjepa.data.records import digit_pairs
from mmjepa.data.shards import write_shards
from mmjepa.data.text import load_tokenizer
from mmjepa.encoders import EncoderConfig
from mmjepa.vl.curriculum import save_vl_model
from mmjepa.vl.model import VLJEPA, VLJEPAConfig

from curricula import small_curriculum
from forked import command

RECORDS = 24
SHAPE = '--image_size 8 --patch_size 4 --emb_dim 8 --depth 1 --num_heads 2 --context 16 --batch_size 4'.split()
SHORT = '--epochs 1 --precision fp32'.split()
ENV = dict(ACCELERATE_USE_CPU='1', OMP_NUM_THREADS='1', TQDM_DISABLE='1', CUDA_VISIBLE_DEVICES='')


def ran(module, *args):
    done = command(f'mmjepa.{module}', *args, **ENV)
    assert done.returncode == 0, done.stderr[-2000:]


def make(root):
    "Everything, in the folder `root`."
    pairs = digit_pairs(root, RECORDS)
    (root/'png').rename(root/'pictures')
    pairs.write_text(pairs.read_text().replace('png/', 'pictures/'))
    (root/'shards').mkdir()
    write_shards(pairs, root/'shards/{0000..}.tar', '8K')
    load_tokenizer('bytes').save(root/'bytes')
    for kind in ('clip', 'bert', 'qwen2'): tiny_model(kind, root/kind)
    for target in ('stop_gradient', 'ema'):
        (root/f'{target}.yaml').write_text(yaml.safe_dump(small_curriculum(root, '4K', 4, target=target)))
    vision = EncoderConfig(8, 4, 3, num_classes=0, emb_dim=16, depth=1, num_heads=2)
    torch.manual_seed(0)
    config = VLJEPAConfig(vision, 260, 96, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, fusion_depth=1,
                          embedding_dim=8)
    save_vl_model(VLJEPA(config), load_tokenizer('bytes'), root/'vl')
    for split, n in (('train', 6), ('test', 3)):
        for name in ('round', 'long'):
            (root/f'images/{split}/{name}').mkdir(parents=True)
            for i in range(n):
                picture = root/f'pictures/{i + n * (name == "long"):04}.png'
                shutil.copy(picture, root/f'images/{split}/{name}/{i}.png')
    ran('data.text', pairs, '--vocab_size', 286, '--output', root/'words.spm')
    ran('pretrain.masked', '--json_data', pairs, *SHAPE, *SHORT, '--output', root/'one')
    ran('pretrain.contrastive', '--json_data', pairs, *SHAPE, *SHORT, '--output', root/'two')
    ran('embed', '--model', root/'two', '--json_data', pairs, '--output', root/'embeddings.jsonl')
    ran('align.align', *towers(root), '--json_data', pairs, *ALIGN, '--output', root/'aligned', '--cache_dir',
        root/'cache')
    return root


ALIGN = '--d_align 8 --mrl_dims 4,8 --num_epochs 1 --batch_size 4 --precision fp32'.split()


def towers(root): return ['--vision_model_name', root/'clip', '--text_model_name', root/'bert']
