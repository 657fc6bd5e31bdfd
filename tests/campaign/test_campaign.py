"""All bad inputs and all kills. One command, at most 20 minutes on two cores:

    pytest --slow -n 0 -s tests/campaign
"""
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import bad_inputs  # noqa: E402
import forked  # noqa: E402
import kills  # noqa: E402
from material import make  # noqa: E402


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    forked.LOADED += bad_inputs.LOADED
    return make(tmp_path_factory.mktemp('material'))


def tell(lines): print('\n' + '\n'.join(lines), flush=True)


@pytest.mark.slow
def test_bad_inputs(root, tmp_path):
    start = time.monotonic()
    done = bad_inputs.campaign(root, tmp_path)
    wrong = [c for c in done if c.wrong]
    tell([*bad_inputs.summary(done), f'{time.monotonic() - start:.0f} s'])
    for c in wrong:
        print(f'\n{c.kind}, {c.fault}: {"; ".join(c.wrong)}\n{c.module} {" ".join(map(str, c.args))}\n{c.said}')
    assert len(done) >= 300 and not wrong


@pytest.mark.slow
def test_kills(root, tmp_path):
    start = time.monotonic()
    table = kills.campaign(root, tmp_path)
    tell([*kills.summary(table), f'{time.monotonic() - start:.0f} s'])
    wrong = [w for row in table for w in row[3]]
    assert sum(row[1] for row in table) >= 100 and not wrong, '\n'.join(wrong)
