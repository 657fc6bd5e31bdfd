"Pictures of every format reach a tower, from records and folders: some are decoded only when a pixel is asked for."
import json

import numpy as np
import pytest
from PIL import Image

from mmjepa.align.inputs import ImageTextDataset
from mmjepa.data.images import load_images, read_image

FORMATS = {'jpg': 'JPEG', 'bmp': 'BMP', 'tif': 'TIFF', 'ppm': 'PPM', 'tga': 'TGA', 'jp2': 'JPEG2000', 'png': 'PNG'}


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "A folder of each class with one RGB picture of every format, for training and for test."
    root = tmp_path_factory.mktemp('pictures')
    for split in ('train', 'test'):
        for i, k in enumerate(('cat', 'dog')):
            (root/split/k).mkdir(parents=True)
            for end, kind in FORMATS.items():
                Image.effect_noise((24, 24), 60 + i).convert('RGB').save(root/split/k/f'a.{end}', kind)
    return root


@pytest.mark.parametrize('end', FORMATS)
def test_records_hand_out_whole_pictures(pictures, tmp_path, end):
    lines = [{'image': f'train/{k}/a.{end}', 'text': k} for k in ('cat', 'dog')]
    (pictures/f'{end}.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    for source in (pictures/f'{end}.jsonl', [{**x, 'image': (pictures/x['image']).read_bytes()} for x in lines]):
        for record in ImageTextDataset(source): assert np.asarray(record['image']).shape == (24, 24, 3)
    assert np.asarray(read_image(pictures/lines[0]['image'])).shape == (24, 24, 3)


def test_folders_hold_any_format(pictures):
    train, test = load_images(str(pictures))
    assert train.images.shape == test.images.shape == (2 * len(FORMATS), 3, 24, 24)
    assert train.images.float().std((1, 2, 3)).min() > 1
