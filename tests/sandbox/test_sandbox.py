"Attacks on the sandbox, by the real thing: each does harm where nothing stops it, but little enough to hurt nobody."
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmjepa.sandbox import containment
from mmjepa.core import UserError
from mmjepa.sandbox.programs import refusal, run_program
from tree import ROOT


@pytest.fixture(params=['namespaces', 'landlock'])
def run(request):
    "`run_program` with one of the two mechanisms, where this machine has it."
    if why := refusal(request.param): pytest.skip(f'no containment by {request.param}: {why}')
    return lambda source, **limits: run_program(source, contained_by=request.param, **limits)


@pytest.fixture
def outside():
    "A folder that any user may write to."
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        (Path(folder)/'precious').write_text('data')
        os.chmod(Path(folder)/'precious', 0o666)
        yield Path(folder)


@pytest.fixture(autouse=True)
def nothing_is_left():
    "No folder of a program, and no process that this one would have to bury."
    def folders(): return {p.name for p in Path(tempfile.gettempdir()).glob(f'mmjepa-sandbox-{os.getpid()}-*')}
    def children():
        lists = [p.read_text().split() for p in Path('/proc/self/task').glob('*/children')]
        return {child for pids in lists for child in pids}
    before = folders(), children()
    yield
    assert folders() <= before[0] and children() <= before[1]


def running(marker):
    "Processes of this machine whose command line names `marker`."
    found = []
    for line in Path('/proc').glob('[0-9]*/cmdline'):
        try: found += [line] * (marker in line.read_bytes().decode(errors='replace'))
        except OSError: pass
    return found


def python(code, *args, **options):
    "The end of a process of Python that nothing contains."
    return subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True, **options)


def until(check, seconds=20):
    "Whether `check` comes true in time."
    end = time.monotonic() + seconds
    while not (done := check()) and time.monotonic() < end: time.sleep(.02)
    return bool(done)


# tries each of several acts and prints those that worked
TRY = '''
import ctypes, json, os, socket, sys
def tried(acts):
    for name, act in acts.items():
        try: act()
        except (OSError, ValueError): continue
        print('WORKED', name)
'''


# ---------------------------------------------------------------- what programs are for

def test_statuses(run):
    sources = ('print(1)', 'import sys; sys.exit(3)', '1/0', 'x =', 'import os; os.abort()')
    expected = [('passed', 0), ('failed', 3), ('failed', 1), ('failed', 1), ('killed', -signal.SIGABRT)]
    assert [(r.status, r.exit_code) for r in map(run, sources)] == expected
    assert run('1/0').last_line == 'ZeroDivisionError: division by zero'


def test_input_files_and_output(run):
    source = 'import sys\nprint(sys.stdin.read(), end="")\nopen("out", "wb").write(open("in", "rb").read()[::-1])'
    text, collect = 'a\nß€' * 50_000, ('out', 'in', 'absent')
    r = run(source, stdin=text, files={'in': bytes(range(256))}, collect=collect, output=1 << 20)
    assert (r.status, r.stderr) == ('passed', '')
    assert r.stdout == text and r.files == {'out': bytes(range(256))[::-1], 'in': bytes(range(256))}


def test_what_is_collected_is_a_file_of_the_program(run, outside):
    (outside/'secret').write_text('secret')
    r = run(f'''import os
os.symlink({str(outside/"secret")!r}, "a")
os.mkfifo("b")
os.mkdir("c")
open("d", "w").write("mine")''', collect=('a', 'b', 'c', 'd'))
    assert (r.status, r.files) == ('passed', {'d': b'mine'})


def test_packages_work(run):
    r = run('''import numpy as np, matplotlib.pyplot as plt
assert np.linalg.inv(np.eye(99)).sum() == 99
plt.plot([1, 2]); plt.savefig("a.png")''', collect=('a.png',), timeout=120)
    assert r.status == 'passed', r.stderr
    assert r.files['a.png'][:4] == b'\x89PNG'


