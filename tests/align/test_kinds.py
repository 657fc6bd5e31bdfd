"""Whatever a tower, its tokenizer or its processors do with an input of a user: a right vector, or one line."""
import json
import math
import os

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import normalizers
from torch.testing import assert_close

from mmjepa.align.align import PairSource, open_records, run_alignment
from mmjepa.align.aligner import (AlignmentConfig, VisionTextAligner, load_aligner, modality_of, retrieve, save_aligner,
                                  train_alignment, zero_shot)
from mmjepa.align.captioner import LLMConfig, MultimodalLLM, train_captioning
from mmjepa.align.features import cached_features
from mmjepa.align.inputs import ImageTextDataset, create_dataloader, hold_out
from mmjepa.align.sound import tone, write_sound
from mmjepa.align.tiny_models import quiet_transformers, tiny_model, tiny_tokenizer
from mmjepa.align.towers import load_audio_tower, load_text_tower, load_vision_tower
from mmjepa.core import UserError
from mmjepa.runs import RunConfig

HALVES = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
              encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=400)
W = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
TEXT = dict(**W, vocab_size=400, max_position_embeddings=20)
BEHIND = dict(**TEXT, pad_token_id=1)
EYES = dict(**W, image_size=32, patch_size=8)
SQUARE, SHORTER = {'height': 32, 'width': 32}, {'shortest_edge': 32}


@pytest.fixture(scope='module')
def root(tmp_path_factory): return tmp_path_factory.mktemp('models')


def store(folder, model, *parts):
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(0)
        for part in (model(), *parts): part.save_pretrained(folder)
    return folder


def words(**changes):
    made = tiny_tokenizer(wrap=True, **changes)
    made.model_max_length = int(1e30)
    return made


# Texts

TEXTS = {
    'camembert': (18, lambda: hf.CamembertModel(hf.CamembertConfig(**BEHIND))),
    'xlmr': (18, lambda: hf.XLMRobertaModel(hf.XLMRobertaConfig(**BEHIND))),
    'mpnet': (18, lambda: hf.MPNetModel(hf.MPNetConfig(**BEHIND))),
    'data2vec': (18, lambda: hf.Data2VecTextModel(hf.Data2VecTextConfig(**BEHIND))),
    'longformer': (18, lambda: hf.LongformerModel(hf.LongformerConfig(**BEHIND, attention_window=4))),
    'esm': (18, lambda: hf.EsmModel(hf.EsmConfig(**BEHIND, position_embedding_type='absolute', mask_token_id=4))),
    'bert': (20, lambda: hf.BertModel(hf.BertConfig(**TEXT))),
    'xlnet': (8192, lambda: hf.XLNetModel(hf.XLNetConfig(d_model=32, n_layer=1, n_head=2, d_inner=64, vocab_size=400))),
    'fnet': (20, lambda: hf.FNetModel(hf.FNetConfig(**{k: v for k, v in TEXT.items() if 'heads' not in k}))),
    'gpt2': (20, lambda: hf.GPT2Model(hf.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=400, n_positions=20))),
    't5 encoder': (8192, lambda: hf.T5EncoderModel(hf.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
                                                              vocab_size=400))),
    'led': (24, lambda: hf.LEDModel(hf.LEDConfig(**HALVES, max_encoder_position_embeddings=24, attention_window=4,
                                                max_decoder_position_embeddings=16, pad_token_id=0))),
    'llava': (64, lambda: hf.LlavaModel(hf.LlavaConfig(
        text_config=hf.LlamaConfig(**TEXT | dict(max_position_embeddings=64)),
        vision_config=hf.CLIPVisionConfig(**EYES)))),
    'blip': (20, lambda: hf.BlipModel(hf.BlipConfig(
        text_config=TEXT | dict(encoder_hidden_size=32, pad_token_id=0, bos_token_id=2, eos_token_id=3),
        vision_config=EYES, projection_dim=16)))}


