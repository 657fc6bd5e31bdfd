"""Few records, none held out, or none that can be read: both stages run, or say at the start why not."""
import json
from pathlib import Path

import pytest

from mmjepa.core import UserError, run_command
from mmjepa.data.records import digit_pairs
from mmjepa.pretrain.contrastive import ContrastiveRun, run_contrastive
from mmjepa.pretrain import masked
from mmjepa.pretrain.masked import MaskedRun, run_masked
from mmjepa.runs import RunConfig

SHAPE = dict(context=12, image_size=8, patch_size=4, emb_dim=8, depth=1, num_heads=1, precision='fp32')
STAGES = {'masked': (MaskedRun, run_masked, ['val_loss_mim', 'val_loss_mlm']),
          'contrastive': (ContrastiveRun, run_contrastive, ['val_loss_clip', 'val_loss_mlm', 'image_to_text_r10'])}


def run(stage, folder, lines, **changes):
    "The table of epochs, the report, and which columns belong to what is held out."
    (folder/'data.jsonl').write_text('\n'.join(lines))
    kind, run_stage, columns = STAGES[stage]
    settings = dict(json_data=str(folder/'data.jsonl'), epochs=2, batch_size=4) | SHAPE | changes
    table = run_stage(kind(**settings), RunConfig(folder/'run'))
    return table[columns], (folder/'run/report.md').read_text()


@pytest.fixture
def lines(tmp_path): return digit_pairs(tmp_path, 60).read_text().splitlines()


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('n', [2, 5, 14])
def test_few_records(tmp_path, lines, stage, n):
    found, report = run(stage, tmp_path, lines[:n], batch_size=1 if n < 5 else 4)
    assert found.notna().all(axis=None) and 'val_loss' in report and 'curves.png' in report


@pytest.mark.parametrize('stage', STAGES)
def test_nothing_held_out(tmp_path, lines, stage):
    found, report = run(stage, tmp_path, lines[:12], val_split=0.)
    assert found.isna().all(axis=None) and 'val_loss' not in report and 'loss_total' in report


@pytest.mark.parametrize('stage', STAGES)
def test_no_held_out_record_can_be_read(tmp_path, lines, stage, capsys):
    (tmp_path/'bad.jsonl').write_text('{"image": "none.png", "text": "  "}\n' * 3)
    found, report = run(stage, tmp_path, lines, on_error='skip', epochs=1, val_data=str(tmp_path/'bad.jsonl'))
    told = capsys.readouterr().out
    assert 'held-out' in told and 'bad.jsonl:1' in told and found.isna().all(axis=None) and 'val_loss' not in report


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('changes, words', [(dict(), 'cannot|can not'), (dict(batch_size=64), 'batch_size is 64')])
def test_too_few_is_said_at_the_start(tmp_path, lines, stage, changes, words):
    with pytest.raises(UserError, match=words): run(stage, tmp_path, lines[:1 if not changes else 14], **changes)
    assert not (tmp_path/'run').exists()


def test_losses_of_both_splits_at_every_epoch(tmp_path, lines):
    for stage in STAGES:
        found, _ = run(stage, tmp_path, lines, epochs=20, batch_size=27, max_steps=24)
        assert len(found) >= 12 and found.notna().all(axis=None), stage
        (tmp_path/'run').rename(tmp_path/stage)


def test_images_and_texts_that_are_no_pairs(tmp_path, lines):
    "Rows with one of both: images come from those that have one, texts from the others."
    rows = [json.loads(line) for line in lines]
    mixed = [json.dumps({k: r[k]}) for i, r in enumerate(rows) for k in [('image', 'text')[i % 2]]]
    found, _ = run('masked', tmp_path, mixed)
    assert found.notna().all(axis=None)


@pytest.mark.parametrize('place', ['precious', 'data', 'data/pairs.jsonl'])
def test_the_encoder_takes_no_place_of_other_files(tmp_path, monkeypatch, capsys, place):
    "It replaces a folder as a whole: that of the data, or of something else, is refused before anything is trained."
    monkeypatch.chdir(tmp_path)
    digit_pairs(Path('data'), 12)
    Path('precious').mkdir()
    Path('precious/thesis.txt').write_text('years of work')
    before = {p: p.read_bytes() for p in Path().rglob('*') if p.is_file()}
    with pytest.raises(SystemExit) as e:
        run_command(masked.main, ['--json_data', 'data/pairs.jsonl', '--encoder_out', place])
    assert e.value.code == 2 and f'--encoder_out is {place}' in capsys.readouterr().err
    assert {p: p.read_bytes() for p in Path().rglob('*') if p.is_file()} == before
