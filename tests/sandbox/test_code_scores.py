"Generated code that is wrong, hostile or odd, and all of HumanEval where its file is at hand."
import base64
import io
import zlib
from functools import lru_cache
from struct import pack

import numpy as np
import pytest
from PIL import Image

from mmjepa.sandbox.code_scores import (
    CodeProblem, draws_same, evaluate_humaneval, pass_at_k, python_tokens, read_humaneval, token_edit_similarity)
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
