"Programs that want to pass and should not, each by its own way; and odd ones that are right."
import pytest

from mmjepa.core import UserError
from mmjepa.sandbox.checks import run_checked
from mmjepa.sandbox.programs import refusal

contained = pytest.mark.skipif(bool(refusal()), reason=f'no containment: {refusal()}')

CHECKS = '''METADATA = {}

def check(candidate):
    import math, random
    assert candidate([3, 1, 2]) == [1, 2, 3], "sorts three"
    assert candidate([]) == []
    assert candidate([2, 2, -1]) == [-1, 2, 2]
    assert abs(sum(candidate([.5, .25])) - .75) < 1e-6
'''

def programs(text):
    "Programs by the headings above them."
    parts = text.split('\n### ')[1:]
    return dict(part.split('\n', 1) for part in parts)


CHEATS = programs(r'''
### always equal
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def f(x): return Equal()
### a list that is always equal
class Equal(list):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def f(x): return Equal([0])
### an int that is always equal
class Equal(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def f(x): return Equal(1)
### a float that is always equal
class Equal(float):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def f(x): return [Equal(1.)]
### a list of such
class Equal(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def f(x): return [Equal(7) for _ in x]
### a wrong class
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
Equal.__class__ = list
def f(x): return Equal()
### a property as class
class A:
    __class__ = property(lambda self: list)
    def __iter__(self): return iter([])
    def __eq__(self, o): return True
def f(x): return A()
### all operators
class A(float):
    def __eq__(self, o): return True
    __lt__ = __le__ = __eq__
    def __abs__(self): return self
    def __sub__(self, o): return self
def f(x): return A(9)
### a mock
from unittest.mock import MagicMock, ANY
def f(x): return ANY
### a generator
def f(x): yield from sorted(x)
### patches builtins
import builtins
builtins.sorted = builtins.sum = builtins.abs = builtins.list = lambda *a: 0
builtins.AssertionError = ValueError
builtins.__import__ = None
def f(x): return 0
### patches isinstance and len
import builtins
builtins.isinstance = lambda *a: True
builtins.len = lambda x: 0
def f(x): return x
### patches json
import json
json.dumps = lambda x: "{}"
json.loads = lambda x: [[], {}]
def f(x): return []
### defines check
def check(candidate): pass
def f(x): return x
### defines candidate
candidate = sorted
def f(x): return None
### replaces check in the frames
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        frame.f_globals["check"] = lambda c: 0
        frame = frame.f_back
    return x
### a trace function
import sys
def t(frame, event, arg):
    frame.f_trace_opcodes = True
    return t
sys.settrace(t); sys.setprofile(t)
def f(x): return x
### an excepthook
import sys
sys.excepthook = lambda *a: __import__("os")._exit(0)
def f(x): 1/0
### an error that means success
import builtins
class Ok(AssertionError):
    def __str__(self): return "passed"
def f(x): raise Ok
### an error that ends loops
def f(x): raise StopIteration
### exit
exit()
### sys.exit in a call
import sys
def f(x): sys.exit(0)
### os._exit
import os
os._exit(0)
### os._exit in a call
import os
def f(x): os._exit(0)
### SystemExit
raise SystemExit
### KeyboardInterrupt
def f(x): raise KeyboardInterrupt
### GeneratorExit
def f(x): raise GeneratorExit
### atexit
import atexit, os
atexit.register(os._exit, 0)
def f(x): return x
### a finalizer
import os
class A:
    def __del__(self): os._exit(0)
a = A()
def f(x): return x
### a thread that ends it
import os, threading
threading.Timer(.01, os._exit, (0,)).start()
def f(x):
    import time; time.sleep(.5); return x
### execv
import os
os.execv("/bin/true", ["true"])
### execv in a call
import os
def f(x): os.execv("/bin/true", ["true"])
### runs again under -O
import os, sys
os.execv(sys.executable, [sys.executable, "-O", "program.py"])
### runs itself under -O in a call
import os, sys
def f(x): os.execv(sys.executable, [sys.executable, "-OO", "program.py"])
### closes all
import os
os.closerange(0, 64)
def f(x): return x
### says that all is well
import os
for fd in range(64):
    try: os.write(fd, b"{}\n" * 9)
    except OSError: pass
def f(x): return x
### says it in JSON
import os
for fd in range(3, 64):
    for _ in range(9):
        try: os.write(fd, b'{"value": true, "after": [[]]}\n')
        except OSError: pass
def f(x): return x
### nested without end
def f(x):
    y = []
    for _ in range(9 ** 5): y = [y]
    return y
### holds itself
def f(x):
    x.append(x)
    return x
### reads the checks
import glob, os
found = "".join(open(p, errors="replace").read() for p in glob.glob("*"))
print(found)
assert "sorts three" in found
def f(x): return sorted(x)
### reads its input
import sys, os
found = sys.stdin.read() + os.read(0, 9999).decode()
assert "sorts three" in found
def f(x): return sorted(x)
### rewinds its input
import os
found = b""
for fd in range(64):
    try:
        os.lseek(fd, 0, 0)
        found += os.read(fd, 9999)
    except OSError: pass
assert b"sorts three" in found
def f(x): return sorted(x)
### reads arguments and environment
import sys, os
assert "sorts three" in str((sys.argv, sys.orig_argv, os.environ))
def f(x): return sorted(x)
### looks through all objects
import gc
def text(o): return str(o) if isinstance(o, (dict, list, tuple)) else ""
assert "".join(reversed("eerht stros")) in "".join(map(text, gc.get_objects()))
def f(x): return sorted(x)
### looks through all frames
import sys
frame, found = sys._getframe(), ""
while frame:
    if frame.f_globals is not globals(): found += str(frame.f_locals.keys()) + str(frame.f_code.co_consts)
    frame = frame.f_back
assert "sorts " in found
def f(x): return sorted(x)
### reads its own process's memory
import os
assert os.path.getsize("/proc/self/mem") is not None
open("/proc/self/mem", "rb").read(1)
def f(x): return sorted(x)
### reads its parent's memory
import os
open(f"/proc/{os.getppid()}/mem", "rb")
def f(x): return sorted(x)
### reads its parent's files
import os
open(f"/proc/{os.getppid()}/fd/0").read()
def f(x): return sorted(x)
### traces its parent
import ctypes, os
c = ctypes.CDLL(None)
assert c.ptrace(16, os.getppid(), 0, 0) == 0
def f(x): return sorted(x)
### copies its parent's memory
import ctypes, os
c = ctypes.CDLL(None)
b = ctypes.create_string_buffer(16)
assert c.process_vm_readv(os.getppid(), b, 1, b, 1, 0) > 0
def f(x): return sorted(x)
### a fork that answers wrong
import os
if os.fork(): os._exit(0)
def f(x): return x
### a fork that stays
import os, time
if not os.fork(): time.sleep(60)
def f(x): return x
### modules for its parent
for name in ("math", "random", "fractions", "numpy"):
    open(f"{name}.py", "w").write("import os\nos._exit(0)")
def f(x): return x
### a module for numbers that come back
open("fractions.py", "w").write("import os\nos._exit(0)")
from decimal import Decimal
def f(x): return [Decimal(1)]
### interrupts its parent
import os, signal
def f(x):
    os.kill(os.getppid(), signal.SIGINT)
    return x
''')

