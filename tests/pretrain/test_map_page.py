"""The page of a map in Chromium: what is searched, named, selected and saved, and how fast 100,000 points are drawn.

A browser is no part of the project: where Playwright or Chromium are missing, these tests are skipped.
`$MMJEPA_SCREENSHOTS` names a folder that gets a picture of the page."""
import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mmjepa.data.records import digit_pairs
from mmjepa.pairs.pages import find_chromium
from mmjepa.pretrain.map import EmbeddingTable, PictureSheet, group_look, map_page, thumbnails

MISSING = [] if find_spec('playwright') else ['playwright (pip install playwright)']
if not find_chromium(): MISSING.append('Chromium (apt install chromium)')
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f'the page is tried where these are installed: {MISSING}')


@pytest.fixture(scope='module')
def chromium():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=find_chromium(), args=['--no-sandbox'])
        yield browser
        browser.close()


def opened(chromium, file, **options):
    "The page in a new window that has no network; what its code complains of fails the test."
    window = chromium.new_page(viewport={'width': 1100, 'height': 700}, **options)
    window.set_default_timeout(20_000)
    window.wrong = []
    window.on('pageerror', lambda e: window.wrong.append(str(e)))
    def asked(request):
        if not request.url.startswith(('file:', 'data:', 'blob:')): window.wrong.append(request.url)
    window.on('request', asked)
    window.goto(file.as_uri())
    window.wait_for_function('typeof draw === "function" && width > 0')
    return window


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    "A page of 120 digits in ten places on a ring, every third one held out, and its table."
    folder = tmp_path_factory.mktemp('page')
    rows = [json.loads(line) for line in digit_pairs(folder, 120).read_text().splitlines()]
    names = sorted({r['domain'] for r in rows})
    for i, r in enumerate(rows): r['split'] = 'val' if i % 3 == 0 else 'train'
    angle = np.array([names.index(r['domain']) for r in rows]) * np.pi / 5
    xy = np.stack([np.cos(angle), np.sin(angle)], 1) * 5 + np.random.default_rng(0).normal(size=(120, 2)) * .2
    table = EmbeddingTable(xy.astype(np.float32), rows, folder)
    panels = {'domain': table.domains, 'parity': ['even' if i % 2 else 'odd' for i in range(120)]}
    sheet, _ = thumbnails(table)
    scores = {'image': {'v_measure': .5, 'rows': 120}, 'pixels': {'v_measure': .25, 'neighbour_share': .75}}
    (folder/'map.html').write_text(map_page(table.vectors, panels, table, pictures=sheet, scores=scores))
    return folder/'map.html', table


@pytest.fixture
def page(chromium, digits):
    window = opened(chromium, digits[0])
    yield window
    window.close()
    assert not window.wrong, window.wrong


def colour_at(page, i):
    "Of the canvas, at the centre of a row's dot."
    return page.evaluate("""i => {
      draw();
      const [x, y] = place(i).map(v => Math.round(v * ratio));
      return [...pen.getImageData(x, y, 1, 1).data];
    }""", i)


def test_dots_have_the_colours_of_the_picture(page, digits):
    page.uncheck('#named')
    look = group_look(sorted(set(digits[1].domains)))
    for i in (1, 4, 50):
        hex_colour = look[digits[1].domains[i]][0]
        red, green, blue, alpha = colour_at(page, i)
        assert alpha > 150, 'something is drawn there'
        assert np.abs(np.array([red, green, blue]) - [int(hex_colour[k:k + 2], 16) for k in (1, 3, 5)]).max() <= 4


def test_search_dims_the_others(page, digits):
    found = [i for i, r in enumerate(digits[1].records) if 'seven' in r['text']]
    other = next(i for i, r in enumerate(digits[1].records) if r['domain'] == 'three')
    page.uncheck('#named')
    before = colour_at(page, other)[3]
    page.fill('#find', 'SEVEN')
    assert page.inner_text('#count') == f'{len(found)} of 120' and 0 < len(found) < 60
    assert colour_at(page, other)[3] < before, 'it is there, but pale'
    assert page.evaluate('i => nearest(...place(i))', other) == -1, 'what is dimmed is not in the way'
    page.fill('#find', 'no such words')
    assert page.inner_text('#count') == '0 of 120'
    page.fill('#find', '')
    assert page.inner_text('#count') == '' and colour_at(page, other)[3] == before


def test_names_get_finer(page, digits):
    "Level 0 has eight regions at most; closer there are others, and each is the word of the rows around it."
    data = page.evaluate('data.levels')
    assert [len(level) for level in data] == sorted(len(level) for level in data) and len(data) == 2
    words = {r['domain'] for r in digits[1].records}
    finest = data[-1]
    assert sum(any(w in r['name'] for w in words) for r in finest) >= len(finest) * .6, finest
    assert page.evaluate("labels('black', 'white')") >= 5
    page.uncheck('#named')
    page.evaluate('labels = () => { throw Error("drawn") }; draw()')


