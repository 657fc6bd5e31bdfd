"""Sound as other programs have it: speech of espeak-ng, files that soundfile decodes; each where it is installed."""
import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch

from mmjepa.core import UserError, make_generator
from mmjepa.align.sound import digit_engine, read_sound, sound_pairs, spectrogram, spoken_digit, tone, write_sound

RATE = 16000
needs_espeak = pytest.mark.skipif(not shutil.which('espeak-ng'), reason='espeak-ng is not installed')
needs_soundfile = pytest.mark.skipif(not importlib.util.find_spec('soundfile'), reason='soundfile is not installed')


def said(k, who, engine): return spoken_digit(k, RATE, make_generator('speaker', engine, who), engine=engine)


# ---------------------------------------------------------------- espeak-ng

def cepstra(wave):
    "Shape of the spectrum over time, (n, 24), without the silence before and after and without what is constant."
    from scipy.fft import dct
    energy = wave.unfold(0, 400, 160).square().mean(1)
    loud = (energy > energy.max() * 1e-4).nonzero()[:, 0].tolist()
    power = 10**(spectrogram(wave[loud[0] * 160:loud[-1] * 160 + 400], RATE, step=.01) / 10).numpy()
    hz = 700 * (np.exp(np.linspace(np.log(1.1), np.log(1 + RATE / 1400), 42)) - 1)
    bands = np.stack([np.interp(np.arange(257) * RATE / 512, hz[i:i + 3], [0, 1, 0]) for i in range(40)])
    c = dct(np.log(bands @ power + 1e-7), axis=0, norm='ortho')[1:13]
    c, slope = c - c.mean(1, keepdims=True), np.gradient(c, axis=1)
    return np.vstack([c / c.std(), .5 * slope / slope.std()]).T


def stretched_distance(a, b):
    "Dynamic time warping."
    step = np.sqrt(((a[:, None] - b)**2).sum(-1)).tolist()
    row = [0.] + [np.inf] * len(b)
    for line in step:
        new = [np.inf]
        for j, d in enumerate(line): new.append(d + min(row[j], row[j + 1], new[j]))
        row = new
    return row[-1] / (len(a) + len(b))


@needs_espeak
def test_synthesized_digits_are_english():
    "The nearest word of another program's speakers is the same digit."
    known = [(k, cepstra(said(k, who, 'espeak'))) for who in range(4) for k in range(10)]
    right = 0
    for who in range(3):
        for k in range(10):
            word = cepstra(said(k, who, 'formant'))
            right += k == min((stretched_distance(word, other), name) for name, other in known)[1]
    assert right >= 26, f'{right} of 30'


@needs_espeak
def test_espeak_is_used_where_it_is_found():
    assert digit_engine() == digit_engine('auto') == digit_engine('espeak') == 'espeak'
    assert torch.equal(said(4, 0, 'espeak'), said(4, 0, 'espeak'))
    assert not torch.equal(said(4, 0, 'espeak'), said(4, 0, 'formant'))
    by_itself = spoken_digit(4, RATE, make_generator(1))
    assert torch.equal(by_itself, spoken_digit(4, RATE, make_generator(1), engine='espeak'))
    for rate in (8000, 44100):
        word = spoken_digit(4, rate, make_generator(1))
        assert abs(word.abs().max() - .5) < 1e-6 and .2 < len(word) / rate < 2


@needs_espeak
def test_espeak_speakers_differ():
    assert len({said(7, who, 'espeak').numpy().tobytes() for who in range(20)}) == 20


@needs_espeak
def test_digits_of_new_espeak_speakers_are_told_apart():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(k, who):
        "32 bands in each third of the word, (96,)."
        bands = spectrogram(said(k, who, 'espeak'), RATE)[:256].unflatten(0, (32, 8)).mean(1)
        return torch.cat([third.mean(1) for third in bands.tensor_split(3, 1)]).numpy()

    def words_of(speakers):
        x = np.stack([features(k, who) for who in speakers for k in range(10)])
        return x, np.tile(np.arange(10), len(speakers))

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=.1, max_iter=500)).fit(*words_of(range(12)))
    assert probe.score(*words_of(range(100, 106))) > .8


