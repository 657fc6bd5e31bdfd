"""Train the digits model that comes with the package, and the controls of its card: `python tools/digits.py`.

Three runs of `mmjepa_mnist`, some minutes on two cores; the model of the first goes to mmjepa/models/digits."""
from dataclasses import replace
from pathlib import Path

from mmjepa.core import atomic_path, remove
from mmjepa.label.lejepa import load_model
from mmjepa.label.mnist import Experiment, label_facts, machine_name, run_experiment
from mmjepa.runs import RunConfig

PLACE = Path(__file__).resolve().parent.parent/'mmjepa/models/digits'
EXPERIMENT = Experiment(data='digits', emb_dim=64, proj_hidden=256)
CONTROLS = {'shuffled labels': {'shuffle_labels': True}, 'images alone': {'no_multimodal': True}}
ABOUT = {
    'name': 'digits',
    'about': 'A label JEPA: one encoder of 8x8 pictures of handwritten digits, of their labels, and of both together. '
             "It comes with the package: `mmjepa.load('digits')`.",
    'place': 'digits',
    'notes': 'M1 retrieves the label with which an image stays most like itself, M2 the label whose own embedding is '
             'nearest. Controls have the same settings. Shuffled labels: each training image has the label of another '
             'one. Images alone: labels took no part in training. Labels did take part in that of this model, so it is '
             'no unsupervised classification. No choice was made on the test images; they are of the same writers as '
             'the training images.'}
SOURCE = (" Scikit-learn's copy of the test part of Optical Recognition of Handwritten Digits (E. Alpaydin and "
          'C. Kaynak, UCI Machine Learning Repository, CC BY 4.0), split 80/20 with the same share of each class.')


def main(root: Path = Path('runs/digits')):
    "Train, and write the model with its card."
    folders = {name: root/name.replace(' ', '-') for name in ('labels', *CONTROLS)}
    for name, folder in folders.items():
        if (folder/'report.md').exists(): continue
        run_experiment(replace(EXPERIMENT, **CONTROLS.get(name, {})), RunConfig(folder, resume=folder.exists()))
    facts = label_facts(folders['labels'], {name: folders[name] for name in CONTROLS}, machine_name())
    facts['data'] += SOURCE
    remove(PLACE)
    model = load_model(folders['labels'])
    with atomic_path(PLACE) as temp: model.save_pretrained(temp, model_card_kwargs=facts | ABOUT)
    print((PLACE/'README.md').read_text(encoding='utf-8'))


if __name__ == '__main__': main()
