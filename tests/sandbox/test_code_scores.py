"Generated code that is wrong, hostile or odd, and all of HumanEval where its file is at hand."
import base64
import gzip
import io
import json
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from functools import lru_cache
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from PIL import Image

from mmjepa.sandbox.code_scores import (
    CodeProblem, draws_same, evaluate_humaneval, parses, pass_at_k, python_tokens, read_humaneval,
    token_edit_similarity)
from mmjepa.core import UserError, data_dir
from mmjepa.sandbox.programs import refusal

HUMANEVAL = data_dir()/'humaneval/HumanEval.jsonl.gz'
contained = pytest.mark.skipif(bool(refusal()), reason=f'no containment: {refusal()}')
with_data = pytest.mark.skipif(not HUMANEVAL.exists(), reason='HumanEval is not in the folder of data sets')

ADD = CodeProblem('own/0', 'def add(a, b):\n    "Sum."\n', '''def check(f):
    assert f(1, 2) == 3
    assert f(-1, 1) == 0
''', entry_point='add', canonical_solution='    return a + b\n')

SQUARE_ROOT = CodeProblem('own/1', '''import math

def root(x):
    "Square root, 0 for negative numbers."
''', '''METADATA = {}

def check(candidate):
    assert candidate(9) == 3
    assert candidate(-1) == 0
''', entry_point='root', canonical_solution='    return math.sqrt(max(x, 0))\n')

FOUR = CodeProblem('own/2', '''def twice(x): return 2 * x

def four(x):
    "Uses the function above."
''', '''def check(candidate):
    for i in range(9): assert candidate(i) == 4 * i
''', entry_point='four', canonical_solution='    return twice(twice(x))\n')

OWN = {p.task_id: p for p in (ADD, SQUARE_ROOT, FOUR)}


def statuses(*completions, problem='own/0', **options):
    "What becomes of some completions of one problem."
    tries = {problem: list(completions)}
    found = evaluate_humaneval({problem: OWN[problem]}, tries, allow_code_execution=True, **options)
    return found['by_problem'][problem]['statuses']


@contained
def test_own_problems():
    solutions = {t: [p.canonical_solution] for t, p in OWN.items()}
    right = evaluate_humaneval(OWN, solutions, allow_code_execution=True)
    assert (right['pass@1'], right['problems'], right['statuses']) == (1.0, 3, {'passed': 3})
    wrong = evaluate_humaneval(OWN, {t: [''] for t in OWN}, allow_code_execution=True)
    assert (wrong['pass@1'], wrong['statuses']) == (0.0, {'failed': 3})


@contained
def test_estimate_of_several_completions():
    good, bad = OWN['own/0'].canonical_solution, '    return a - b'
    half = [OWN['own/2'].canonical_solution] * 2 + ['    pass'] * 2
    tries = {'own/0': [good, bad, bad, bad], 'own/1': [bad] * 4, 'own/2': half}
    found = evaluate_humaneval(OWN, tries, k=(1, 2, 3), allow_code_execution=True, num_workers=3)
    for k in (1, 2, 3): assert found[f'pass@{k}'] == pytest.approx(np.mean([pass_at_k(4, c, k) for c in (1, 0, 2)]))
    assert [found['by_problem'][t]['c'] for t in OWN] == [1, 0, 2] and found['completions'] == 12


@contained
def test_ends_before_the_tests_do_not_pass():
    "Exit code 0 is not enough."
    ends = ('exit()', 'import sys; sys.exit(0)', 'import os; os._exit(0)', 'raise SystemExit',
            'import os; os.execv("/bin/true", ["true"])')
    assert statuses(*('    ' + e for e in ends), *(f'    return a + b\n{e}' for e in ends)) == ['failed'] * 10


@contained
def test_fraud_does_not_pass():
    "An object that equals everything, a look at the file, asserts that are stripped; more in `test_checks.py`."
    equal = '    class Equal(int):\n        def __eq__(self, other): return True\n    return Equal(7)'
    look = '    import re\n    print(*re.findall("[0-9a-f]{32}", open("program.py").read()))'
    again = '    import os, sys\n    os.execv(sys.executable, [sys.executable, "-O", "program.py"])'
    words = '    import sys\n    print(*[c for i in range(3) for c in sys._getframe(i).f_code.co_consts])'
    assert statuses(equal, look, again, words) == ['failed'] * 4


@contained
def test_a_completion_does_not_replace_what_the_test_calls():
    "`twice` stands in the prompt; the test has its own."
    problem = CodeProblem('own/3', FOUR.prompt, 'def check(f):\n    assert twice(f(1)) == 8', entry_point='four')
    tries = {'own/3': [FOUR.canonical_solution, '    return 3\n\ndef twice(x): return 8\n']}
    found = evaluate_humaneval([problem], tries, allow_code_execution=True)
    assert found['by_problem']['own/3']['statuses'] == ['passed', 'failed']


