"""What `pip` makes of the project, and what an import brings along."""
import email
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tree import MODULES, ROOT, module_file, settings

SOURCES = 'setup.py', 'settings.ini', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'CHANGELOG.md'
# Imported where they are used, so that a part of the library costs no more than torch and timm do.
HEAVY = ('accelerate', 'IPython', 'matplotlib', 'nbdev', 'onnx', 'pandas', 'pydantic', 'scipy', 'seaborn', 'sklearn',
         'torchdata', 'transformers', 'umap', 'wandb', 'webdataset')


def run(*command, cwd):
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope='module')
def sdist(tmp_path_factory):
    "The source archive, made of a copy of the project without network."
    copy = tmp_path_factory.mktemp('source')
    for name in SOURCES: shutil.copy(ROOT/name, copy/name)
    shutil.copytree(ROOT/'mmjepa', copy/'mmjepa', ignore=shutil.ignore_patterns('__pycache__'))
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
        return {n: archive.read(n).decode() for n in archive.namelist()}


@pytest.fixture(scope='module')
def metadata(wheel):
    return email.message_from_string(next(v for n, v in wheel.items() if n.endswith('.dist-info/METADATA')))


def plain(requirement): return requirement.split(';')[0].replace(' ', '').replace('(', '').replace(')', '').lower()

def same(a, b):
    "Two lists of requirements, whatever the order of their bounds."
    def parts(r):
        name, bounds = re.fullmatch(r'([^<>=!~]*)(.*)', plain(r)).groups()
        return name.replace('_', '-'), sorted(bounds.split(','))
    return sorted(map(parts, a)) == sorted(map(parts, b))


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    ours = {n for n in wheel if '.dist-info/' not in n}
    files = [*(ROOT/'mmjepa').rglob('*.py'), *(ROOT/'mmjepa/vl/cpp').iterdir()]
    assert ours == {p.relative_to(ROOT).as_posix() for p in files}
    assert {module_file(m).relative_to(ROOT).as_posix() for m in MODULES} <= ours


def test_metadata_equals_the_settings(metadata):
    cfg = settings()
    assert metadata['Name'] == cfg['lib_name'] and metadata['Version'] == cfg['version']
    assert metadata['Requires-Python'] == f">={cfg['min_python']}"
    assert metadata['Summary'] == cfg['description'] and metadata['License'] == 'MIT'
    assert metadata['Description-Content-Type'] == 'text/markdown'
    assert '# mmjepa' in metadata.get_payload()


def test_requirements_equal_the_settings(metadata):
    cfg, every = settings(), metadata.get_all('Requires-Dist')
    assert same([r for r in every if 'extra ==' not in r], cfg['requirements'].split())
    for extra in ('dev', 'tensorboard', 'wandb'):
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