KILLERS = programs(r'''
### kills its parent
import os
os.kill(os.getppid(), 9)
def f(x): return x
### kills its group
import os
os.killpg(0, 15)
def f(x): return x
### aborts
import os
def f(x): os.abort()
### a fault
import ctypes
def f(x): ctypes.string_at(0)
### stops its parent
import os, signal
os.kill(os.getppid(), signal.SIGSTOP)
def f(x): return x
### never answers
def f(x):
    while True: pass
### sleeps
import time
time.sleep(60)
''')

HONEST = programs(r'''
### plain
def f(x): return sorted(x)
### in place
def f(x):
    x.sort()
    return x
### prints a lot
def f(x):
    print("x" * 10**6)
    return sorted(x)
### names of ours
json = task = questions = answers = None
def to_plain(x): 1/0
def candidate(x): 1/0
def print(x): 1/0
def f(x): return sorted(x)
### a script
import sys
def f(x): return sorted(x)
if __name__ == "__main__": print(f(int(input())))
### a dataclass
from dataclasses import dataclass
@dataclass
class A:
    x: "list[int]"
def f(x): return sorted(A(x).x)
### a subclass
class L(list): pass
class F(float): pass
def f(x): return L(map(F, sorted(x)))
### numpy
import numpy as np
def f(x): return list(np.sort(np.array(x)))
### a thread that stays
import threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
def f(x): return sorted(x)
### no output
import os
os.close(1)
def f(x): return sorted(x)
### recursion
def f(x): return x and f([y for y in x[1:] if y < x[0]]) + [x[0]] + f([y for y in x[1:] if y >= x[0]])
''')


def outcome(program, checks=CHECKS, **options): return run_checked(program, 'f', checks, **{'timeout': 20., **options})


@contained
@pytest.mark.parametrize('name', CHEATS)
def test_cheats_do_not_pass(name):
    result = outcome(CHEATS[name])
    assert result.status in ('failed', 'killed') and result.exit_code, result


