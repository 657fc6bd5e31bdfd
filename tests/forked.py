"""Processes that find torch loaded: forked from a server that has imported what most of them need, and nothing that they compute with.

A fresh interpreter spends seconds on `import torch, timm`, over and over. What a process does is the same as with `python -m`: a process of its own, with its own
state, arguments, environment, output, exit status and signals.
"""
import multiprocessing as mp
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

LOADED = ['torch', 'timm', 'accelerate', 'torchdata.stateful_dataloader', 'pandas', 'seaborn', 'mmjepa.encoders', 'mmjepa.training', 'mmjepa.plots']  # no command, since each is loaded as `__main__`


def server():
    "Multiprocessing by that server, which starts with the first process."
    context = mp.get_context('forkserver')
    context.set_forkserver_preload(LOADED)
    return context


def as_launched():
    "Let workers of this process start as they do where a shell started it."
    mp.set_start_method('fork', force=True)


def _main(out, env, module, runs):
    as_launched()
    os.environ.update(env)
    for number, path in enumerate((out/'stdout', out/'stderr'), 1): os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    for args in runs:
        sys.argv[1:] = args
        runpy.run_module(module, run_name='__main__', alter_sys=True)


def start(module, *runs, **env):
    "A running process: `python -m module *args` for each list of `runs`, as long as none of them fails. What it writes is in its folder `out`."
    out = Path(tempfile.mkdtemp())
    for name in ('stdout', 'stderr'): (out/name).touch()
    process = server().Process(target=_main, args=(out, env, module, [[*map(str, args)] for args in runs]))
    process.start()
    process.out = out
    return process


def finish(process, timeout=300):
    "The end of a process, as `subprocess.run` tells it."
    process.join(timeout)
    if late := process.is_alive(): process.kill(); process.join()
    done = subprocess.CompletedProcess(process.name, process.exitcode, *((process.out/name).read_text(encoding='utf-8') for name in ('stdout', 'stderr')))
    for name in ('stdout', 'stderr'): (process.out/name).unlink()
    process.out.rmdir()
    assert not late, done
    return done


def command(module, *args, **env):
    "`python -m module *args`, to its end."
    return finish(start(module, args, **env))


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def launch(module, *args, ranks=2, **env):
    "The same on several ranks, with the environment that `torch.distributed.run` gives to each; one result a rank."
    env = {**env, 'WORLD_SIZE': str(ranks), 'LOCAL_WORLD_SIZE': str(ranks), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    return [finish(p) for p in [start(module, args, **env, RANK=str(r), LOCAL_RANK=str(r)) for r in range(ranks)]]
