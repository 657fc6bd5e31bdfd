"""Builds the package from settings.ini, the file that nbdev reads too."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

# Any key `<name>_requirements` is the extra `<name>`.
suffix = '_requirements'
extras = {k.removesuffix(suffix): v.split() for k, v in cfg.items() if k.endswith(suffix)}
minors = range(int(cfg['min_python'].split('.')[1]), int(cfg['max_python'].split('.')[1]) + 1)
readme = here/'README.md'


def absolute(text):
    "The README for the package index, which has none of its files: links lead to this version in the repository."
    def link(m): return f"{m[1]}{cfg['git_url']}/{'raw' if m[1][0] == '!' else 'blob'}/v{cfg['version']}/{m[2]}"
    return re.sub(r'(!?\[[^\]]*\]\()(?![a-z]+:|#)([^)\s]+)', link, text)


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=absolute(readme.read_text(encoding='utf-8')) if readme.exists() else '',
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    project_urls={
        'Documentation': cfg['doc_host'] + cfg['doc_baseurl'],
        'Changelog': f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md",
    },
    license=cfg['license'].upper(),
    keywords=cfg['keywords'].split(),
    classifiers=[
        'Development Status :: 3 - Alpha',
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        *(f'Programming Language :: Python :: 3.{m}' for m in minors),
    ],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg['lib_path'], f"{cfg['lib_path']}.*"]),
    package_data={cfg['lib_path']: ['vl/cpp/*', 'models/*/*']},
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
