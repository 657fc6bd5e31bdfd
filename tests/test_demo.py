"""The page to try models: what its tabs do without a page, the command, and the page itself in Chromium.

A browser is no part of the project: where Gradio, Playwright or Chromium are missing, the tests of the page are
skipped. `$MMJEPA_SCREENSHOTS` names a folder that gets a picture of each tab."""
import io
import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmjepa.align.aligner import AlignmentConfig, VisionTextAligner, train_alignment
from mmjepa.align.captioner import LLMConfig, MultimodalLLM, train_captioning
from mmjepa.align.inputs import ImageTextDataset, create_dataloader
from mmjepa.align.tiny_models import quiet_transformers, tiny_model, tiny_tokenizer
from mmjepa.core import UserError, run_command, seed_everything
from mmjepa.data.records import digit_pairs
from mmjepa.data.text import ByteTokenizer
from mmjepa.demo import (LARGEST_FILE, DemoConfig, caption_stream, classify_drawing, drawing_image, embed_queries,
                         main, open_models, place, read_picture, read_upload, render_text, search,
                         train_digits)
from mmjepa.encoders import EncoderConfig
from mmjepa.label.mnist import Experiment, run_experiment
from mmjepa.pairs.pages import find_chromium
from mmjepa.pretrain.contrastive import ContrastiveRun, run_contrastive
from mmjepa.pretrain.map import project
from mmjepa.runs import RunConfig
from mmjepa.vl.curriculum import save_vl_model
from mmjepa.vl.evaluation import EvalRecord, record_batches
from mmjepa.vl.hybrid import next_token_labels
from mmjepa.vl.model import VLJEPA, VLJEPAConfig, hybrid_loss

COLOURS = ('red', 'green', 'blue')
FORMULAS = {r'$\frac{1}{2}$': 'white', '$x^2$': 'gold', r'$\sqrt{a}$': 'navy'}  # picture: a sheet of that colour


def png(image):
    image.save(file := io.BytesIO(), 'PNG')
    return file.getvalue()

def square(colour): return png(Image.new('RGB', (64, 64), colour))


# ---------------------------------------------------------------- small models that know a little by heart

def make_label(folder):
    run_experiment(Experiment(data='digits', emb_dim=48, depth=2, epochs=25, val_split=0.), RunConfig(folder))


def make_pairs(folder):
    data = digit_pairs(folder.parent/'digits', 300)
    shape = dict(image_size=8, patch_size=2, context=24, emb_dim=48, depth=2, drop_path=0., augment=0., max_scale=10.)
    train = dict(batch_size=50, epochs=25, lr=2e-3, val_split=0., eval_every=25)
    run_contrastive(ContrastiveRun(json_data=str(data), choose_split=0., **shape, **train), RunConfig(folder))


def make_captioner(folder):
    "Colours through random towers; the language model learns as a whole, from nothing."
    home, cache = folder.parent, folder.parent/'cache'
    records = [{'image': Image.new('RGB', (64, 64), c), 'text': f'a {c} square'} for c in COLOURS]
    words = tiny_tokenizer([r['text'] for r in records])
    with quiet_transformers():
        towers = [str(tiny_model('clip', home/'clip')), str(tiny_model('bert', home/'bert'))]
        llm = str(tiny_model('qwen2', home/'qwen', words))
    config = AlignmentConfig(*towers, d_align=32, mrl_dims=(32,), standardize=True, device='cpu')
    aligner, pairs = VisionTextAligner(config), ImageTextDataset(records * 3)
    train_alignment(aligner, create_dataloader(pairs, 9), 20, output_dir=home/'align', val_split=0., cache_dir=cache,
                    lr=3e-3)
    model = MultimodalLLM(aligner, LLMConfig(llm, n_prefix=2, freeze_llm=False, max_text=12))
    train_captioning(model, pairs, folder, batch_size=9, val_split=0., cache_dir=cache, epochs=200, lr=5e-3)


