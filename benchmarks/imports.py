"""What `import mmjepa.label.lejepa` costs beside `import torch, timm`: `python benchmarks/imports.py`.

Each statement runs in fresh processes, in turn, so that a slow moment of the machine hits both; the medians are compared.
"""
import statistics
import subprocess
import sys

from fastcore.script import call_parse

BASE = 'import torch, timm'
TIMED = 'import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)'


def seconds(statement: str) -> float:
    "Time of one import in a fresh process, the interpreter's own start not counted."
    done = subprocess.run([sys.executable, '-c', TIMED.format(statement)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


@call_parse
def main(
    module: str = 'mmjepa.label.lejepa', # what to import
    repeats: int = 7,              # fresh processes for each of the two statements
    limit: float = 1.3,            # the ratio that should not be exceeded
):
    "Median time of both imports and their ratio."
    statements = BASE, f'import {module}'
    for s in statements: seconds(s)  # fills the disk cache and writes bytecode
    times = list(zip(*[[seconds(s) for s in statements] for _ in range(repeats)]))
    for s, t in zip(statements, times): print(f'{s:<24} median {statistics.median(t):.2f} s, {min(t):.2f} to {max(t):.2f} s, {repeats} processes')
    ratio = statistics.median(times[1]) / statistics.median(times[0])
    print(f'ratio {ratio:.2f}, limit {limit}: {"kept" if ratio <= limit else "EXCEEDED"}')
