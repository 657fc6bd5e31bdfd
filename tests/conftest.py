import os
import signal

import pytest

# two workers run at a time (pyproject.toml), and many tests start processes: with more than one thread in each they
# would compete for the cores
os.environ.setdefault('OMP_NUM_THREADS', '1')
# a shell that starts them in the background has Ctrl-C ignored, by all that they start as well
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='run the tests that take many minutes as well')

def pytest_configure(config): config.addinivalue_line('markers', 'slow: takes many minutes; runs with --slow')

def pytest_collection_modifyitems(config, items):
    if config.getoption('--slow'): return
    for item in items:
        if 'slow' in item.keywords: item.add_marker(pytest.mark.skip(reason='takes many minutes; run pytest --slow'))
