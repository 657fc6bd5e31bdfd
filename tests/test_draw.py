"""The page "Draw a digit" in Chromium: the model answers as PyTorch does, in time, to a mouse and to a finger."""
import base64
import functools
import http.server
import importlib.util
import json
import math
import re
import shutil
import threading

import pytest
import torch

import mmjepa
from mmjepa.core import data_dir
from mmjepa.data.images import load_images
from mmjepa.label.retrieval import similarities
from mmjepa.pairs.pages import find_chromium
from tree import NBS, ROOT, cells

playwright = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
MODEL = NBS/'draw/mnist'


# ---------------------------------------------------------------- the page, served on this machine

def fetcher():
    spec = importlib.util.spec_from_file_location('onnxruntime_web', ROOT/'tools/onnxruntime_web.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def html(look='quarto-light'):
    "The part of the page that is HTML, as Quarto takes it over, in a document without Quarto."
    text = '\n'.join(c.source for c in cells(NBS/'draw.ipynb', 'markdown'))
    raw = re.search(r'```\{=html\}\n(.*?)```', text, re.S)[1]
    return f'''<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Draw a digit</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ margin: 1rem; font: 16px/1.5 sans-serif; background: #fff; color: #212529 }}
body.quarto-dark {{ background: #222; color: #fff }}</style></head>
<body class="{look}"><main><h1>Draw a digit</h1>{raw}<p style="height: 1500px">More of the page.</p></main></body>'''


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The address of a folder with the page, its files, and what runs the model."
    root, tool = tmp_path_factory.mktemp('site'), fetcher()
    shutil.copytree(NBS/'draw', root/'draw')
    if not tool.there(root/'draw/ort'):
        try: tool.fetch(root/'draw/ort')
        except SystemExit as e: pytest.skip(f'{e}; python tools/onnxruntime_web.py fetches it where there is a network')
    for look in ('light', 'dark'): (root/f'{look}.html').write_text(html(f'quarto-{look}'))
    shutil.copytree(root/'draw', root/'lost/draw', ignore=shutil.ignore_patterns('mnist'))
    (root/'lost/page.html').write_text(html())
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


@pytest.fixture(scope='module')
def browser():
    if not (path := find_chromium()): pytest.skip('no Chromium on this machine: apt-get install chromium')
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=path, args=['--no-sandbox'])
        yield found
        found.close()


@pytest.fixture
def opened(browser, site):
    "A function that opens a page of the site in a window of some size, its model ready."
    contexts = []
    def open_page(name='light.html', **options):
        contexts.append(browser.new_context(**{'viewport': {'width': 1100, 'height': 800}, **options}))
        page = contexts[-1].new_page()
        page.errors, page.asked = [], []
        page.on('pageerror', lambda e: page.errors.append(str(e)))
        page.on('request', lambda r: page.asked.append(r.url))
        page.goto(f'{site}/{name}')
        page.evaluate("document.querySelector('draw-digit').ready")
        return page
    yield open_page
    for context in contexts: context.close()


# ---------------------------------------------------------------- digits as a hand draws them, on a board of 280

