"""Processes that find torch loaded: forked from a server that imported what most of them need, and computed nothing.

A fresh interpreter spends seconds on `import torch, timm`, over and over. What a process does is the same as with
`python -m`: a process of its own, with its own state, arguments, environment, output, exit status and signals.
"""
import multiprocessing as mp
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

# no command, since each is loaded as `__main__`
LOADED = ['torch', 'timm', 'accelerate', 'torchdata.stateful_dataloader', 'pandas', 'seaborn',
          'mmjepa.encoders', 'mmjepa.training', 'mmjepa.plots']

STREAMS = 'stdout', 'stderr'


def server():
    "Multiprocessing by that server, which starts with the first process."
    context = mp.get_context('forkserver')
    context.set_forkserver_preload(LOADED)
    return context


def as_launched():
    "Let workers of this process start as they do where a shell started it."
    mp.set_start_method('fork', force=True)


def _main(out, env, module, runs, alive):  # what it starts inherits `alive`, as it would a pipe of its output
    as_launched()
    os.environ.update(env)
    if 'CWD' in env: os.chdir(env['CWD'])
    for number, name in enumerate(STREAMS, 1): os.dup2(os.open(out/name, os.O_WRONLY | os.O_APPEND), number)
    for args in runs:
        sys.argv[1:] = args
        runpy.run_module(module, run_name='__main__', alter_sys=True)


def start(module, *runs, **env):
    """A running process: `python -m module *args` for each list of `runs`, as long as none of them fails, in the folder
    `CWD`, if there is one. What it writes is in its folder `out`."""
    out = Path(tempfile.mkdtemp())
    for name in STREAMS: (out/name).touch()
    words = [[str(a) for a in args] for args in runs]
    ended, alive = server().Pipe(duplex=False)
    process = server().Process(target=_main, args=(out, env, module, words, alive))
    process.start()
    alive.close()
    process.out, process.ended = out, ended
    return process


def finish(process, timeout=300):
    "The end of a process and of its workers, as `subprocess.run` tells it."
    process.join(timeout)
    late = not process.ended.poll(timeout)
    if process.is_alive():
        process.kill()
        process.join()
    process.ended.close()
    written = {name: (process.out/name).read_text(encoding='utf-8') for name in STREAMS}
    done = subprocess.CompletedProcess(process.name, process.exitcode, **written)
    shutil.rmtree(process.out)
    assert not late, done
    return done


def command(module, *args, **env):
    "`python -m module *args`, to its end."
    return finish(start(module, args, **env))


class Popen:
    "`start` in the words of `subprocess.Popen`, with one output for both streams."
    def __init__(self, module, *args, **env): self.process = start(module, args, **env)
    pid = property(lambda self: self.process.pid)
    returncode = property(lambda self: self.process.exitcode)
    def poll(self): return self.process.exitcode
    def send_signal(self, number): os.kill(self.process.pid, number)
    def communicate(self, timeout=300):
        done = finish(self.process, timeout)
        return done.stdout + done.stderr, None


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def launch(module, *args, ranks=2, **env):
    "The same on several ranks, with the environment that `torch.distributed.run` gives to each; one result a rank."
    world = dict(WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), MASTER_ADDR='127.0.0.1',
                 MASTER_PORT=str(free_port()))
    started = [start(module, args, **env, **world, RANK=str(r), LOCAL_RANK=str(r)) for r in range(ranks)]
    return [finish(p) for p in started]
