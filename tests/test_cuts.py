"A step over several batches or ranks has the gradient of the whole step, or is refused."
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from cuts import assert_same_gradient, gradient
from mmjepa.core import UserError, global_mean
from mmjepa.losses import masked_token_loss


class Words(nn.Module):
    "Logits of words, and a number for each."
    has_idle_parts = True
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head, self.size = nn.Embedding(10, 8), nn.Linear(8, 10), nn.Linear(8, 1)
    def forward(self, batch):
        h = self.table(batch['text'])
        return {'logits': self.head(h), 'size': self.size(h)[..., 0]}


def word_loss(outputs, batch): return masked_token_loss(outputs['logits'], batch['text'], batch['mask'])
def weighed(outputs, batch): return word_loss(outputs, batch)
weighed.weight = lambda batch: batch['mask'].sum()


def both(outputs, batch, factor=1.):
    "Two means over different numbers."
    size = global_mean((outputs['size'][batch['long']] - 1).square())
    words = word_loss(outputs, batch)
    return {'words': words, 'size': factor * size}, {'loss_words': words.detach(), 'loss_size': size.detach()}
both.weight = lambda batch: {'words': batch['mask'].sum(), 'size': batch['long'].sum()}


def rows():
    g = torch.Generator().manual_seed(3)
    texts = torch.randint(0, 10, (8, 1, 12), generator=g)
    return [{'text': t, 'mask': (torch.arange(12) < n)[None], 'long': (torch.arange(12) < m)[None]}
            for t, n, m in zip(texts, (1, 12, 5, 3, 0, 7, 11, 2), (4, 0, 0, 1, 9, 2, 2, 2))]


def one_mean(): return Words(), weighed, rows()
def two_means(): return Words(), partial(both, factor=.3), rows()
def equal(outputs, batch): return global_mean(outputs['size'].square())
def equal_counts(): return Words(), equal, rows()


@pytest.mark.parametrize('make', [one_mean, two_means, equal_counts])
def test_the_gradient_of_a_step_does_not_depend_on_its_cut(make): assert_same_gradient(make)


def test_it_is_that_of_a_naive_mean():
    model, data = Words().double(), rows()
    n, m = sum(r['mask'].sum() for r in data), sum(r['long'].sum() for r in data)
    loss = 0
    for r in data:
        out = model(r)
        words = cross_entropy(out['logits'][0], r['text'][0], reduction='none')
        loss = loss + words[r['mask'][0]].sum() / n + .3 * (out['size'][r['long']] - 1).square().sum() / m
    loss.backward()
    order = [p for n, p in model.named_parameters() if n.endswith('weight') and 'table' not in n]
    order += [p for n, p in model.named_parameters() if not (n.endswith('weight') and 'table' not in n)]
    expected = torch.cat([p.grad.flatten() for p in order])
    found = gradient(Words(), partial(both, factor=.3), data, size=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_means_over_unequal_numbers_without_weights_are_refused():
    with pytest.raises(UserError, match=r'means over 13 and 8 elements.*weight\(batch\)'):
        gradient(Words(), word_loss, rows(), size=2)


def test_terms_and_weights_have_the_same_names():
    def odd(outputs, batch): return {'words': word_loss(outputs, batch)}
    odd.weight = lambda batch: {'word': batch['mask'].sum()}
    with pytest.raises(UserError, match="names word, and its loss has 'words'"):
        gradient(Words(), odd, rows(), size=2)


def test_what_compares_a_whole_batch_is_not_cut():
    def contrast(outputs, batch): return outputs['size'].sum()
    contrast.whole_batch = 'contrastive loss'
    with pytest.raises(UserError, match='accumulate is 4, and the contrastive loss .*gradient caching'):
        gradient(Words(), partial(contrast), rows(), size=2)
