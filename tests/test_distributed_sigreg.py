"""SIGReg on two processes that share a batch equals SIGReg on one process that holds it all."""
import datetime
import multiprocessing
import traceback

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing import assert_close

from mmjepa.core import UserError
from mmjepa.sigreg import SIGReg, sigreg_statistic

N, D_IN, D, K = 30, 5, 4, 16
SHARES = 15, 22, 29, 30  # rows of rank 0; the rest are rank 1's


def model_and_data():
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(D_IN, D).double()
    with torch.no_grad():
        for p in model.parameters(): p.copy_(torch.randn(p.shape, generator=g))
    return model, torch.randn(N, D_IN, generator=g, dtype=torch.double)**3


def value_and_gradients(model, x):
    "The model's own parameters are named the same with DDP around it."
    value = SIGReg(num_slices=K)(model(x))
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in model.parameters())]


def bad_numbers(rank):
    "Numbers that are not finite on rank 1 alone; both ranks must hear of it, or one would wait for ever."
    z = torch.randn(6, D)
    if rank == 1: z[2, 1] = float('nan')
    with pytest.raises(UserError, match=f'not finite in this process: {rank} of 6 rows'):
        sigreg_statistic(z, torch.eye(D))


def too_few(rank):
    "One row in all, then one row on each rank, which is enough."
    with pytest.raises(UserError, match='1 rows over all processes'):
        sigreg_statistic(torch.randn(1 - rank, D), torch.eye(D))
    sigreg_statistic(torch.randn(1, D), torch.eye(D))


def work(rank, init, results):
    "One rank: its rows through DDP, which averages the gradients."
    try:
        torch.set_num_threads(1)
        dist.init_process_group('gloo', init_method=init, rank=rank, world_size=2,
                                timeout=datetime.timedelta(seconds=60))
        found = {}
        for share in SHARES:
            model, x = model_and_data()
            found[share] = value_and_gradients(nn.parallel.DistributedDataParallel(model),
                                               x[:share] if rank == 0 else x[share:])
        bad_numbers(rank)
        too_few(rank)
        results.put((rank, {share: [t.numpy() for t in ts] for share, ts in found.items()}))
        dist.destroy_process_group()
    except BaseException: results.put((rank, traceback.format_exc()))


def test_two_ranks_equal_one_process(tmp_path):
    spawn = multiprocessing.get_context('spawn')
    results = spawn.Queue()
    ranks = [spawn.Process(target=work, args=(r, f'file://{tmp_path}/store', results)) for r in range(2)]
    for p in ranks: p.start()
    found = dict(results.get(timeout=180) for _ in ranks)
    for p in ranks: p.join(60)
    expected = value_and_gradients(*model_and_data())
    for rank in range(2):
        assert not isinstance(found[rank], str), found[rank]
        for share in SHARES:
            assert_close([torch.as_tensor(t) for t in found[rank][share]], expected,
                         msg=f'{share} + {N - share} rows: {{}}'.format)