def test_pipes_processes_and_temporary_files_work(run):
    r = run('''
import asyncio, multiprocessing, os, subprocess, sys, tempfile, threading
print(subprocess.run([sys.executable, '-c', 'print(2)'], capture_output=True, text=True, check=True).stdout.strip())
with tempfile.TemporaryDirectory() as d: open(d + '/x', 'w').write('y'); print(os.path.dirname(d) == os.getcwd())
async def f(): await asyncio.sleep(.01); return 5
print(asyncio.run(f()))
t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()
with multiprocessing.get_context('fork').Pipe()[0]: print('pipe')
open('/dev/null', 'w').write('x'); print(len(os.urandom(9)), len(open('/dev/urandom', 'rb').read(3)))''')
    assert r.stdout.split('\n') == ['2', 'True', '5', 'thread', 'pipe', '9 3', ''], r.stderr


def test_the_callers_habits_do_not_matter(run):
    "A mask that hides new files from other users, and ignored children."
    mask, chld = os.umask(0o077), signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try: r = run('open("f", "w").write("x"); print(open("program.py").read()[:4])')
    finally:
        os.umask(mask)
        signal.signal(signal.SIGCHLD, chld)
    assert (r.status, r.stdout) == ('passed', 'open\n'), r


def test_several_at_once(run):
    def source(i): return f'import os, time\nopen("f", "a").write("{i}"); time.sleep(.1); print(open("f").read())'
    with ThreadPoolExecutor(4) as pool: results = list(pool.map(run, map(source, range(8))))
    assert [r.stdout for r in results] == [f'{i}\n' for i in range(8)]


# ---------------------------------------------------------------- too much of everything

BOMB = '''
import os, time
for _ in range(9): # 512 processes, where nothing stops it
    try: os.fork()
    except BlockingIOError: pass
os.write(os.open('count', os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), b'.')
time.sleep(.5)'''


def test_fork_bomb(run):
    r = run(BOMB, processes=12, collect=('count',))
    assert r.status == 'passed' and 2 <= len(r.files['count']) <= 12
    alone = run('import os\ntry: os.fork()\nexcept BlockingIOError: print("none")', processes=1)
    assert alone.stdout == 'none\n'


def test_threads_count(run):
    r = run('''
import threading, time
try:
    for n in range(200): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
except RuntimeError: print(n)''', processes=12)
    assert int(r.stdout) == 11


DEAF = '''import signal, time
for s in range(1, 32):
    try: signal.signal(s, signal.SIG_IGN)
    except OSError: pass
time.sleep(60)'''

@pytest.mark.parametrize('source', ['while True: pass', DEAF])
def test_endless(run, source):
    r = run(source, timeout=.5)
    assert r.status == 'timeout' and .5 <= r.seconds < 20 and r.last_line == 'sandbox: still running after 0.5 s'


def test_hundred_gigabytes(run):
    "Most machines refuse a hundred at once by themselves, but not two."
    for size, limits in ((100, {}), (2, {'memory': 1 << 30})):
        r = run(f'x = bytearray({size} << 30)', **limits)
        assert (r.status, r.last_line) == ('failed', 'MemoryError')


def test_memory_of_all_processes_together(run):
    r = run('import os, time\nfor _ in range(3): os.fork()\nx = b"x" * (60 << 20)\ntime.sleep(20)', memory=200 << 20)
    assert r.status == 'killed' and r.last_line == 'sandbox: its processes use more than 209,715,200 bytes of memory'


def test_huge_output(run):
    r = run('''import sys
print("start")
for _ in range(500): print("x" * 99_999)
print("end"); print("error", file=sys.stderr)''', output=1000, timeout=60)
    assert r.status == 'passed' and len(r.stdout) < 1100 and r.stderr == 'error\n'
    assert r.stdout.startswith('start\nxxx') and r.stdout.endswith('xxx\nend\n')
    assert f'[{50_000_010 - 1000} bytes left out]' in r.stdout


