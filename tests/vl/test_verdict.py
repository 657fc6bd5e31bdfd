"What a hybrid is worth: what the control is, what a difference says, and a report whose runs are made once."
import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.stats import sem, ttest_rel

from mmjepa.core import UserError
from mmjepa.data.records import digit_pairs
from mmjepa.data.text import load_tokenizer
from mmjepa.vl import verdict
from mmjepa.vl.config import load_curriculum, make_curriculum, step_counts
from mmjepa.vl.curriculum import open_sources, without_embeddings
from mmjepa.vl.verdict import (compare_arms, control_of, judge, paired_difference, pictured_records, run_verdict,
                               verdict_sentence, word_tokens, written_exactly)
import forked
from curricula import silent, small_curriculum

TOK = load_tokenizer()


@pytest.fixture(scope='module')
def material(tmp_path_factory):
    "A YAML file with pictures of digits, and two more sources."
    root = tmp_path_factory.mktemp('material')
    digit_pairs(root, 60)
    settings = small_curriculum(root, '4K', 4)
    (root/'curriculum.yaml').write_text(yaml.safe_dump(settings))
    return root


def opened(root, config): return partial(open_sources, config, TOK, root=root, say=silent)


@pytest.mark.parametrize('n', [2, 3, 10])
def test_a_paired_difference_is_that_of_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(5, 3, n), rng.normal(6, 3, n)
    d, error = paired_difference(a.tolist(), b.tolist())
    naive = [y - x for x, y in zip(a, b)]
    mean = sum(naive) / n
    assert math.isclose(d, mean)
    assert math.isclose(error, math.sqrt(sum((x - mean) ** 2 for x in naive) / (n - 1) / n))
    assert math.isclose(error, sem(b - a)) and math.isclose(d / error, ttest_rel(b, a).statistic)


def test_a_tie_is_a_difference_within_two_standard_errors():
    assert judge(.2, .1) == judge(-.2, .1) == judge(0., 0.) == 'a tie'
    assert [judge(.21, .1), judge(-.21, .1), judge(.21, .1, -1), judge(-.21, .1, -1)] == \
        ['better', 'worse', 'worse', 'better']
    assert judge(1., math.nan) == 'open'


def test_arms_are_compared_seed_by_seed_whatever_the_order():
    rows = [('hybrid', 1, 9.), ('control', 0, 1.), ('hybrid', 0, 3.), ('control', 1, 7.1), ('other', 0, 50.)]
    table = pd.DataFrame(rows, columns=['arm', 'seed', 'perplexity'])
    line, = compare_arms(table, 'control', 'hybrid').to_dict('records')
    assert line['measure'] == 'perplexity' and line['verdict'] == 'worse'
    assert math.isclose(line['difference'], 1.95) and math.isclose(line['standard_error'], .05)
    alone = compare_arms(table[table.seed == 0], 'control', 'hybrid')
    assert 'One seed' in verdict_sentence({'equal seconds': alone})
    said = verdict_sentence({'equal seconds': compare_arms(table, 'control', 'hybrid')})
    assert said == 'The hybrid is, at equal seconds worse in perplexity (+1.95 ± 0.05).'


def test_the_control_has_as_many_word_tokens(material):
    hybrid = load_curriculum(material/'curriculum.yaml', '10K')
    control, all_words = control_of(hybrid), without_embeddings(hybrid)
    assert word_tokens(hybrid) == word_tokens(control) == control.total_tokens == 6_000
    assert word_tokens(all_words) == 10_000  # what --lm_only reads
    assert [s.name for s in control.stages] == [s.name for s in hybrid.stages[1:]]
    assert [(s.tokens, s.lr) for s in control.stages] == [(s.tokens, s.lr) for s in hybrid.stages[1:]]
    longer = control_of(hybrid, 9_001)
    assert longer.total_tokens == sum(s.tokens for s in longer.stages) == 9_001
    assert longer.training.scheduler.warmup_tokens == round(1.5 * control.training.scheduler.warmup_tokens)
    with pytest.raises(UserError, match='alpha is 0 in every stage'): control_of(control)


def test_batches_of_embeddings_count_no_words(material):
    settings = yaml.safe_load((material/'curriculum.yaml').read_text())
    stage = dict(name='both', share='100%', lr=[3e-3, 1e-4], alpha=.1, beta=1, jepa_batches='50%')
    hybrid = make_curriculum(settings | {'stages': [stage]}, '4K')
    control = control_of(hybrid)
    assert word_tokens(hybrid) == word_tokens(control) == 4_000
    assert step_counts(hybrid) == [48] and step_counts(control) == step_counts(without_embeddings(hybrid)) == [32]
    stage |= dict(alpha=1, beta=0)
    stage.pop('jepa_batches')
    with pytest.raises(UserError, match='beta is 0 in every stage'):
        control_of(make_curriculum(settings | {'stages': [stage]}, '4K'))