def test_a_rectangle_selects_rows_to_save(page, digits, tmp_path):
    box = page.locator('#map').bounding_box()
    wanted = [i for i, d in enumerate(digits[1].domains) if d == digits[1].domains[0]]
    spots = np.array([page.evaluate('i => place(i)', i) for i in wanted])
    (left, top), (right, bottom) = spots.min(0) - 3, spots.max(0) + 3
    inside = page.evaluate("""([l, t, r, b]) => [...data.x.keys()].filter(i => {
      const [x, y] = place(i);
      return x >= l && x <= r && y >= t && y <= b;
    })""", [*map(float, (left, top, right, bottom))])
    page.keyboard.down('Shift')
    page.mouse.move(box['x'] + left, box['y'] + top)
    page.mouse.down()
    page.mouse.move(box['x'] + right, box['y'] + bottom, steps=3)
    page.mouse.up()
    page.keyboard.up('Shift')
    assert page.inner_text('#many') == f'{len(inside)} selected' and {*wanted} <= {*inside}
    assert page.locator('#rows tr').count() == len(inside) == page.locator('#rows .thumb').count()
    assert page.inner_text('#heads').split() == ['row', 'text', 'domain', 'parity', 'held_out']
    with page.expect_download() as waiting: page.click('#save')
    waiting.value.save_as(tmp_path/'chosen.jsonl')
    saved = [json.loads(line) for line in (tmp_path/'chosen.jsonl').read_text().splitlines()]
    assert [r['row'] - 1 for r in saved] == inside
    for r in saved:
        own = digits[1].records[r['row'] - 1]
        assert (r['image'], r['domain'], r['held_out']) == (own['image'], own['domain'], own['split'] == 'val')
    page.click('#close')
    assert page.locator('#chosen').is_hidden()


def test_held_out_rows_scores_and_pictures(page, digits):
    assert '○ held out (40)' in page.inner_text('#legend')
    cells = [[*map(str.strip, line.split('\t'))] for line in page.inner_text('#scores').splitlines()]
    assert cells == [['', 'image', 'pixels'], ['V-measure', '0.500', '0.250'], ['neighbour share', '', '0.750']]
    page.evaluate('show(7)')
    assert digits[1].records[7]['text'].split(' / ')[0] in page.inner_text('#tip')
    place = page.evaluate("getComputedStyle(document.querySelector('#tip .thumb')).backgroundPosition")
    columns = page.evaluate('data.sheet.columns')
    assert place == f'{-64 * (7 % columns)}px {-64 * (7 // columns)}px'
    folder = os.environ.get('MMJEPA_SCREENSHOTS')
    if folder: page.screenshot(path=Path(folder)/'map_page.png')


def test_a_hundred_thousand_points(chromium, tmp_path):
    "Under 60 MB with texts and thumbnails; all are drawn at every zoom, and found. `-s` shows how long a draw takes."
    n, rng = 100_000, np.random.default_rng(0)
    kinds = rng.integers(12, size=n)
    xy = (rng.normal(size=(12, 2))[kinds] * 5 + rng.normal(size=(n, 2))).astype(np.float32)
    records = [{'text': f'a picture of thing-{k:02} number {i:06}, with a caption as long as people write them',
                'image': f'images/{i // 1000:03}/{i:06}.jpg'} for i, k in enumerate(kinds)]
    noise = noisy_sheet(n)
    page_text = map_page(xy, {'kind': kinds.tolist()}, EmbeddingTable(xy, records, tmp_path), pictures=noise)
    (tmp_path/'large.html').write_text(page_text)
    assert (tmp_path/'large.html').stat().st_size < 60e6
    window = opened(chromium, tmp_path/'large.html')
    took = window.evaluate("""() => [1, 3, 20].map(z => {
      zoom = z;
      const start = performance.now();
      for (let k = 0; k < 5; k++) draw();
      return (performance.now() - start) / 5;
    })""")
    print('milliseconds a draw at zoom 1, 3, 20:', took)
    window.evaluate('named.checked = false; zoom = 1; draw()')
    inks = window.evaluate("""() => {
      const {data: bytes} = pen.getImageData(0, 0, canvas.width, canvas.height);
      return [...new Set(new Uint32Array(bytes.buffer))].length;
    }""")
    assert inks == 11, 'ten colours, and nothing between the dots'
    x, y = window.evaluate('place(5)')
    window.mouse.move(x, y)
    window.wait_for_function('at >= 0')
    window.fill('#find', 'thing-07')
    assert window.inner_text('#count') == f'{(kinds == 7).sum():,} of 100,000'
    window.close()
    assert not window.wrong, window.wrong


def noisy_sheet(n):
    "Thumbnails of the size that so many have, of noise that JPEG makes as little of as of photographs."
    import base64
    import io

    from PIL import Image
    columns = int(np.ceil(np.sqrt(n)))
    small = np.random.default_rng(1).integers(256, size=(columns * 4, columns * 4, 3), dtype=np.uint8)
    large = Image.fromarray(small).resize((columns * 16,) * 2, Image.Resampling.BILINEAR)
    large.save(f := io.BytesIO(), 'JPEG', quality=85)
    url = f'data:image/jpeg;base64,{base64.b64encode(f.getvalue()).decode()}'
    return PictureSheet(url, 16, columns, tiles=[*range(n)])