def test_huge_file(run):
    r = run('''
n = 0
with open('big', 'wb', buffering=0) as f:
    try:
        while n < 200 << 20: n += f.write(bytes(1 << 20))
    except OSError as e: print(e.strerror, n)''', file_size=3 << 20)
    assert r.stdout in ('File too large 3145728\n', 'No space left on device 3145728\n'), r.stdout + r.stderr


def test_many_files(run):
    r = run('''
import time
n = 0
try:
    for i in range(100): n += open(str(i), 'wb').write(bytes(1 << 20))
    time.sleep(5)
except OSError as e: print(e.strerror, n <= 4 << 20)''', file_size=1 << 20)
    too_much = 'sandbox: its files take more than 4,194,304 bytes'
    assert r.stdout == 'No space left on device True\n' or r.last_line == too_much, r


def test_what_hides_is_deleted(run):
    "Locked folders, and one so deep that it has no path."
    r = run('''import os
os.mkdir("locked"); open("locked/x", "w"); os.mkdir("locked/in", 0o300)
for _ in range(600): os.mkdir("deeper"); os.chdir("deeper")
os.symlink("/", "root")''')
    assert r.status in ('passed', 'killed')


# ---------------------------------------------------------------- files outside

def test_writes_outside(run, outside):
    places = [str(outside), '/tmp', '/dev/shm', '/var/tmp', str(Path.home()), str(Path.cwd()), '/', '/etc', '/usr/lib',
              '/run', '/proc/self', '..', sys.prefix, os.path.dirname(os.__file__)]
    r = run(TRY + f'''
precious = {str(outside/"precious")!r}
for place in {places!r}:
    f = place + '/mmjepa-test-harm'
    tried({{'open ' + f: lambda: open(f, 'w'), 'mkdir ' + f: lambda: os.mkdir(f),
           'symlink ' + f: lambda: os.symlink('x', f), 'fifo ' + f: lambda: os.mkfifo(f)}})
os.symlink(precious, 'link'); open('mine', 'w').write('x')
tried({{'through a link': lambda: open('link', 'w'), 'append': lambda: open(precious, 'a'),
       'truncate': lambda: os.truncate(precious, 0), 'delete': lambda: os.unlink(precious),
       'rename out': lambda: os.rename('mine', precious), 'rename in': lambda: os.rename(precious, 'p'),
       'link out': lambda: os.link('mine', precious + '2'), 'link in': lambda: os.link(precious, 'p'),
       'open to truncate': lambda: os.open(precious, os.O_RDONLY | os.O_TRUNC),
       'mode': lambda: os.chmod(precious, 0), 'times': lambda: os.utime(precious, (1, 1)),
       'owner': lambda: os.chown(precious, os.getuid(), -1),
       'attribute': lambda: os.setxattr(precious, 'user.x', b'y'), 'read': lambda: open(precious).read()}})
print(sorted(os.listdir()))''')
    assert r.stdout == "['link', 'mine', 'program.py']\n", r.stdout + r.stderr
    kept = outside/'precious'
    assert os.listdir(outside) == ['precious'] and kept.read_text() == 'data' and kept.stat().st_mtime > 1
    for place in set(places) - {'..', '/proc/self'}:
        assert not os.path.isdir(place) or 'mmjepa-test-harm' not in os.listdir(place), place


def test_the_same_acts_do_harm_outside(outside):
    "The test above can fail."
    source = TRY + f'''
tried({{"write": lambda: open({str(outside/"harm")!r}, "w"),
       "times": lambda: os.utime({str(outside/"precious")!r}, (1, 1))}})'''
    done = python(source)
    assert done.stdout == 'WORKED write\nWORKED times\n' and (outside/'harm').exists()


# ---------------------------------------------------------------- the network