@contained
@pytest.mark.parametrize('name', KILLERS)
def test_what_kills_or_waits_is_no_pass(name):
    result = outcome(KILLERS[name], timeout=2.)
    assert result.status in ('killed', 'timeout'), result


@contained
@pytest.mark.parametrize('name', HONEST)
def test_what_is_right_passes(name):
    result = outcome(HONEST[name])
    assert result.status == 'passed', result


@contained
@pytest.mark.parametrize('check, program', [
    ('assert candidate(1) == True', 'def f(x): return 1'),
    ('assert candidate(1) == 1', 'def f(x): return True'),
    ('assert candidate(1) is None', 'def f(x): pass'),
    ('assert candidate(1) == (1, [2, {3: {4}}], None, "é", b"x", 1j)',
     'def f(x): return (x, [2, {3: {4}}], None, "é", b"x", 1j)'),
    ('assert abs(candidate(1) - 1 / 3) < 1e-6', 'def f(x): return x / 3'),
    ('assert candidate(1) == 1 / 3', 'from fractions import Fraction\ndef f(x): return x / 3'),
    ('assert candidate(x=1, y=2) == 3', 'def f(y, x): return x + y'),
    ('assert candidate(1) == 2 ** 20000', 'def f(x): return 2 ** 20000'),
    ('assert tuple(candidate([3, 4])) == (3, 4)', 'def f(x): return (y for y in x)'),
    ('assert list(candidate(3)) == [0, 1, 2] and candidate(3) == range(3)', 'def f(x): return range(x)'),
    ('x = [3, 1]\n    candidate(x)\n    assert x == [1, 3]', 'def f(x): x.sort()'),
    ('x, s = {}, {1}\n    candidate(x, s)\n    assert x == {1: 2} and s == set()',
     'def f(x, s):\n    x[1] = 2\n    s.clear()'),
    ('assert [candidate(0) for _ in range(3)] == [1, 2, 3]',
     'n = 0\ndef f(x):\n    global n\n    n += 1\n    return n'),
    ('try: candidate(0)\n    except ZeroDivisionError as e: assert "by zero" in str(e)\n    else: assert False',
     'def f(x): return 1 / x'),
    ('try: candidate(0)\n    except KeyError: pass\n    else: assert False',
     'class Odd(KeyError): pass\ndef f(x): raise Odd(x)'),
    ('assert candidate(float("inf")) == float("inf")', 'def f(x): return x'),
    ('assert candidate(helper(1)) == 2', 'def helper(x): return 7\ndef f(x): return x'),
    ('assert f(3) == candidate(3) == 3', 'def f(x): return x')])
def test_values_and_errors_cross(check, program):
    "Each passes as it would in one process, and does not if the function is another one."
    checks = f'def check(candidate):\n    {check}\n'
    helpers = 'def helper(x): return 2'
    assert outcome(program, checks, helpers=helpers).status == 'passed'
    assert outcome('def f(*a, **k): return "other"', checks, helpers=helpers).status == 'failed'


@contained
def test_helpers_are_the_tests_own():
    "A completion can't replace the function that says whether its answer is a root."
    helpers, checks = 'def poly(x): return x - 3', 'def check(f): assert abs(poly(f())) < 1e-4'
    assert outcome('def poly(x): return 0\ndef f(): return 5', checks, helpers=helpers).status == 'failed'
    assert outcome('def f(): return 3', checks, helpers=helpers).status == 'passed'


@contained
@pytest.mark.parametrize('program', ['', 'def g(x): return x', 'def f(', '\0', '\ud800', 'f = 1', '1/0', 'import x.y'])
def test_no_function_is_a_failure(program):
    assert outcome(program, 'def check(f): f(1)').status == 'failed'


@contained
def test_checks_that_ask_nothing_want_a_program():
    assert outcome('def f(x): return x', 'def check(f): pass').status == 'passed'
    assert outcome('def f(x) return x', 'def check(f): pass').status == 'failed'
    assert outcome('def f(x): return x', 'import sys\ndef check(f): sys.exit(0)').status == 'failed'


@contained
def test_what_cannot_be_checked_is_no_failure_of_the_program():
    for checks in ('x = 1', 'import nowhere\ndef check(f): pass', 'def check(f): f(print)'):
        with pytest.raises(UserError, match='the checks of f cannot be run'): outcome('def f(x): return x', checks)


@pytest.mark.skipif(bool(refusal('landlock')), reason=f'no containment by Landlock: {refusal("landlock")}')
def test_landlock():
    for tried, statuses in ((CHEATS, {'failed', 'killed'}), (HONEST, {'passed'})):
        for program in list(tried.values())[::4]: assert outcome(program, contained_by='landlock').status in statuses