def arc(x, y, rx, ry, *, start, end):
    "Points of an ellipse between two angles in degrees, clockwise from the right."
    angles = [math.radians(start + (end - start) * i / 24) for i in range(25)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def eight():
    turns = [2 * math.pi * i / 48 for i in range(49)]
    return [(140 + 45 * math.sin(2 * t), 140 - 80 * math.cos(t)) for t in turns]


DIGITS = [
    [arc(140, 140, 55, 80, start=-90, end=270)],
    [[(142, 60), (138, 220)]],
    [arc(140, 105, 50, 45, start=-170, end=20) + [(100, 215), (195, 215)]],
    [arc(135, 100, 45, 38, start=-160, end=90) + arc(135, 180, 52, 42, start=-90, end=160)],
    [[(110, 60), (92, 150), (205, 150)], [(175, 70), (170, 230)]],
    [[(190, 60), (112, 60), (106, 128), *arc(140, 170, 50, 48, start=-135, end=150)]],
    [[(170, 55), (125, 105), *arc(145, 180, 42, 40, start=180, end=540)]],
    [[(90, 70), (195, 70), (130, 220)]],
    [eight()],
    [arc(140, 105, 42, 42, start=0, end=-360) + [(178, 160), (170, 225)]]]


def draw(page, strokes, scale=1., x=0., y=0.):
    "Move the mouse over the board as a hand does."
    box = page.locator('draw-digit .drawing').bounding_box()
    def place(point): return (box['x'] + (point[0] * scale + x) * box['width'] / 280,
                              box['y'] + (point[1] * scale + y) * box['height'] / 280)
    for stroke in strokes:
        page.mouse.move(*place(stroke[0]))
        page.mouse.down()
        for point in stroke[1:]: page.mouse.move(*place(point), steps=2)
        page.mouse.up()


SETTLED = "() => { const d = document.querySelector('draw-digit'); return !d.busy && !d.changed }"
SHOWN = """() => Object.fromEntries(['m1', 'm2'].map(m =>
    [m, [...document.querySelectorAll(`draw-digit td.${m}`)].map(cell => Number(cell.textContent))]))"""


def answers(page):
    "The numbers beside the bars, once they stand still."
    page.wait_for_function(SETTLED)
    return page.evaluate(SHOWN)


def best(values): return max(range(len(values)), key=values.__getitem__)


# ---------------------------------------------------------------- the same answers as PyTorch

def digits_of_test():
    "500 test digits of MNIST where they are, else scikit-learn's, as large as those."
    if (data_dir(None)/'MNIST/raw').is_dir(): images = load_images('mnist')[1]
    else: images = load_images('digits', image_size=28)[0]
    return images.images[:500], images.labels[:500], images.name


@functools.cache
def expected():
    model = mmjepa.load(MODEL)
    with torch.inference_mode(): found = similarities(model, digits_of_test()[0], 10)
    return {f'm{m}': found[m][0] for m in (1, 2)}


READ = """async texts => {
    const {model} = document.querySelector('draw-digit'), found = {m1: [], m2: []};
    for (const text of texts) {
        const answer = await model.read(Uint8Array.from(atob(text), c => c.charCodeAt(0)));
        for (const m of ['m1', 'm2']) found[m].push(...answer[m]);
    }
    return found;
}"""


def test_500_digits_have_the_answers_of_pytorch(opened):
    images, labels, name = digits_of_test()
    parts = [base64.b64encode(part.numpy().tobytes()).decode() for part in images.split(50)]
    found = opened().evaluate(READ, parts)
    for m, wanted in expected().items():
        values = torch.tensor(found[m])
        torch.testing.assert_close(values, wanted, rtol=0, atol=1e-4)
        assert (values.argmax(1) == wanted.argmax(1)).all()
        if name == 'mnist': assert (values.argmax(1) == labels).float().mean() > .95


def test_the_model_is_small_and_says_what_it_scores():
    about = json.loads((MODEL/'metadata.json').read_text())
    assert (MODEL/'model.onnx').stat().st_size < 3e6 and about['classes'] == [str(k) for k in range(10)]
    small = about['scores'][about['precision']]
    assert small['m1'] > .95 and small['m2'] > .95 and small['cosine'] > .999


# ---------------------------------------------------------------- drawing

@pytest.mark.parametrize('digit', range(10))
def test_a_digit_that_is_drawn_is_read(opened, digit):
    page = opened()
    draw(page, DIGITS[digit])
    assert {m: best(values) for m, values in answers(page).items()} == {'m1': digit, 'm2': digit}
    assert page.locator('[role=status]').text_content().startswith(f'M1 and M2 say {digit} (')
    assert not page.errors


@pytest.mark.parametrize('scale, x, y', [(.35, 10, 15), (.5, 130, 120), (1.15, -25, -20)])
def test_size_and_place_of_a_drawing_do_not_matter(opened, scale, x, y):
    "To the model: it sees nearly the same picture."
    page = opened()
    seen = "() => { const d = document.querySelector('draw-digit canvas:not(.drawing)');" \
           "return [...d.getContext('2d').getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 == 0) }"
    draw(page, DIGITS[3])
    middle, plain = answers(page), torch.tensor(page.evaluate(seen))
    page.get_by_role('button', name='Clear').click()
    draw(page, DIGITS[3], scale, x, y)
    moved, other = answers(page), torch.tensor(page.evaluate(seen))
    assert (plain - other).abs().float().mean() < 4 and plain.max() > 200  # of 255; events come in whole pixels
    assert best(moved['m2']) == best(middle['m2']) == 3


def test_a_drawing_is_brought_to_the_form_of_mnist(opened):
    "A box of 20 pixels, the centre of mass in the middle."
    code = """async strokes => {
        const {massCentre, toPixels} = await import(new URL('draw/strokes.js', location.href));
        const pixels = toPixels(strokes, 280);
        return {pixels: [...pixels], centre: massCentre(pixels)};
    }"""
    page = opened()
    for strokes in (*DIGITS, [[(20, 20)]]):
        found = page.evaluate(code, [[list(p) for p in stroke] for stroke in strokes])
        assert found['centre'] == pytest.approx([14, 14], abs=.15)
        ink = torch.tensor(found['pixels']).view(28, 28) > 127
        rows, columns = ink.any(1).sum().item(), ink.any(0).sum().item()
        if len(strokes[0]) > 1: assert 19 <= max(rows, columns) <= 21
        else: assert 2 <= rows <= 4 and 2 <= columns <= 4  # a dot stays one


def test_clear_begins_again(opened):
    page = opened()
    button = page.get_by_role('button', name='Clear')
    assert button.is_disabled() and page.locator('[role=status]').text_content() == 'Draw a digit.'
    draw(page, DIGITS[7])
    first = answers(page)
    button.click()
    assert page.locator('[role=status]').text_content() == 'Draw a digit.' and button.is_disabled()
    assert ''.join(page.locator('draw-digit td').all_text_contents()) == ''
    draw(page, DIGITS[7])
    assert answers(page) == first


def test_a_finger_draws_and_the_page_stays_where_it_is(opened):
    page = opened(viewport={'width': 390, 'height': 700}, has_touch=True, is_mobile=True, device_scale_factor=2)
    box = page.locator('draw-digit .drawing').bounding_box()
    touch = page.context.new_cdp_session(page)
    def send(kind, *points):
        places = [{'x': box['x'] + x * box['width'] / 280, 'y': box['y'] + y * box['height'] / 280} for x, y in points]
        touch.send('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': places})
    for stroke in DIGITS[2]:
        send('touchStart', stroke[0])
        for point in stroke[1:]: send('touchMove', point)
        send('touchEnd')
    found = answers(page)
    assert best(found['m1']) == best(found['m2']) == 2
    assert page.evaluate('scrollY') == 0