@pytest.fixture
def listeners(outside):
    "Sockets that anyone may talk to, by name."
    unix, letters = socket.AF_UNIX, socket.SOCK_DGRAM
    with (socket.create_server(('127.0.0.1', 0)) as tcp, socket.socket(type=letters) as udp,
          socket.socket(unix) as stream, socket.socket(unix) as abstract, socket.socket(unix, letters) as mail):
        udp.bind(('127.0.0.1', 0))
        stream.bind(str(outside/'unix'))
        abstract.bind(f'\0mmjepa-{os.getpid()}')
        mail.bind(str(outside/'mail'))
        for name in ('unix', 'mail'): os.chmod(outside/name, 0o777)
        for s in (stream, abstract): s.listen()
        yield {'tcp': tcp, 'udp': udp, 'unix': stream, 'abstract': abstract, 'pair': mail}


CONNECT = '''
def unix(path): s = socket.socket(socket.AF_UNIX); s.connect(path)
def pair(path): a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.sendto(b'x', path)
def stream(path): a, b = socket.socketpair(); b.close(); a.connect(path)
def send(port): socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', port))
tried({'tcp': lambda: socket.create_connection(('127.0.0.1', tcp_port), 2), 'udp': lambda: send(udp_port),
       'unix': lambda: unix(folder + '/unix'), 'abstract': lambda: unix(name), 'pair': lambda: pair(folder + '/mail'),
       'stream': lambda: stream(folder + '/unix'), 'netlink': lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
       'raw': lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
       'listen': lambda: socket.create_server(('', 0)),
       'vsock': lambda: socket.socket(40, socket.SOCK_STREAM), 'alg': lambda: socket.socket(38, socket.SOCK_SEQPACKET)})
print('done')'''


def test_sockets(run, outside, listeners):
    tcp_port, udp_port = (listeners[kind].getsockname()[1] for kind in ('tcp', 'udp'))
    known = f'{tcp_port, udp_port, str(outside), listeners["abstract"].getsockname()}'
    source = TRY + f'tcp_port, udp_port, folder, name = {known}\n' + CONNECT
    r = run(source)
    assert r.stdout == 'done\n', r
    for kind, s in listeners.items():
        s.setblocking(False)
        with pytest.raises(BlockingIOError): s.recv(1) if kind in ('udp', 'pair') else s.accept()
    done = python(source)  # what waits there can be reached
    assert {f'WORKED {kind}' for kind in listeners} <= set(done.stdout.splitlines())


# ---------------------------------------------------------------- other processes

def test_environment_of_others(run, monkeypatch):
    monkeypatch.setenv('MMJEPA_TEST_SECRET', 'hush-6b1f')
    r = run(f'''
import glob, os
print(os.environ)
parts = ('environ', 'maps', 'mem', 'root/etc/passwd')
own = [f'/proc/{{pid}}/{{part}}' for pid in ({os.getpid()}, os.getppid(), 'self') for part in parts]
for path in glob.glob('/proc/*/environ') + own:
    try: print(path, open(path, 'rb').read(1 << 16))
    except OSError: pass
print('done')''')
    assert r.stdout.endswith('done\n') and 'hush' not in r.stdout and '/proc' not in r.stdout


def test_descriptors_of_the_parent(run, outside):
    with open(outside/'precious') as f:
        os.set_inheritable(f.fileno(), True)
        r = run('''
import os
for fd in range(300):
    try: print(fd, oct(os.fstat(fd).st_mode))
    except OSError: pass''')
    assert [line.split()[0] for line in r.stdout.splitlines()] == ['0', '1', '2']


def test_harm_to_the_parent(run):
    def limits(): return Path(f'/proc/{os.getpid()}/limits').read_text()
    affinity, before = os.sched_getaffinity(0), limits()
    r = run(TRY + f'''
import fcntl, resource, signal
def by_fcntl(pid):
    r, w = os.pipe()
    for command, value in ((fcntl.F_SETOWN, pid), (10, signal.SIGKILL), (fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)):
        fcntl.fcntl(r, command, value)
    os.write(w, b'x')
other = {os.getpid()}
for pid in (other, os.getppid()):
    if pid <= 1: continue # the first process of a namespace: a signal to it is accepted, and has no effect
    tried({{f'kill {{pid}}': lambda: os.kill(pid, 9), f'stop {{pid}}': lambda: os.kill(pid, 19),
           f'group {{pid}}': lambda: os.killpg(pid, 9), 'fcntl': lambda: by_fcntl(pid),
           'limit': lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, 1)),
           'processors': lambda: os.sched_setaffinity(pid, [0]),
           'priority': lambda: os.setpriority(os.PRIO_PROCESS, pid, 19),
           'pidfd': lambda: signal.pidfd_send_signal(os.pidfd_open(pid), 9)}})
os.kill(os.getpid(), 0)
try: os.kill(os.getppid(), 9)
except OSError: pass
print('done', flush=True)
os.kill(0, 9) # all of its own group''')
    assert r.stdout == 'done\n', r
    assert (r.status, r.exit_code) == ('killed', -9)
    assert os.sched_getaffinity(0) == affinity and limits() == before