@contained
def test_problems_and_samples_as_others_read_them(tmp_path):
    "Dicts by task_id, rows with more fields, tables of `datasets` and dicts of their splits; samples as rows."
    rows = [{**vars(p), 'difficulty': i} for i, p in enumerate(OWN.values())]
    samples = [{'task_id': t, 'completion': p.canonical_solution} for t, p in OWN.items()]
    datasets = pytest.importorskip('datasets')
    table = datasets.Dataset.from_list(rows)
    for given in (rows, {r['task_id']: r for r in rows}, table, datasets.DatasetDict(test=table)):
        assert read_humaneval(given) == OWN
    packed = tmp_path/'samples.jsonl.gz'
    packed.write_bytes(gzip.compress(''.join(json.dumps(s) + '\n\n' for s in samples).encode()))
    programs = [{'task_id': t, 'solution': p.prompt + p.canonical_solution} for t, p in OWN.items()]
    lists = [{**sample, 'completion': [sample['completion']] * 2} for sample in samples]
    texts = {sample['task_id']: sample['completion'] for sample in samples}
    for given in (samples, packed, str(packed), programs, lists, texts):
        assert evaluate_humaneval(table, given, k=1, allow_code_execution=True)['pass@1'] == 1


@pytest.mark.parametrize('given, words', [
    (3, '3 holds no rows'), ([], 'no problems'), ({}, 'no problems'), ([None], 'row 0: holds None'),
    ({'a': {'prompt': 'x'}}, "a: has no text 'test'"), ([{'task_id': 1}], "row 0: 'task_id' is 1"),
    ([vars(ADD), vars(ADD)], "row 1: task_id 'own/0' is there twice"),
    ([{**vars(ADD), 'test': 'def check(:'}], "row 0: test is 'def check(:'"),
    ([{**vars(ADD), 'entry_point': 'a b'}], "row 0: entry_point is 'a b'")])
def test_problems_that_are_none(given, words):
    with pytest.raises(UserError) as caught: read_humaneval(given)
    assert words in str(caught.value) and '\n' not in str(caught.value)


def children(pid): return [int(c) for f in Path(f'/proc/{pid}/task').glob('*/children') for c in f.read_text().split()]


def until(check, seconds=20):
    "Whether `check` comes true in time."
    end = time.monotonic() + seconds
    while not (done := check()) and time.monotonic() < end: time.sleep(.02)
    return bool(done)


@contained
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_programs(number):
    "It is heard within two seconds, however long the programs may run, and nothing of them is left."
    code = '''from mmjepa.sandbox.code_scores import CodeProblem, evaluate_humaneval
p = CodeProblem('a', 'def f(): pass\\n', 'def check(f): f()', entry_point='f')
evaluate_humaneval([p], {'a': ['while True: pass'] * 6}, num_workers=2, allow_code_execution=True, timeout=100.)'''
    with subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True) as caller:
        launchers = []
        assert until(lambda: len(children(caller.pid)) == 2 or caller.poll() is not None)
        launchers += children(caller.pid)
        time.sleep(.5)
        caller.send_signal(number)
        assert until(lambda: not any(Path(f'/proc/{pid}').exists() for pid in launchers), 2)
        said = caller.communicate(timeout=60)[1]
    assert caller.returncode in (-number, 1) and 'launcher' not in said, said
    assert not list(Path(tempfile.gettempdir()).glob(f'mmjepa-sandbox-{caller.pid}-*'))


@pytest.mark.parametrize('text, good', [
    ('', False), (' \n\t\n', False), ('# nothing', False), ('\n# a\n  # b\n', False), ('\\\n', False), ('\f', False),
    ('pass', True), ('"text"', True), ('x', True), ('x =', False)])
def test_an_empty_text_is_no_program(text, good): assert parses(text) is good


@contained
def test_odd_completions():
    good = '    return a + b'
    thread = '\nimport threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()'
    odd = {'\0': 'failed', '\ud800': 'failed', '    return (' * 500: 'failed', '\treturn a + b': 'failed',
           good + '\n# ' + 'x' * 1_000_000: 'passed', good + '\nprint("x" * 10_000_000)': 'passed',
           good + thread: 'passed',
           '    import os; os.close(1); return a + b': 'failed', '    while True: pass': 'timeout',
           '    import os; os.abort()': 'killed', '    return [0] * 10**10': 'failed',
           good.replace('\n', '\r\n') + '\r\n': 'passed'}
    assert statuses(*odd, timeout=2.) == list(odd.values())


def test_nothing_runs_without_permission(tmp_path):
    "Neither where it is not given nor where it is given as anything but True."
    for allowed in ({}, {'allow_code_execution': False}, {'allow_code_execution': 1}):
        with pytest.raises(UserError, match='allow_code_execution=True'):
            evaluate_humaneval(OWN, {t: [''] for t in OWN}, **allowed)
        with pytest.raises(UserError, match='allow_code_execution=True'): draws_same('', b'', **allowed)


@pytest.mark.skipif(not refusal(), reason='programs can be contained here')
def test_permission_is_not_containment():
    with pytest.raises(UserError, match='cannot be contained here'): statuses('')