# ---------------------------------------------------------------- looks and failures

@pytest.mark.parametrize('name', ['light.html', 'dark.html'])
def test_nothing_is_wider_than_a_phone(opened, name):
    page = opened(name, viewport={'width': 390, 'height': 844})
    draw(page, DIGITS[0])
    answers(page)
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    for part in ('.drawing', '.answers', 'table'):
        box = page.locator(f'draw-digit {part}').bounding_box()
        assert box['x'] >= 0 and box['x'] + box['width'] <= 390


def luminance(rgb):
    parts = [int(v) / 255 for v in re.findall(r'\d+', rgb)[:3]]
    return sum(w * (v / 12.92 if v <= .04 else ((v + .055) / 1.055)**2.4) for w, v in zip((.2126, .7152, .0722), parts))


@pytest.mark.parametrize('name', ['light.html', 'dark.html'])
def test_words_and_bars_can_be_told_from_the_background(opened, name):
    page = opened(name)
    draw(page, DIGITS[0])
    answers(page)
    color = "(part, kind) => getComputedStyle(document.querySelector(part))[kind]"
    ground = luminance(page.evaluate(f"({color})('body', 'backgroundColor')"))
    def contrast(part, kind):
        a, b = sorted((luminance(page.evaluate(f"({color})('{part}', '{kind}')")), ground))
        return (b + .05) / (a + .05)
    for part in ('draw-digit button', 'draw-digit th', 'draw-digit td b', '[role=status]'):
        assert contrast(part, 'color') >= 4.5
    for part in ('td.m1.best i', 'td.m2.best i'): assert contrast(part, 'backgroundColor') >= 3


def test_only_this_site_is_asked(opened, site):
    page = opened()
    draw(page, DIGITS[5])
    answers(page)
    assert page.asked and all(url.startswith((site, 'data:', 'blob:')) for url in page.asked), page.asked


def test_a_missing_model_is_told(opened):
    page = opened('lost/page.html')
    said = page.locator('[role=status]').text_content()
    assert said.startswith('The model cannot run here: ') and '404' in said and not page.errors
    assert not page.locator('draw-digit table').is_visible()