def make_reader(folder):
    "A formula for each colour of a sheet."
    tok, known = ByteTokenizer(), [EvalRecord(text, square(c)) for text, c in FORMULAS.items()]
    vision = EncoderConfig(16, 8, 3, num_classes=0, emb_dim=32, depth=1, num_heads=2, drop_path=0.)
    widths = dict(hidden_size=48, num_layers=1, fusion_depth=1, embedding_dim=16)
    model = VLJEPA(VLJEPAConfig(vision, tok.vocab_size, 32, **widths))
    model.alpha, model.beta = 0., 1.
    batch = next(iter(record_batches(model, tok, known)))
    batch['labels'] = next_token_labels(batch['text'], batch['text_mask'])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss = hybrid_loss(model(batch), batch, 0., beta=1.)[2]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_vl_model(model, tok, folder/'model')


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Folders of four runs, and the JSON lines of one."
    root = tmp_path_factory.mktemp('demo')
    makers = {'label': make_label, 'pairs': make_pairs, 'caption': make_captioner, 'reader': make_reader}
    for name, make in makers.items():
        seed_everything(0)
        make(root/name)
    return root

@pytest.fixture(scope='module')
def models(home): return open_models([home/n for n in ('label', 'pairs', 'caption', 'reader')], DemoConfig(limit=0))


# ---------------------------------------------------------------- what the tabs do

def one():
    "A vertical stroke, as somebody draws a one on the pad."
    ink = np.zeros((56, 56), np.uint8)
    ink[8:48, 23:32] = 255
    return ink


def test_a_drawing_has_scores_and_attention(models):
    found = classify_drawing(models.label, drawing_image(one(), models.label.config.encoder), models.classes)
    assert found['classes'][found['label']] == '1' and len(found['m1']) == len(found['m2']) == 10
    assert found['attention'].shape == (2, 2, 2) and np.argmax(found['m1']) == 1


def test_a_sentence_finds_its_pictures_and_its_place(models):
    found = search(models.search, models.table, 'a bold zero')
    domains = models.table.domains
    assert sum(domains[i] == 'zero' for i in found['rows'][:5]) >= 4 and found['rank'] <= 5
    xy = project(models.table.vectors)
    spot = place(models.search, models.table, 'a bold zero', xy=xy)
    near = ((xy - [spot['x'], spot['y']])**2).sum(1).argsort()[:8]
    assert sum(domains[i] == 'zero' for i in near) >= 6


def test_an_aligner_searches_as_well(home, models, tmp_path):
    "The one of a captioner, where no other model does."
    for c in COLOURS: (tmp_path/f'{c}.png').write_bytes(square(c))
    lines = [json.dumps({'image': f'{c}.png', 'text': f'a {c} square'}) for c in COLOURS]
    (tmp_path/'colours.jsonl').write_text('\n'.join(lines))
    opened = open_models([home/'caption'], DemoConfig(data=str(tmp_path/'colours.jsonl')))
    assert opened.search is opened.caption.aligner and len(opened.table.records) == 3
    for c in COLOURS: assert search(opened.search, opened.table, f'a {c} square', k=2)['rank'] == 1
    picture = embed_queries(opened.search, [read_upload(square('blue'))])
    np.testing.assert_allclose(opened.table.vectors[2:], picture, atol=1e-5)


@pytest.mark.parametrize('colour', COLOURS)
def test_a_caption_comes_in_pieces(models, colour):
    said = [*caption_stream(models.caption, read_upload(square(colour)))]
    assert said[-1] == f'a {colour} square' and len(said) > 2
    assert all(b.startswith(a) for a, b in zip(said, said[1:]))
    assert models.caption.generate([read_upload(square(colour))]) == said[-1:]
    assert not models.caption.training


@pytest.mark.parametrize('text', FORMULAS)
def test_code_is_read_and_drawn(models, text):
    read = [*read_picture(models.read, read_upload(square(FORMULAS[text])))]
    assert read[-1] == text
    picture, about = render_text(read[-1])
    assert about == 'drawn as LaTeX' and np.asarray(picture).std() > 1


def test_a_program_runs_only_where_that_is_allowed(tmp_path):
    "Neither in this process nor, without being asked to, in another."
    trace = tmp_path/'was here'
    program = f'import matplotlib.pyplot as plt\nopen({str(trace)!r}, "w")\nplt.plot([1, 2])'
    picture, about = render_text(program)
    assert picture is not None and 'was not run' in about and not trace.exists()


