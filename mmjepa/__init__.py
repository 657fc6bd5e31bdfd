"""Multimodal joint-embedding predictive learning. These are the names to start from; each is imported when it is first used."""

__version__ = "0.1.0"

_HOMES = {
    'fit': 'training', 'TrainConfig': 'training', 'EncoderConfig': 'encoders', 'MultimodalEncoder': 'encoders',
    'load_images': 'data.images', 'image_loader': 'data.loaders',
    'LeJEPAConfig': 'label.lejepa', 'MultimodalLeJEPA': 'label.lejepa', 'LeJEPAObjective': 'label.lejepa',
    'LabelRetrieval': 'label.retrieval', 'ContrastiveModel': 'pretrain.contrastive',
    'VisionTextAligner': 'align.aligner', 'MultimodalLLM': 'align.captioner', 'VLJEPA': 'vl.model', 'load': 'hub',
}
__all__ = [*_HOMES]


def __getattr__(name: str):
    if name not in _HOMES: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)


def __dir__(): return sorted({*globals(), *__all__})