@contained
@with_data
@pytest.mark.parametrize('which', [0, 81, 163])
def test_some_of_humaneval(which):
    problem = list(read_humaneval(HUMANEVAL).values())[which]
    task, tries = problem.task_id, [problem.canonical_solution, '', '    return None\n']
    found = evaluate_humaneval({task: problem}, {task: tries}, allow_code_execution=True, timeout=60)
    assert found['by_problem'][task]['statuses'] == ['passed', 'failed', 'failed']


@contained
@with_data
@pytest.mark.parametrize('body', ['canonical_solution', pytest.param('nothing', marks=pytest.mark.slow)])
def test_all_of_humaneval(body):
    problems = read_humaneval(HUMANEVAL)
    answers = {t: [getattr(p, body, '')] for t, p in problems.items()}
    found = evaluate_humaneval(problems, answers, allow_code_execution=True, timeout=60)
    score, status = (0.0, 'failed') if body == 'nothing' else (1.0, 'passed')
    assert (found['pass@1'], found['problems'], found['statuses']) == (score, 164, {status: 164})


# ---------------------------------------------------------------- text

def edits(x, y):
    "By the definition, which is slow: a recursion with a memory."
    @lru_cache(None)
    def rest(i, j):
        if not i or not j: return i + j
        replaced = rest(i - 1, j - 1) + (x[i - 1] != y[j - 1])
        return min(rest(i - 1, j) + 1, rest(i, j - 1) + 1, replaced)
    return rest(len(x), len(y))


def test_edit_similarity_of_real_programs():
    sources = [p.prompt + p.canonical_solution for p in OWN.values()]
    for a in sources:
        for b in sources:
            x, y = python_tokens(a), python_tokens(b)
            assert token_edit_similarity(a, b) == pytest.approx(1 - edits(x, y) / max(len(x), len(y)))
            assert (token_edit_similarity(a, b) == 1) == (a == b)


ODD_TEXTS = ['"' * 9_999, "'''" + '\\' * 9_999, '(' * 9_999, '1' * 9_999, '0x' * 4_999, '\n' * 9_999 + 'x', ' ' * 9_999,
             '1e' * 4_999, '"\\' * 4_999, '\\\n' * 4_999 + 'x', 'rb' * 4_999, '\x00\ufeffé\u2028']

@pytest.mark.parametrize('source', ODD_TEXTS)
def test_no_text_is_too_odd_for_the_tokens(source):
    "None takes long, and every character that is not blank is in a token; a backslash at the end of a line is a blank."
    def letters(text): return ''.join(text.replace('\\\n', '').split())
    assert letters(''.join(python_tokens(source))) == letters(source)


# ---------------------------------------------------------------- pictures

def png(array):
    data = io.BytesIO()
    Image.fromarray(np.uint8(array)).save(data, 'png')
    return data.getvalue()


WHITE = png(np.full((8, 8, 3), 255))

def draw(program, image=WHITE): return draws_same(program, image, allow_code_execution=True)


@contained
def test_the_last_picture_counts():
    two = '''import time
from PIL import Image
Image.new("L", (8, 8), {}).save("z.png")
time.sleep(.05)
Image.new("L", (8, 8), {}).save("a.PNG")'''
    assert [draw(two.format(*greys)).status for greys in ((0, 255), (255, 0))] == ['same', 'differs']


@contained
def test_a_figure_that_is_open(tmp_path):
    fill = 'import matplotlib.pyplot as plt\nfig = plt.figure(facecolor="{}")\n{}'
    assert draw(fill.format('white', 'plt.show()')).status == 'same'
    assert draw(fill.format('black', '')).difference == pytest.approx(1)
    assert draw(fill.format('white', 'plt.close()')).status == 'draws nothing'
    path = tmp_path/'white.png'
    path.write_bytes(png(np.full((30, 20, 3), 255)))
    assert draw(fill.format('white', 'import sys; sys.exit()'), path).status == 'same'


def bomb(side):
    "A small PNG of very many black pixels."
    def chunk(kind, data): return pack('>I', len(data)) + kind + data + pack('>I', zlib.crc32(kind + data))
    head, rows = pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0), bytes((side // 8 + 1) * side)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows, 9)) + chunk(b'IEND', b'')


@contained
@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_hostile_pictures():
    "What a program leaves is opened outside of the sandbox: as a PNG of bounded size or not at all."
    def write(data):
        encoded = base64.b64encode(data).decode()
        return f'import base64\nopen("a.png", "wb").write(base64.b64decode({encoded!r}))'
    postscript = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/harm) (w) file\n'
    reasons = {postscript: 'what it saved is no PNG', b'': 'what it saved is no PNG',
               b'\x89PNG\r\n\x1a\n': 'not an image that can be read', bomb(9000): 'pixels are too many',
               bomb(20_000): 'image'}
    for data, why in reasons.items():
        found = draw(write(data))
        assert found.status == 'draws nothing' and why in found.reason, found
    for act in ('symlink("/etc/passwd", "a.png")', 'mkdir("a.png")', 'mkfifo("a.png")'):
        assert draw(f'import os; os.{act}').status == 'draws nothing'