@pytest.mark.parametrize('kind', TEXTS)
def test_a_text_is_cut_and_its_vector_is_its_own(root, kind):
    longest, model = TEXTS[kind]
    tower = load_text_tower(store(root/f'text-{kind}', model, words()))
    assert tower.settings['longest'] == longest
    texts = ['a bold five', 'nine', 'nine ' * 100]
    together = tower(**tower.prepare(texts))
    assert tower.prepare.cut == (longest < 100)
    for text, z in zip(texts, together): assert_close(tower(**tower.prepare([text]))[0], z, rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-5


def test_ids_without_a_word_embedding_name_the_record(root, tmp_path):
    folder = store(root/'few', lambda: hf.BertModel(hf.BertConfig(**TEXT | dict(vocab_size=300))), words())
    tower, records = load_text_tower(folder), [{'text': t, 'audio': np.ones(9)} for t in ('0', 'a handwritten nine')]
    found = 'record 1: text .a handwritten nine. has the token id 3.., but the table of this tower has 300 rows'
    with pytest.raises(UserError, match=found): cached_features(tower, ImageTextDataset(records), tmp_path)
    some = cached_features(tower, ImageTextDataset(records, 'skip'), tmp_path, say=lambda line: None)
    assert some.there.tolist() == [True, False]


def test_a_text_without_tokens_is_one_line(root, tmp_path):
    bare = tiny_tokenizer()
    bare.backend_tokenizer.normalizer = normalizers.Replace('~', '')
    tower = load_text_tower(store(root/'bare', TEXTS['gpt2'][1], bare))
    records = ImageTextDataset([{'text': t, 'audio': np.ones(9)} for t in ('a', '~~')])
    with pytest.raises(UserError, match="record 1: text '~~' has no token"): cached_features(tower, records, tmp_path)


@pytest.mark.parametrize('load, model, found', [
    (load_text_tower, lambda: hf.ViTModel(hf.ViTConfig(**EYES)), 'a ViTModel reads pixel_values'),
    (load_vision_tower, lambda: hf.BertModel(hf.BertConfig(**TEXT)), 'a BertModel reads input_ids'),
    (load_audio_tower, lambda: hf.BertModel(hf.BertConfig(**TEXT)), 'a BertModel reads input_ids')])
def test_a_model_of_another_modality_is_refused_by_name(tmp_path, load, model, found):
    part = hf.Wav2Vec2FeatureExtractor() if load is load_audio_tower else hf.ViTImageProcessor(size=SQUARE)
    with pytest.raises(UserError, match=found): load(store(tmp_path, model, words(), part))


# Images

IMAGES = {
    'no crop': (lambda: hf.Dinov2Model(hf.Dinov2Config(**EYES)),
                lambda: hf.BitImageProcessor(size=SHORTER, do_center_crop=False)),
    'no resize': (lambda: hf.ResNetModel(hf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])),
                  lambda: hf.ConvNextImageProcessor(do_resize=False)),
    'grey': (lambda: hf.ViTModel(hf.ViTConfig(**EYES, num_channels=1)),
             lambda: hf.ViTImageProcessor(size=SQUARE, image_mean=[.5], image_std=[.5]))}


@pytest.mark.parametrize('kind', IMAGES)
def test_images_of_several_sizes(root, kind):
    model, processor = IMAGES[kind]
    tower = load_vision_tower(store(root/f'image-{kind}', model, processor()))
    images = [Image.effect_noise(size, 90).convert('RGB') for size in ((60, 40), (40, 90), (60, 40), (33, 32))]
    together = tower(**tower.prepare(images))
    for image, z in zip(images, together): assert_close(tower(**tower.prepare([image]))[0], z, rtol=1e-4, atol=1e-5)


def test_a_model_that_masks_its_input_is_refused(root):
    tower = load_vision_tower(store(root/'mae', lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**EYES)),
                                    hf.ViTImageProcessor(size=SQUARE)))
    with pytest.raises(UserError, match='gives another vector each time'): print(tower.dim)


