"""Fetch what runs the page "Draw a digit" from the npm registry: `python tools/onnxruntime_web.py [FOLDER]`."""
import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent/'nbs/draw/ort'
PACKAGE = 'onnxruntime-web@1.30.0'  # MIT
SHA512 = 'q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=='
FILES = 'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'  # the second has 14 MB, 4 MB as it is sent


def there(
    folder: Path = FOLDER,  # where the files belong
) -> bool:
    "Whether both files are of the version that is wanted."
    version = folder/'version.txt'
    return version.is_file() and version.read_text() == PACKAGE and all((folder/f).is_file() for f in FILES)


def fetch(
    folder: Path = FOLDER,  # where the files go; made
):
    "Fetch the package by npm, check it, and keep two of its files."
    if not shutil.which('npm'): raise SystemExit('npm is not installed; it fetches what runs the page')
    with tempfile.TemporaryDirectory() as temp:
        done = subprocess.run(['npm', 'pack', PACKAGE, '--silent', '--pack-destination', temp], capture_output=True,
                              text=True, stdin=subprocess.DEVNULL, cwd=temp)
        if done.returncode: raise SystemExit(f'npm cannot fetch {PACKAGE}: {done.stderr.strip()[-300:]}')
        archive = next(Path(temp).glob('*.tgz'))
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != SHA512: raise SystemExit(f'{PACKAGE} has SHA-512 {digest}; expected {SHA512}')
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            for name in FILES: (folder/name).write_bytes(tar.extractfile(f'package/dist/{name}').read())
    (folder/'version.txt').write_text(PACKAGE)


if __name__ == '__main__':
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    if not there(target): fetch(target)
    print(f'{target}: {PACKAGE}')