@needs_espeak
def test_pairs_by_espeak(tmp_path):
    records = [json.loads(line) for line in sound_pairs(tmp_path, 4).read_text().splitlines()]
    assert [set(r) for r in records] == [{'audio', 'image', 'text', 'domain'}] * 4
    for r in records:
        assert len(read_sound(tmp_path/r['audio'], RATE)) > RATE / 5
        assert (tmp_path/r['image']).read_bytes()[:4] == b'\x89PNG'


@pytest.mark.parametrize('script, words', [('exit 3', 'ended with status 3'),
                                           ('echo no sound', 'espeak-ng: not a sound that can be read')])
def test_a_program_that_fails_is_one_line(tmp_path, monkeypatch, script, words):
    (tmp_path/'espeak-ng').write_text(f'#!/bin/sh\n{script}\n')
    (tmp_path/'espeak-ng').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(UserError, match=words): spoken_digit(3, RATE, make_generator(0))


# ---------------------------------------------------------------- soundfile

@needs_soundfile
@pytest.mark.parametrize('kind, within', [('FLAC', 2**-15), ('OGG', .05), ('MP3', .05), ('AIFF', 2**-15)])
def test_other_formats(tmp_path, kind, within):
    import soundfile
    if kind not in soundfile.available_formats(): pytest.skip(f'this soundfile has no {kind}')
    wave, path = tone(440, .5, 44100), tmp_path/f'a.{kind.lower()}'
    soundfile.write(path, torch.stack([wave, wave], 1).numpy(), 44100, format=kind)
    for source in (path, path.read_bytes()):
        y = read_sound(source, 44100)
        assert abs(len(y) - len(wave)) <= 4 * 1152 and (y[2000:20000] - wave[2000:20000]).abs().max() < within
    spectrum = torch.fft.rfft(read_sound(path, RATE)[:RATE // 2]).abs()
    assert spectrum.argmax() == 220
    with pytest.raises(UserError, match='lasts 0.5 s; expected at most 0.1 s'): read_sound(path, RATE, max_seconds=.1)


@needs_soundfile
def test_what_is_no_sound_is_said_with_soundfile_too(tmp_path):
    (tmp_path/'a.txt').write_text('this is no sound' * 9)
    for source in (tmp_path/'a.txt', b'fLaC' + bytes(99)):
        with pytest.raises(UserError, match='not a sound that can be read'): read_sound(source, RATE)


@needs_soundfile
@pytest.mark.parametrize('kind', ['FLAC', 'OGG', 'MP3'])
def test_a_cut_file_is_an_error(tmp_path, kind):
    import soundfile
    if kind not in soundfile.available_formats(): pytest.skip(f'this soundfile has no {kind}')
    soundfile.write(tmp_path/'a', tone(440, 2., RATE).numpy(), RATE, format=kind)
    whole = (tmp_path/'a').read_bytes()
    for share in (.2, .5, .9):
        part = whole[:int(share * len(whole))]
        with pytest.raises(UserError, match='not a sound that can be read'): read_sound(part, RATE)


@needs_soundfile
@pytest.mark.parametrize('kind', ['PCM_U8', 'PCM_16', 'PCM_24', 'PCM_32', 'FLOAT', 'DOUBLE'])
@pytest.mark.parametrize('form', ['WAV', 'WAVEX', 'RF64'])
def test_wav_files_of_another_writer(tmp_path, form, kind):
    import soundfile
    wave = tone(440, .1, RATE)
    soundfile.write(tmp_path/'a.wav', torch.stack([wave, wave / 2], 1).numpy(), RATE, kind, format=form)
    step = 2**-7 if kind == 'PCM_U8' else 2**-15
    assert (read_sound(tmp_path/'a.wav', RATE) - .75 * wave).abs().max() < step


@needs_soundfile
def test_another_reader_reads_ours(tmp_path):
    import soundfile
    write_sound(tmp_path/'a.wav', tone(440, .1, 22050), 22050)
    found, rate = soundfile.read(tmp_path/'a.wav', dtype='float32')
    assert rate == 22050 and (torch.tensor(found) - tone(440, .1, 22050)).abs().max() <= 2**-16