def test_a_signal_to_everyone(run):
    "kill(-1) reaches the program's own processes at most."
    with subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE) as bystander:
        r = run('import os\ntry: os.kill(-1, 9)\nexcept OSError: pass\nprint("done")')
        assert r.stdout == 'done\n' and bystander.poll() is None
        bystander.communicate(b'\n')
        assert bystander.returncode == 0


def test_refused_calls(run):
    "Calls for which Python has no function, by number."
    column = containment.MACHINES[os.uname().machine][0]
    names = [n for n in containment._REFUSED.split() if containment._CALLS[n][column]]
    r = run(f'''
import ctypes
c = ctypes.CDLL(None, use_errno=True)
for name, number in {[(n, containment._CALLS[n][column]) for n in [*names, 'clone3']]!r}:
    ctypes.set_errno(0)
    print(name, c.syscall(number, 0, 0, 0, 0, 0, 0), ctypes.get_errno())
print('user namespace', c.syscall({containment._CALLS['clone'][column]}, 0x10000011, 0, 0, 0, 0), ctypes.get_errno())
print('no setuid', c.prctl(39, 0, 0, 0, 0))
print('capabilities', c.prctl(47, 1, 21, 0, 0))''')
    expected = [*(f'{n} -1 1' for n in names), 'clone3 -1 38', 'user namespace -1 1', 'no setuid 1', 'capabilities 0']
    assert r.stdout.splitlines() == expected


def test_no_mounts_and_no_privileges(run):
    r = run('''
import ctypes, os
c = ctypes.CDLL(None, use_errno=True)
print(c.mount(b'none', b'/', None, 4128, None), c.umount2(b'/usr', 2), c.chroot(b'.'), c.setuid(0),
      c.sethostname(b'x', 1), os.getuid() != 0)''')
    assert r.stdout == '-1 -1 -1 -1 -1 True\n', r


DAEMON = '''
import os, subprocess, sys, time
def away():
    try: os.setsid()
    except OSError: pass
if not os.fork():
    away()
    if not os.fork():
        away()
        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', %r])
    os._exit(0)
time.sleep(%s)'''


@pytest.mark.parametrize('ends', ['by itself', 'by the limit'])
def test_a_process_that_outlives_its_parent(run, ends):
    marker = f'mmjepa-daemon-{os.getpid()}'
    with ThreadPoolExecutor(1) as pool:
        seconds, timeout = (1, 60) if ends == 'by itself' else (60, 1)
        future = pool.submit(run, DAEMON % (marker, seconds), timeout=timeout)
        assert until(lambda: running(marker) or future.done()) and running(marker), future
        assert future.result().status == ('passed' if ends == 'by itself' else 'timeout')
    assert not running(marker)


@pytest.mark.parametrize('by', [signal.SIGKILL, signal.SIGINT])
def test_when_the_caller_dies(run, by):
    "Its programs die with it, and their folders with them."
    marker = f'mmjepa-orphan-{os.getpid()}'
    mechanism = run('').contained_by
    call = f'''from mmjepa.sandbox.programs import run_program
run_program({DAEMON % (marker, 60)!r}, timeout=60, contained_by={mechanism!r})'''
    with subprocess.Popen([sys.executable, '-c', call], stderr=subprocess.PIPE) as caller:
        def started(): return running(marker)[1:]  # the source names it too, so that the caller is counted
        assert until(lambda: started() or caller.poll() is not None) and caller.poll() is None
        caller.send_signal(by)
        caller.communicate(timeout=30)
    assert until(lambda: not running(marker))
    assert until(lambda: not list(Path(tempfile.gettempdir()).glob(f'mmjepa-sandbox-{caller.pid}-*')))