def test_runs_say_what_they_are(home, capsys):
    opened = open_models([home/'label', home/'pairs'], DemoConfig(limit=20))
    assert opened.classes == [str(i) for i in range(10)] and len(opened.table.records) == 20
    assert (opened.caption, opened.read) == (None, None)
    assert 'tab label' in capsys.readouterr().out
    with pytest.raises(UserError, match='has nothing to show|holds no model'): open_models([home/'digits'])


@pytest.mark.slow
def test_without_a_run_digits_are_trained_once(tmp_path):
    "The label model comes with the package. A second start opens what is there."
    said = []
    runs = train_digits(tmp_path/'demo', say=said.append)
    assert 'is trained first' in said[0]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.safetensors')}
    assert train_digits(tmp_path/'demo', say=said.append) == runs and len(said) == 1
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.safetensors')} == before
    opened = open_models(runs)
    image = drawing_image(one(), opened.label.config.encoder)
    assert classify_drawing(opened.label, image, opened.classes)['label'] == 1 and opened.table is not None


# ---------------------------------------------------------------- the command

def complaint(capsys, *argv):
    with pytest.raises(SystemExit) as stop: run_command(main.__wrapped__, [*map(str, argv)])
    line, = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    return line


def test_the_command_says_what_is_wrong(home, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)  # not installed
    assert "pip install 'mmjepa[demo]'" in complaint(capsys, home/'label')
    monkeypatch.setattr('mmjepa.demo._gradio', lambda: None)
    assert 'holds no model' in complaint(capsys, home)
    assert 'are for the same tab' in complaint(capsys, home/'label', home/'label/model')
    assert 'port is 99999' in complaint(capsys, home/'label', '--port', 99999)
    assert 'nowhere.jsonl' in complaint(capsys, home/'pairs', '--data', home/'nowhere.jsonl')


# ---------------------------------------------------------------- the page

PARTS = {'gradio': "pip install 'mmjepa[demo]'", 'playwright': 'pip install playwright'}
MISSING = [f'{name} ({how})' for name, how in PARTS.items() if not find_spec(name)]
if not find_chromium(): MISSING.append('Chromium (apt install chromium)')
WHY = f'the page is tried where these are installed: {", ".join(MISSING)}'
in_a_browser = pytest.mark.skipif(bool(MISSING), reason=WHY)


@pytest.fixture(scope='module')
def server(home):
    "The command as a user starts it; its address."
    runs = [str(home/n) for n in ('label', 'pairs', 'caption', 'reader')]
    command = [sys.executable, '-m', 'mmjepa.demo', *runs, '--port', '0', '--limit', '120']
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               env={**os.environ, 'NUMBA_NUM_THREADS': '1'})
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith('page: '): break
    else: pytest.fail(''.join(said)[-3000:])
    address = said[-1].split()[1]
    assert address.startswith('http://127.0.0.1:'), 'this machine alone'
    yield address
    process.send_signal(signal.SIGINT)
    assert process.wait(30) in (0, 130)


@pytest.fixture(scope='module')
def chromium():
    from playwright.sync_api import sync_playwright
    camera = ['--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream']
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=find_chromium(), args=['--no-sandbox', *camera])
        yield browser
        browser.close()


@pytest.fixture
def page(server, chromium):
    "The page in a new window; whatever it asks of another machine is refused, and told."
    window = chromium.new_page(viewport={'width': 1200, 'height': 900})
    window.set_default_timeout(20_000)
    window.outside = []
    def ask(route):
        inside = route.request.url.startswith((server, 'data:', 'blob:', 'about:'))
        if not inside: window.outside.append(route.request.url)
        route.continue_() if inside else route.abort()
    window.route('**/*', ask)
    window.goto(server)
    yield window
    window.close()


def open_tab(page, name):
    page.get_by_role('tab', name=name, exact=True).click()


def keep(page, name):
    "A picture of the page, where somebody wants it."
    folder = os.environ.get('MMJEPA_SCREENSHOTS')
    if folder: page.screenshot(path=Path(folder)/f'{name}.png', full_page=True)


def upload(page, name, data, nth=0):
    "Hand a file to a place for pictures of the tab that is open."
    place = page.locator('input[type=file]:visible, .tabitem:visible input[type=file]').nth(nth)
    place.set_input_files({'name': name, 'mimeType': 'image/png', 'buffer': data})


def said(page, words): page.get_by_text(words).first.wait_for()


