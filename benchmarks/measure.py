"""What the benchmarks share: clocks, memory, fresh processes, and how ratios are told."""
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

CUDA = torch.cuda.is_available()


def machine() -> str:
    "Processor and threads."
    lines = Path('/proc/cpuinfo').read_text().splitlines() if Path('/proc/cpuinfo').exists() else []
    name = next((x.split(':')[1].strip() for x in lines if x.startswith('model name')), platform.processor())
    return f'{name}, {torch.get_num_threads()} threads, torch {torch.__version__}'


def seconds(
    f: Callable, # what is timed, with no arguments
    clock: Callable = time.perf_counter, # or `time.process_time`
) -> float:
    "Time of one call, until the GPU is done as well."
    start = clock()
    f()
    if CUDA: torch.cuda.synchronize()
    return clock() - start


def in_turn(
    variants: dict[str, Callable], # by name
    rounds: int, # timed calls of each
    warm: int = 1, # rounds before those, not counted
    *,
    clock: Callable[[Callable], float] = seconds, # what is kept of a call
) -> dict[str, list]: # one value a round
    "Time the variants one after the other in each round, so that a slow moment of the machine hits all."
    times = {name: [] for name in variants}
    for i in range(warm + rounds):
        for name, f in variants.items():
            found = clock(f)
            if i >= warm: times[name].append(found)
    return times


def ratios(over: list[float], under: list[float]) -> list[float]:
    "Of the values of each round."
    return [a / b for a, b in zip(over, under)]


def spread(values: list[float]) -> str:
    "Median, least and largest."
    return f'{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})'


def resident(field: str) -> float:
    "MiB of this process now (`VmRSS`) or at its highest (`VmHWM`)."
    line = next(x for x in Path('/proc/self/status').read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def growth(f: Callable) -> float:
    "MiB by which memory grows in one call, at its highest: what PyTorch's allocator had in use, or the resident set."
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = f() # what is returned counts: it lives until the highest value is read
        found = (torch.cuda.max_memory_allocated() - before) / 2**20
    else:
        Path('/proc/self/clear_refs').write_text('5') # forget the highest value so far
        before = resident('VmRSS')
        kept = f()
        found = resident('VmHWM') - before
    del kept
    return found


def fresh(
    file: str, # a benchmark that prints one number with these flags
    **flags, # by name
) -> float:
    "What a fresh process prints."
    command = [sys.executable, file, *(word for name, value in flags.items() for word in (f'--{name}', str(value)))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def difference(found, exact) -> float:
    "The largest relative error of several tensors, each in its norm."
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, exact))
