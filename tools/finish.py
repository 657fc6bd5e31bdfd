"""Finish a rendered site, and check it. Quarto calls this after each render (`post-render` of _quarto.yml).

Quarto's pages ask other servers for scripts. Here MathJax, which `npm install mathjax@3.2.2` has put into
node_modules, goes beside the pages; what only widgets would need is taken out, and the version is filled in. Then every
link must lead to a page, a picture or a heading that is there, and nothing may come from elsewhere.
`python tools/finish.py _docs` does it again.
"""
import os
import re
import shutil
import sys
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
VERSION = '%VERSION%'  # in the footer of _quarto.yml
MATHJAX = ROOT/'node_modules/mathjax/es5'

# Quarto adds RequireJS and jQuery to pages with tables of pandas, in case that widgets want them; there are none.
_WIDGETS = re.compile(r'<script[^>]+src="https?://[^"]*/(?:require|jquery|polyfill)[^"]*"[^>]*>\s*</script>\s*')
_JQUERY = re.compile(r'<script[^>]*>\s*define\(.jquery.,.*?</script>\s*', re.S)
_MATHJAX = re.compile(r'(<script[^>]+src=")[^"]*mathjax[^"]*/?(tex-[\w-]+\.js)"', re.I)
_FONTS = re.compile(r'@import\s*(?:url\()?["\']?https?://fonts\.[^;]*;')


def settings():
    "The section of settings.ini."
    parser = ConfigParser(delimiters=['='], interpolation=None)
    parser.read(ROOT/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


def finished(
    html: str,     # a page as Quarto rendered it
    to_root: str,  # from the page's folder to that of the site, such as '../'
    version: str,  # of the library
) -> str:          # the same page, with scripts of its own alone
    "`html` without scripts of other servers, MathJax from the site."
    html = _JQUERY.sub('', _WIDGETS.sub('', html))
    html = _MATHJAX.sub(rf'\g<1>{to_root}mathjax/\g<2>"', html)
    return html.replace(VERSION, version)


def finish(site: Path, mathjax: Path | None, version: str):
    "Change all pages and styles of a rendered site in place."
    if mathjax and site.is_dir(): shutil.copytree(mathjax, site/'mathjax', dirs_exist_ok=True)
    for page in site.rglob('*.html'):
        to_root = '../' * (len(page.relative_to(site).parts) - 1)
        page.write_text(finished(page.read_text(encoding='utf-8'), to_root, version), encoding='utf-8')
    for sheet in site.rglob('*.css'):
        sheet.write_text(_FONTS.sub('', sheet.read_text(encoding='utf-8')), encoding='utf-8')


class Page(HTMLParser):
    "What a page has to be linked to, and what it links to."
    LOADED = {'script': 'src', 'img': 'src', 'iframe': 'src', 'source': 'src', 'video': 'src', 'audio': 'src'}

    def __init__(self, html: str):
        super().__init__()
        self.anchors, self.links, self.loads = set(), [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = {k: v or '' for k, v in attrs}
        self.anchors |= {attrs[k] for k in ('id', 'name') if k in attrs}
        if tag == 'a' and 'href' in attrs: self.links.append(attrs['href'])
        sheet = tag == 'link' and attrs.get('rel', '') in ('stylesheet', 'preload', 'icon', 'prefetch')
        key = 'href' if sheet else self.LOADED.get(tag)
        if key and attrs.get(key): self.loads.append(attrs[key])


def _outside(url: str) -> bool: return bool(urlsplit(url).scheme or urlsplit(url).netloc)


def faults(
    site: Path,  # a folder of pages
    own: str,    # address of the site: links that begin so are links to its pages
) -> list:       # a line each
    "What is wrong with the links of a site, and what it asks other servers for."
    files = [p for p in sorted(site.rglob('*.html')) if 'mathjax' not in p.parts]
    pages = {p.resolve(): Page(p.read_text(encoding='utf-8')) for p in files}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        outside = [u for u in page.loads if _outside(u) and not u.startswith('data:')]
        found += [f'{name}: asks for {u}' for u in outside]
        for url in [*page.links, *(u for u in page.loads if not _outside(u))]:
            url = '/' + url[len(own):].lstrip('/') if url.startswith(own) else url
            if _outside(url) or url in ('', '#'): continue
            parts = urlsplit(url)
            base = site.resolve() if parts.path.startswith('/') else path.parent
            target = (base/unquote(parts.path).lstrip('/')).resolve() if parts.path else path
            if target.is_dir(): target = target/'index.html'
            if not target.exists(): found.append(f'{name}: {url} leads nowhere')
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f'{name}: {url} has no such place')
    return found


def main(site: str = '') -> int:  # status of the process
    cfg = settings()
    whole = bool(site or os.environ.get('QUARTO_PROJECT_RENDER_ALL'))  # not a page of a preview, nor the README
    folder = Path(site or os.environ.get('QUARTO_PROJECT_OUTPUT_DIR', cfg['doc_path']))
    if whole and not (MATHJAX.is_dir() or (folder/'mathjax').is_dir()):
        print(f'{MATHJAX} is missing: npm install --no-save mathjax@3.2.2', file=sys.stderr)
        return 1
    finish(folder, MATHJAX if MATHJAX.is_dir() else None, cfg['version'])
    found = faults(folder, cfg['doc_host'] + cfg['doc_baseurl']) if whole else []
    print('\n'.join(found) or f'{len(list(folder.rglob("*.html")))} pages, no fault')
    return int(bool(found))


if __name__ == '__main__': sys.exit(main(*sys.argv[1:]))