class Echo:
    "Writes the text that it has learnt to find in a picture."
    def __init__(self, texts): self.texts = texts

    def generate(self, model, tokenizer, prompts, *, images, **options):
        return [self.texts[int(image.sum())] for image in images]


def test_texts_are_scored_with_their_picture_and_with_one_that_has_another_text(monkeypatch):
    records = [('', torch.full((1, 3, 1, 1), i), text) for i, text in enumerate(['a', 'a', 'b', 'c'])]
    monkeypatch.setattr(verdict, 'generate', Echo({3 * i: t for i, (_, _, t) in enumerate(records)}).generate)
    assert written_exactly(None, TOK, records) == {'exact': 1, 'exact_swapped': 0, 'pictures': 4}
    monkeypatch.setattr(verdict, 'generate', Echo({3 * i: 'a' for i in range(4)}).generate)
    assert written_exactly(None, TOK, records) == {'exact': .5, 'exact_swapped': .5, 'pictures': 4}  # it doesn't look


def test_records_to_score_are_the_held_out_ones_with_pictures(material):
    config = load_curriculum(material/'curriculum.yaml')
    held = opened(material, config)(held_out=True, seed=0)
    records = pictured_records(held, TOK)
    assert len(records) == held['vision_text'].size and len(pictured_records(held, TOK, 2)) == 2
    _, images, text = records[0]
    assert images.shape == (1, 3, 8, 8) and text and pictured_records({}, TOK) == []


@pytest.fixture(scope='module')
def report(material):
    "A verdict of two seeds by the command."
    folder = material/'verdict'
    words = [material/'curriculum.yaml', '--verdict', '--seeds', 2, '--epochs', 1, '--precision', 'fp32',
             '--output', folder]
    done = forked.command('mmjepa.vl.train', *words, ACCELERATE_USE_CPU='1')
    assert done.returncode == 0, done.stderr
    assert f'report: {folder/"verdict.md"}' in done.stdout
    return folder


def test_the_report_says_what_was_run(report):
    table = pd.read_csv(report/'verdict.csv')
    assert {*zip(table.arm, table.seed)} == {(a, s) for a in ('hybrid', 'control', 'control_seconds') for s in (0, 1)}
    by_arm = {arm: own.set_index('seed') for arm, own in table.groupby('arm')}
    assert by_arm['hybrid'].word_tokens.tolist() == by_arm['control'].word_tokens.tolist() == [2_400, 2_400]
    asked = 2_400 * by_arm['hybrid'].seconds / by_arm['control'].seconds
    assert (by_arm['control_seconds'].word_tokens - asked).abs().max() <= 2
    for name, own in by_arm.items():
        for seed, line in own.iterrows():
            metrics = pd.read_csv(report/f'{name}-{seed}'/'metrics.csv')
            assert line.perplexity == pytest.approx(metrics.perplexity.iloc[-1])
            assert line.seconds == pytest.approx(metrics.seconds.sum())
    assert table.exact.between(0, 1).all() and (table.pictures > 0).all()
    text = (report/'verdict.md').read_text()
    d, error = paired_difference(by_arm['control'].perplexity, by_arm['hybrid'].perplexity)
    said = judge(d, error, -1)
    assert "at equal word tokens " in text and f'{said} in perplexity ({d:+.3g} ± {error:.2g})' in text
    assert f'| {d:+.3g} | {error:.2g} | {said} |' in text and (report/'verdict.png').stat().st_size


def test_finished_runs_are_used_again_and_others_are_refused(report, material, monkeypatch):
    def must_not(*args, **kwargs): raise AssertionError('trained again')
    before = pd.read_csv(report/'verdict.csv')
    config = load_curriculum(material/'curriculum.yaml')
    again = partial(run_verdict, folder=report, tokenizer=TOK, opened=opened(material, config), epochs=1)
    with monkeypatch.context() as patched:
        patched.setattr(verdict, 'run_curriculum', must_not)
        table = again(config, seeds=2, precision='fp32')
        pd.testing.assert_frame_equal(table, before)
        other = load_curriculum(material/'curriculum.yaml', '5K')
        with pytest.raises(UserError, match='hybrid-0 has the scores of a run with other settings'):
            again(other, seeds=2, precision='fp32')
        with pytest.raises(UserError, match='seeds is 0'): again(config, seeds=0)
    (report/'control_seconds-1'/'verdict.json').unlink()  # stopped before its scores: trained, not yet scored
    table = again(config, seeds=2, precision='fp32')
    pd.testing.assert_frame_equal(table, before)