def test_an_image_that_does_not_fit_names_its_record(root, tmp_path):
    tower = load_vision_tower(store(root/'strict', lambda: hf.ViTModel(hf.ViTConfig(**EYES)),
                                    hf.ViTImageProcessor(do_resize=False)))
    images = [Image.new('RGB', (32, 32)), Image.new('RGB', (32, 32), 'red'), Image.new('RGB', (40, 32))]
    records = [{'image': x, 'text': str(i)} for i, x in enumerate(images)]
    with pytest.raises(UserError, match=r"record 2: image tower .*ViTModel can't take pixel_values \(1, 3, 32, 40\)"):
        cached_features(tower, ImageTextDataset(records), tmp_path)
    some = cached_features(tower, ImageTextDataset(records, 'skip'), tmp_path, say=lambda line: None)
    assert some.there.tolist() == [True, True, False]


# Sounds

CONV = dict(conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, apply_spec_augment=False)
CLAP = dict(patch_size=4, num_mel_bins=16, spec_size=64, patch_embeds_hidden_size=8, depths=[1, 1],
            num_attention_heads=[1, 1], window_size=4, hidden_size=16, projection_dim=16)
SOUNDS = {  # how many of two sounds of .2 and 5 seconds are cut
    'ast': (1, lambda: hf.ASTModel(hf.ASTConfig(**W, max_length=64, num_mel_bins=16, patch_size=8, frequency_stride=8,
                                                time_stride=8)),
            lambda: hf.ASTFeatureExtractor(num_mel_bins=16, max_length=64)),
    'wav2vec2': (0, lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**W, **CONV)),
                 lambda: hf.Wav2Vec2FeatureExtractor(return_attention_mask=False)),
    'hubert': (0, lambda: hf.HubertModel(hf.HubertConfig(**W, **CONV)),
               lambda: hf.Wav2Vec2FeatureExtractor(return_attention_mask=True)),
    'wav2vec2-bert': (0, lambda: hf.Wav2Vec2BertModel(hf.Wav2Vec2BertConfig(
        **W, feature_projection_input_dim=160, apply_spec_augment=False, conv_depthwise_kernel_size=5)),
        lambda: hf.SeamlessM4TFeatureExtractor()),
    'speech to text': (0, lambda: hf.Speech2TextModel(hf.Speech2TextConfig(**HALVES, conv_channels=32)),
                       lambda: hf.Speech2TextFeatureExtractor()),
    'whisper': (1, lambda: hf.WhisperModel(hf.WhisperConfig(
        **HALVES, num_mel_bins=16, max_source_positions=50, max_target_positions=16, pad_token_id=0, bos_token_id=2,
        eos_token_id=3, decoder_start_token_id=2)),
        lambda: hf.WhisperFeatureExtractor(feature_size=16, chunk_length=1)),
    'clap': (1, lambda: hf.ClapModel(hf.ClapConfig(
        text_config=BEHIND | dict(projection_dim=16), audio_config=CLAP, projection_dim=16)),
        lambda: hf.ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation='rand_trunc'))}


@pytest.mark.parametrize('kind', SOUNDS)
def test_a_sound_is_the_same_alone_and_in_a_batch(root, kind):
    cut, model, extractor = SOUNDS[kind]
    tower = load_audio_tower(store(root/f'sound-{kind}', model, extractor()))
    def noise(seconds): return np.random.default_rng(0).standard_normal(int(16000 * seconds)) * .1
    sounds = [{'array': noise(s), 'sampling_rate': 16000} for s in (.2, .6, .2, .45)]
    sounds[1]['sampling_rate'] = 16000.
    together = tower(**tower.prepare(sounds))
    for sound, z in zip(sounds, together): assert_close(tower(**tower.prepare([sound]))[0], z, rtol=1e-4, atol=1e-5)
    assert tower.prepare.cut == 0
    stereo = {'array': np.stack([noise(.2), -noise(.2), 3 * noise(.2)]), 'sampling_rate': 16000}
    assert_close(tower(**tower.prepare([stereo]))[0], together[0], rtol=1e-3, atol=1e-4)
    tower.prepare.cut = 0
    tower.prepare([sounds[0], {'array': noise(5), 'sampling_rate': 16000}])
    assert tower.prepare.cut == cut
    for bad in (np.zeros(0), np.full(9000, np.nan), np.ones((9, 9)), np.ones(9000, np.int64), 'none.wav'):
        with pytest.raises(UserError): tower.prepare([bad])


# Sets

