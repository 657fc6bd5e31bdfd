"The folder of the user's data, named as the place of an encoder, is still there."
import pytest
from mmjepa.core import UserError
from mmjepa.data.records import digit_pairs
from mmjepa.pretrain.masked import MaskedRun, run_masked
from mmjepa.runs import RunConfig

SMALL = dict(image_size=16, emb_dim=16, depth=1, epochs=1, batch_size=4, context=16)

@pytest.mark.parametrize('place, words', [('data', 'is read from there'), ('photos', 'holds mine.txt, which would be')])
def test_encoder_out_never_deletes_what_is_not_an_encoder(tmp_path, place, words):
    pairs, own = digit_pairs(tmp_path/'data', 20), tmp_path/'photos/mine.txt'
    own.parent.mkdir()
    own.write_text('mine')
    config, run = MaskedRun(json_data=str(pairs), **SMALL), RunConfig(tmp_path/'run')
    with pytest.raises(UserError, match=words): run_masked(config, run, tmp_path/place)
    assert own.read_text() == 'mine' and len([*pairs.parent.glob('png/*')]) == 20
    run_masked(config, RunConfig(tmp_path/'run', resume=True), tmp_path/'encoder') # what was trained is not lost
    run_masked(config, RunConfig(tmp_path/'run', resume=True), tmp_path/'encoder') # and an encoder may be replaced
