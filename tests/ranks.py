"Run a function on several gloo ranks of this machine."
import os, tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from forked import as_launched, free_port, server


def _rank(rank, world, port, folder, f, args): # `start_processes` gives them by position
    os.environ.update(ACCELERATE_USE_CPU='1', CUDA_VISIBLE_DEVICES='', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
                      RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    as_launched()
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=world)
    try: torch.save(f(rank, world, *args), Path(folder)/f'{rank}.pt')
    finally: dist.destroy_process_group()


def on_ranks(f, world, *args):
    "Results of `f(rank, world, *args)` from each rank; `f` belongs to a module that a new process can import."
    with tempfile.TemporaryDirectory() as folder:
        server()
        mp.start_processes(_rank, (world, free_port(), folder, f, args), nprocs=world, start_method='forkserver')
        return [torch.load(Path(folder)/f'{r}.pt', weights_only=True) for r in range(world)]