@pytest.fixture(scope='module')
def models(root):
    for kind in ('clip', 'bert', 'whisper', 'qwen2'): tiny_model(kind, root/kind)
    for kind in ('png', 'wav'): (root/kind).mkdir()
    for i in range(30):
        Image.effect_noise((20, 16), 20 + i).convert('RGB').save(root/f'png/{i}.png')
        write_sound(root/f'wav/{i}.wav', tone(200 + 20 * i, .2), 16000)
    return root


def lines(models, n, fields=('image', 'text'), bad=()):
    rows = [{'image': f'png/{i}.png', 'text': f'a bold digit {i}', 'audio': f'wav/{i}.wav'} for i in range(n)]
    rows = [{k: 'none.png' if i in bad and k == fields[0] else r[k] for k in fields} for i, r in enumerate(rows)]
    (models/'x.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return str(models/'x.jsonl')


def towers(models, *kinds):
    names = {'clip': 'vision', 'bert': 'text', 'whisper': 'audio'}
    paths = {f'{names[k]}_model_name': str(models/k) if k in kinds else '' for k in names}
    return AlignmentConfig(**paths, d_align=16, mrl_dims=(8, 16), num_epochs=1, batch_size=4)


def align(models, folder, data, *kinds, on_error='raise', **options):
    records = open_records(PairSource(data, on_error=on_error, val_split=options.pop('val_split', .1)))
    return run_alignment(records, towers(models, *kinds), RunConfig(folder), cache_dir=folder/'cache', **options)


PAIRS = {('image', 'text'): ('clip', 'bert'), ('audio', 'text'): ('bert', 'whisper')}


@pytest.mark.parametrize('fields', PAIRS)
@pytest.mark.parametrize('n', [1, 2, 3, 14])
def test_few_records_run_or_say_why_not(models, tmp_path, fields, n):
    data = lines(models, n, fields)
    if n > 2:
        align(models, tmp_path, data, *PAIRS[fields])
        assert '1 held out' in (tmp_path/'report.md').read_text()
        assert '1 of 1 held-out records can be scored; recall needs 2' in (tmp_path/'training.log').read_text()
        return
    found = {1: '1 records can not be split', 2: '1 of 2 records are pairs for these towers'}[n]
    with pytest.raises(UserError, match=found): align(models, tmp_path, data, *PAIRS[fields])


def test_held_out_records_may_all_be_bad(models, tmp_path):
    held = hold_out(ImageTextDataset(lines(models, 20))).tolist()
    data = lines(models, 20, bad=held)
    align(models, tmp_path/'a', data, 'clip', 'bert', on_error='skip')
    said = (tmp_path/'a/training.log').read_text()
    assert '2 of 20 records left out: bad, or without two of image, text' in said
    mm = MultimodalLLM(VisionTextAligner(towers(models, 'clip', 'bert')), LLMConfig(str(models/'qwen2'), n_prefix=2))
    records, rows = open_records(PairSource(data, on_error='skip'))
    train_captioning(mm, records, tmp_path/'c', val_rows=rows, epochs=1, cache_dir=tmp_path/'a/cache')
    assert '2 of 20 records left out' in (tmp_path/'c/training.log').read_text()


def test_records_that_share_something_stay_together(models, tmp_path):
    captions = [[f'caption {5 * i + k}' for k in range(1 + i % 3)] for i in range(24)]
    rows = [{'image': str(models/f'png/{i}.png'), 'text': t if len(t) > 1 else t[0]} for i, t in enumerate(captions)]
    rows += [{'image': (models/f'png/{i}.png').read_bytes(), 'text': f'again {i}'} for i in range(24)]
    dataset = ImageTextDataset(rows)
    held = {*hold_out(dataset).tolist()}
    assert held and all((i + 24 in held) == (i in held) for i in range(24))
    aligner = VisionTextAligner(towers(models, 'clip', 'bert'))
    run = dict(cache_dir=tmp_path/'cache', precision='fp32')
    table = train_alignment(aligner, create_dataloader(dataset, 8), output_dir=tmp_path/'a', **run)
    assert table.image_to_text_r1.notna().all()
    mm = MultimodalLLM(aligner, LLMConfig(str(models/'qwen2'), n_prefix=2))
    table, evaluation = train_captioning(mm, dataset, tmp_path/'c', epochs=1, **run)
    assert table.val_loss_caption.notna().all() and sorted({*map(len, evaluation.texts)}) == [1, 2, 3]


def test_links_are_followed_where_that_is_asked_for(models, tmp_path):
    os.symlink(models/'png/0.png', tmp_path/'link.png')
    (tmp_path/'x.jsonl').write_text(json.dumps({'image': 'link.png', 'text': 'a'}))
    with pytest.raises(UserError, match='--follow_links'): ImageTextDataset(tmp_path/'x.jsonl')[0]
    assert ImageTextDataset(tmp_path/'x.jsonl', follow_links=True)[0]['image'].size == (20, 16)


def test_a_file_that_changed_is_seen_again_and_broken_caches_are_made_again(models, tmp_path):
    tower, said = load_vision_tower(models/'clip'), []
    def see(name):
        Image.new('L', (16, 16), name).save(tmp_path/'a.bmp')
        os.utime(tmp_path/'a.bmp', (1, 1))
        records = ImageTextDataset([{'image': str(tmp_path/'a.bmp'), 'text': 'x'}])
        return cached_features(tower, records, tmp_path/'cache', say=said.append)[torch.tensor([0])]
    first, second = see(20), see(200)
    assert not first.equal(second)
    for part in tmp_path.glob('cache/*/part-*'):
        part.unlink()
        part.write_bytes(b'broken')
    said.clear()
    assert_close(see(20), first)
    assert 'damaged; computed again' in said[0]


# What is good

def test_one_picture_is_a_batch_of_one(models, monkeypatch):
    aligner = VisionTextAligner(towers(models, 'clip', 'bert', 'whisper'))
    picture = Image.open(models/'png/3.png').convert('RGB')
    pixels = np.asarray(picture)
    singles = [picture, pixels, torch.tensor(pixels), pixels.transpose(2, 0, 1), models/'png/3.png',
               str(models/'png/3.png'), data := (models/'png/3.png').read_bytes(), bytearray(data),
               {'bytes': data, 'path': None}, {'bytes': None, 'path': str(models/'png/3.png')}]
    for one in singles:
        assert_close(zero_shot(aligner, one, ['a', 'b']), zero_shot(aligner, [picture], ['a', 'b']))
        assert_close(retrieve(aligner, one, ['a', 'b'], k=2)[0], retrieve(aligner, [picture], ['a', 'b'], k=2)[0])
    assert zero_shot(aligner, np.zeros((32, 32, 3), np.uint8), ['a', 'b']).shape == (1, 2)
    assert zero_shot(aligner, np.zeros((32, 32), np.uint8), ['a', 'b']).shape == (1, 2)
    assert zero_shot(aligner, np.zeros((5, 32, 32, 3), np.uint8), ['a', 'b']).shape == (5, 2)
    monkeypatch.chdir(models/'wav')
    heard = retrieve(aligner, aligner.encode_audio(models/'wav/3.wav'), ['a', 'b'], k=2)
    assert_close(retrieve(aligner, '3.wav', ['a', 'b'], k=2)[0], heard[0])
    assert_close(retrieve(aligner, tone(260, .2).numpy(), ['a', 'b'], k=2)[0], heard[0], rtol=1e-3, atol=1e-3)
    sound = {'bytes': (models/'wav/3.wav').read_bytes(), 'path': '3.wav'}
    assert_close(retrieve(aligner, sound, np.array(['a', 'b']), k=2)[0], heard[0])
    assert zero_shot(aligner, picture, 'one class').shape == (1, 1)
    assert retrieve(aligner, 'a red fox', [picture] * 2, k=2)[0].shape == (1, 2)
    for wrong in (dict(k=1.5), dict(k='1'), dict(k=1, dim=8.)):
        with pytest.raises(UserError, match='expected 1 to'): retrieve(aligner, 'a', ['b', 'c'], **wrong)
    with pytest.raises(UserError, match='image is an array'): zero_shot(aligner, np.array(3), ['a'])
    with pytest.raises(UserError, match='class_texts has 1; expected'): zero_shot(aligner, picture, [1, 2])
    assert [modality_of(x) for x in ('a fox. Or v1.2', '3.wav', models/'png/3.png')] == ['text', 'audio', 'image']
    with pytest.raises(UserError, match='ends like the path of a sound, and there is no such file'):
        retrieve(aligner, 'lost.wav', ['a', 'b'])


def test_a_language_model_that_cannot_write_after_vectors_is_said_at_the_start(models, root):
    shape = TEXT | dict(max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    config = hf.Gemma3Config(text_config=shape | dict(head_dim=16), vision_config=EYES)
    folder = store(root/'gemma3', lambda: hf.Gemma3ForConditionalGeneration(config), tiny_tokenizer())
    with pytest.raises(UserError, match="model '.*gemma3': can't generate from vectors"):
        MultimodalLLM(VisionTextAligner(towers(models, 'clip', 'bert')), LLMConfig(str(folder), max_text=8))


def test_the_reference_s_quick_start(models, tmp_path):
    "As it is written there, with a smaller shape and the names of our modules."
    from mmjepa.core import get_device, seed_everything
    cfg = AlignmentConfig(vision_model_name=str(models/'clip'), text_model_name=str(models/'bert'), d_align=512,
                          batch_size=32, num_epochs=1)
    cfg.device = get_device()
    cfg.seed = np.int64(3)
    seed_everything(cfg.seed)
    model = VisionTextAligner(cfg)
    your_dataset = [(Image.open(models/f'png/{i}.png'), f'picture {i}') for i in range(30)]
    train_loader = create_dataloader(your_dataset, batch_size=32)
    history = train_alignment(model, train_loader, num_epochs=1, output_dir=tmp_path/'run', cache_dir=tmp_path/'cache')
    assert len(history) == 1
    mm_model = MultimodalLLM(model, LLMConfig(model_name=str(models/'qwen2')))
    output = mm_model.generate([your_dataset[0][0]], prompt='Describe this image:', max_new_tokens=3)
    assert len(output) == 1
    cfg.device = 'no such device'
    with pytest.raises(UserError, match='device is'): VisionTextAligner(cfg)


@pytest.mark.parametrize('fields', [
    {'batch_size': 1.5}, {'num_epochs': math.nan}, {'mrl_weight': math.nan}, {'lr': math.inf}, {'seed': None},
    {'standardize': 'no'}, {'learn_temperature': 1}, {'d_align': True}, {'text_model_name': 3},
    {'d_align': 10**9, 'hidden_factor': 1e9}], ids=str)
def test_wrong_settings_of_an_alignment(models, fields):
    with pytest.raises(UserError, match=f'{next(iter(fields))} is ') as e:
        VisionTextAligner(AlignmentConfig(str(models/'clip'), **{'text_model_name': str(models/'bert')} | fields))
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('fields', [
    {'model_name': None}, {'prompt': 3}, {'n_prefix': 1.5}, {'max_text': True}, {'freeze_llm': 'no'}], ids=str)
def test_wrong_settings_of_a_captioner(fields):
    with pytest.raises(UserError, match=f'{next(iter(fields))} is .*; expected'): LLMConfig(**fields)


@pytest.mark.parametrize('lora', [{'r': None}, {'r': 1.5}, {'r': 10**9}, {'target_modules': 3}], ids=str)
def test_wrong_settings_of_adapters(models, lora):
    config = LLMConfig(str(models/'qwen2'), lora={'target_modules': ['q_proj'], **lora})
    with pytest.raises(UserError, match="peft can't adapt it") as e:
        MultimodalLLM(VisionTextAligner(towers(models, 'clip', 'bert')), config)
    assert '\n' not in str(e.value)


def test_an_aligner_has_exactly_its_tensors(models, tmp_path):
    save_aligner(VisionTextAligner(towers(models, 'clip', 'bert')), tmp_path/'a')
    file = tmp_path/'a/adapters.safetensors'
    whole = load_file(file)
    name = sorted(whole)[0]
    for odd in ({k: v for k, v in whole.items() if k != name}, whole | {name + '2': whole[name].clone()},
                whole | {name: whole[name][:-1].contiguous()}):
        save_file(odd, file)
        with pytest.raises(UserError, match=name): load_aligner(tmp_path/'a')