# ---------------------------------------------------------------- no containment, no program

FORBID = '''
import sys
from mmjepa.sandbox import containment as c
c._CALLS['landlock'] = (444, 444)
c._rules = lambda *_: dict.fromkeys(sys.argv[2:], [(0, 0, [])])
c.prctl(c.NO_NEW_PRIVILEGES, 1)
c.refuse_calls('')
from mmjepa.sandbox.programs import run_program
try: print(run_program(f'open({sys.argv[1]!r}, "w")'))
except ValueError as e: print(type(e).__name__, e)
'''


@pytest.mark.skipif(sys.platform != 'linux' or os.uname().machine not in containment.MACHINES, reason='needs a filter')
def test_what_cannot_be_contained_is_not_run(outside):
    "A process that may make neither namespaces nor rules for files, as in some containers."
    target = outside/'ran'
    done = python(FORBID, target, 'unshare', 'landlock', cwd=ROOT)
    why = 'UserError the program was not run, since it cannot be contained here'
    assert done.stdout.startswith(f'{why} (namespaces: unshare: Operation not permitted; landlock: '), done
    assert done.stderr == '', done
    assert not target.exists()


@pytest.mark.skipif(bool(refusal('landlock')), reason=f'no containment by landlock: {refusal("landlock")}')
def test_landlock_where_namespaces_are_forbidden(outside):
    done = python(FORBID, outside/'ran', 'unshare', cwd=ROOT)
    assert "contained_by='landlock'" in done.stdout and not (outside/'ran').exists(), done


@pytest.mark.skipif(bool(refusal()), reason=f'no containment: {refusal()}')
def test_a_hole_is_found_before_a_program_runs(tmp_path):
    "The same package without one word of its filter."
    (tmp_path/'mmjepa/sandbox').mkdir(parents=True)
    shutil.copy(ROOT/'mmjepa/sandbox/programs.py', tmp_path/'mmjepa/sandbox')
    source = (ROOT/'mmjepa/sandbox/containment.py').read_text(encoding='utf-8')
    holed = source.replace("_REFUSED = '''socket setsid", "_REFUSED = '''setsid")
    assert holed != source
    (tmp_path/'mmjepa/sandbox/containment.py').write_text(holed, encoding='utf-8')
    for name in ('mmjepa', 'mmjepa/sandbox'): (tmp_path/name/'__init__.py').touch()
    ask = 'from mmjepa.sandbox.programs import refusal; print(refusal())'
    done = python(ask, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert 'a harmless program passed: a socket was opened' in done.stdout, done


@pytest.mark.parametrize('platform', ['darwin', 'win32'])
def test_other_systems(platform, monkeypatch):
    monkeypatch.setattr(sys, 'platform', platform)
    others = 'a virtual machine with Linux, such as WSL 2, would do'
    assert refusal.__wrapped__() == f'programs are contained on Linux only, and this is {platform}; {others}'


@pytest.mark.skipif(not refusal(), reason='programs can be contained here')
def test_this_machine_refuses():
    with pytest.raises(UserError, match='not run, since it cannot be contained here'): run_program('print(1)')


def test_the_module_loads_without_the_package():
    "The launcher starts in a moment: it imports nothing but Python's own library."
    code = '''import json, sys
import mmjepa.sandbox.programs
ours = [m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'fastcore', 'mmjepa')]
print(json.dumps(sorted(ours)))'''
    done = python(code, cwd=ROOT, check=True)
    expected = ['mmjepa', 'mmjepa.sandbox', 'mmjepa.sandbox.containment', 'mmjepa.sandbox.programs']
    assert json.loads(done.stdout) == expected
