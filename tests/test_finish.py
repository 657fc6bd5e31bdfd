"""What becomes of the pages that Quarto has rendered (tools/finish.py): nothing from other servers, no broken link."""
import subprocess
import sys

import finish
import pytest

from tree import ROOT, settings

HEAD = '''<html><head>
<link rel="stylesheet" href="{root}site_libs/style.css"><link rel="canonical" href="https://elsewhere.org/x.html">
<script src="https://cdnjs.cloudflare.com/ajax/libs/require.js/2.3.6/require.min.js" integrity="x"></script>
<script src="https://cdnjs.cloudflare.com/ajax/libs/jquery/3.5.1/jquery.min.js" data-relocate-top="true"></script>
<script type="application/javascript">define('jquery', [],function() {{return window.jQuery;}})</script>
<script src="https://cdnjs.cloudflare.com/polyfill/v3/polyfill.min.js?features=es6"></script>
<script src="{mathjax}" type="text/javascript"></script></head><body>
'''
OWN = settings()['doc_host'] + settings()['doc_baseurl']


@pytest.fixture
def site(tmp_path):
    "A small site as Quarto renders it."
    def write(name, body, mathjax, root=''):
        path = tmp_path/'site'/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEAD.format(root=root, mathjax=mathjax) + body + '</body></html>', encoding='utf-8')
    home = f'''<h2 id="start">Start</h2><a href="#start">a</a><a href="./data/set.html#names">b</a>
        <a href="data/">c</a><a href="{OWN}/data/set.html#names">d</a><a href="https://elsewhere.org">e</a>
        <a href="#">f</a><img src="one.png">
        <p>mmjepa {finish.VERSION}</p>'''
    write('index.html', home, 'https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-chtml.js')
    body = '<section id="names"><a href="../index.html#start">a</a></section>'
    write('data/set.html', body, '/mathjax/tex-chtml.js', '../')
    write('data/index.html', '<a href="/index.html">a</a>', '../mathjax/tex-chtml.js', '../')
    (tmp_path/'site/one.png').write_bytes(b'')
    (tmp_path/'site/site_libs').mkdir()
    (tmp_path/'site/site_libs/style.css').write_text('@import "https://fonts.googleapis.com/css2?family=X";a{b:c}')
    (tmp_path/'mathjax').mkdir()
    (tmp_path/'mathjax/tex-chtml.js').write_text('//')
    finish.finish(tmp_path/'site', tmp_path/'mathjax', '1.2.3')
    return tmp_path/'site'


def test_a_finished_site_asks_no_other_server(site):
    assert finish.faults(site, OWN) == []
    for name, root in (('index.html', ''), ('data/set.html', '../'), ('data/index.html', '../')):
        text = (site/name).read_text(encoding='utf-8')
        assert f'src="{root}mathjax/tex-chtml.js"' in text
        assert 'cloudflare' not in text and 'jsdelivr' not in text and 'jquery' not in text
    assert 'mmjepa 1.2.3' in (site/'index.html').read_text() and (site/'mathjax/tex-chtml.js').is_file()
    assert (site/'site_libs/style.css').read_text() == 'a{b:c}'


@pytest.mark.parametrize(('body', 'says'), [
    ('<a href="gone.html">x</a>', 'index.html: gone.html leads nowhere'),
    ('<a href="data/set.html#gone">x</a>', 'index.html: data/set.html#gone has no such place'),
    (f'<a href="{OWN}/gone.html">x</a>', 'index.html: /gone.html leads nowhere'),
    ('<img src="gone.png">', 'index.html: gone.png leads nowhere'),
    ('<script src="https://cdn.org/a.js"></script>', 'index.html: asks for https://cdn.org/a.js'),
    ('<link rel="stylesheet" href="https://fonts.org/a.css">', 'index.html: asks for https://fonts.org/a.css'),
])
def test_a_fault_is_named(site, body, says):
    page = site/'index.html'
    page.write_text(page.read_text(encoding='utf-8') + body, encoding='utf-8')
    assert finish.faults(site, OWN) == [says]


def test_the_render_fails_on_a_fault(site):
    "As Quarto calls it: status 1 is that of the whole build."
    def run(): return subprocess.run([sys.executable, ROOT/'tools/finish.py', site], capture_output=True, text=True)
    done = run()
    assert done.returncode == 0 and 'no fault' in done.stdout
    (site/'one.png').unlink()
    done = run()
    assert done.returncode == 1 and done.stdout == 'index.html: one.png leads nowhere\n'


def test_without_mathjax_it_says_what_to_do(tmp_path):
    if finish.MATHJAX.is_dir(): pytest.skip('MathJax is here')
    command = [sys.executable, ROOT/'tools/finish.py', tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and 'npm install --no-save mathjax@3.2.2' in done.stderr
