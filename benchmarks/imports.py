"""What `import mmjepa.label.lejepa` costs beside `import torch, timm`: `python benchmarks/imports.py`.

Each statement runs in fresh processes, in turn, so that a slow moment of the machine hits both; medians are
compared.
"""
import statistics
import subprocess
import sys
from functools import partial

from fastcore.script import call_parse

from measure import in_turn, spread

BASE = 'import torch, timm'
TIMED = 'import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)'


def seconds(statement: str) -> float:
    "Time of one import in a fresh process, the interpreter's own start not counted."
    command = [sys.executable, '-c', TIMED.format(statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


@call_parse
def main(
    module: str = 'mmjepa.label.lejepa', # what to import
    repeats: int = 7,   # fresh processes for each of the two statements
    limit: float = 1.3, # the ratio that should not be exceeded
):
    "Median time of both imports and their ratio."
    statements = {s: partial(seconds, s) for s in (BASE, f'import {module}')}
    times = in_turn(statements, repeats, clock=lambda f: f()) # the first round fills the disk cache and writes bytecode
    for s, t in times.items(): print(f'{s:<32} {spread(t)} s, {repeats} processes')
    base, ours = map(statistics.median, times.values())
    ratio = ours / base
    print(f'ratio {ratio:.2f}, limit {limit}: {"kept" if ratio <= limit else "EXCEEDED"}')