@in_a_browser
def test_draw(page):
    "Bars and attention move before the pen is lifted."
    from playwright.sync_api import expect
    open_tab(page, 'Draw')
    box = page.locator('#pad canvas').bounding_box()
    x, y = box['x'] + box['width'] / 2, box['y'] + 50
    page.mouse.move(x, y)
    page.mouse.down()
    for i in range(18): page.mouse.move(x, y + 10 * i)
    expect(page.locator('#drawn .answer')).to_have_text('1')
    page.mouse.up()
    assert page.locator('#drawn .bars tr').count() == 11 and page.locator('#drawn .layers img').count() == 2
    keep(page, 'draw')
    page.get_by_text('Clear').click()
    expect(page.locator('#drawn .answer')).to_have_count(0)
    assert not page.outside, 'nothing is asked of another machine'


@in_a_browser
def test_search(page):
    from playwright.sync_api import expect
    open_tab(page, 'Search')
    page.locator('#sentence textarea, #sentence input').fill('a bold zero')
    page.keyboard.press('Enter')
    expect(page.locator('#found img')).to_have_count(12)
    said(page, 'The right picture came at place')
    assert 'zero' in page.locator('#found').inner_text()
    assert 'of 1 asked' in page.locator('#score').inner_text()
    page.locator('#sentence textarea, #sentence input').fill('round like an egg')
    page.keyboard.press('Enter')
    said(page, 'Which picture is right?')
    page.locator('#found img').nth(1).click()
    said(page, 'of 2 asked')
    assert 'place 2' in page.locator('#score').inner_text()
    keep(page, 'search')
    upload(page, 'notes.png', b'no picture')
    said(page, 'notes.png: not a picture that can be read')


@in_a_browser
def test_caption(page):
    from playwright.sync_api import expect
    open_tab(page, 'Caption')
    upload(page, 'blue.png', square('blue'))
    page.locator('#caption').click()
    expect(page.locator('#said textarea')).to_have_value('a blue square')
    keep(page, 'caption')
    page.reload()
    open_tab(page, 'Caption')
    upload(page, 'virus.png', b'MZ' + bytes(100))
    page.locator('#caption').click()
    said(page, 'virus.png: not a picture that can be read')


@in_a_browser
def test_read(page):
    from playwright.sync_api import expect
    open_tab(page, 'Read')
    upload(page, 'sheet.png', square('gold'))
    page.locator('#read').click()
    expect(page.locator('#code textarea')).to_have_value('$x^2$')
    page.locator('#rendering img').wait_for()
    said(page, 'Drawn as LaTeX.')
    keep(page, 'read')
    page.reload()
    open_tab(page, 'Read')
    upload(page, 'sheet.png', png(Image.new('1', (6000, 5000))))
    page.locator('#read').click()
    said(page, 'sheet.png: 6000x5000 pixels')


@in_a_browser
def test_map(page):
    open_tab(page, 'Map')
    page.locator('#mine textarea, #mine input').fill('a bold zero')
    page.keyboard.press('Enter')
    said(page, 'It falls by the cross.')
    frame = next(f for f in page.frames if f != page.main_frame)
    frame.wait_for_function('mine !== null')
    nearest = frame.evaluate('''() => {
      const far = i => (data.x[i] - mine.x) ** 2 + (data.y[i] - mine.y) ** 2, order = [...data.x.keys()];
      order.sort((a, b) => far(a) - far(b));
      return order.slice(0, 5).map(i => data.groups.domain.names[data.groups.domain.of[i]]);
    }''')
    assert nearest.count('zero') >= 3, nearest
    keep(page, 'map')
    upload(page, 'notes.png', b'no picture')
    said(page, 'notes.png: not a picture that can be read')


@in_a_browser
def test_files_that_are_too_large_are_refused(page):
    import httpx
    response = httpx.post(f'{page.url.rstrip("/")}/gradio_api/upload', files={'files': bytes(LARGEST_FILE + 1)})
    assert response.status_code == 413, response.text


@in_a_browser
def test_two_pages_can_not_have_one_port(server, home):
    port = server.rstrip('/').rsplit(':', 1)[1]
    done = subprocess.run([sys.executable, '-m', 'mmjepa.demo', str(home/'label'), '--port', port], text=True,
                          capture_output=True)
    assert done.returncode == 2 and 'expected another --port' in done.stderr.splitlines()[-1], done.stderr
