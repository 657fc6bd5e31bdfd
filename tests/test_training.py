"""What `fit` does, seen from outside: the optimizer reports its steps, and tiny models what becomes of them."""
import math
import os
import signal

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.testing import assert_close
from torchdata.stateful_dataloader import StatefulDataLoader

from mmjepa.checkpoint import best_checkpoint, list_checkpoints, load_checkpoint
from mmjepa.encoders import EncoderConfig, MultimodalEncoder, Projector
from mmjepa.training import TrainConfig, fit, learning_rate, parameter_groups

ROWS, BATCH = 12, 3
STEPS = ROWS // BATCH  # of an epoch


@pytest.fixture
def steps():
    "One entry a step of any optimizer, as it starts: rates, decays and betas of its groups, and the gradient's norm."
    seen = []
    def record(optimizer, args, kwargs):
        groups = optimizer.param_groups
        grads = [p.grad.norm() for g in groups for p in g['params'] if p.grad is not None]
        seen.append({**{key: {g[key] for g in groups} for key in ('lr', 'weight_decay', 'betas')},
                     'norm': torch.stack(grads).norm().item()})
    handle = register_optimizer_step_pre_hook(record)
    yield seen
    handle.remove()


class Line(nn.Module):
    "A linear map behind a dropout that drops nothing; it notes the mode in which each of its parts is called."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.drop, self.line, self.modes = nn.Dropout(0.), nn.Linear(3, 1), []

    def forward(self, batch):
        self.modes.append({m.training for m in self.modules()})
        return {'y': self.line(self.drop(batch['x']))}


def squares(outputs, batch):
    loss = (outputs['y'] - batch['y']).square().mean()
    return loss, {'loss_squares': loss.detach()}


def rows():
    g = torch.Generator().manual_seed(1)
    return [{'x': torch.randn(3, generator=g), 'y': torch.randn(1, generator=g)} for _ in range(ROWS)]


def train(folder, model=None, objective=squares, **options):
    "`fit` on 12 rows, 4 steps an epoch; `options` are those of `TrainConfig` and `fit`. Gives the model and the table."
    fields = TrainConfig.__dataclass_fields__
    config = TrainConfig(precision='fp32', log_every=1, **{k: v for k, v in options.items() if k in fields})
    model = model or Line()
    loader = StatefulDataLoader(rows(), batch_size=BATCH)
    table = fit(model, objective, loader, config=config, output_dir=folder/'run',
                **{k: v for k, v in options.items() if k not in fields})
    return model.cpu(), table


# ---------------------------------------------------------------- the rate

def test_the_rate_rises_to_its_peak_and_falls_along_a_cosine():
    config = TrainConfig(lr=2., warmup=.4, final_lr=.1)
    found = [learning_rate(config, step, 10) for step in range(11)]
    falling = [.1 + .9 * (1 + math.cos(math.pi * i / 6)) / 2 for i in range(7)]
    assert_close(found, [2 * share for share in [1/5, 2/5, 3/5, 4/5, *falling]])
    assert found[10] == pytest.approx(.2) and found[7] == pytest.approx(1.1)  # the end, and half-way down


@pytest.mark.parametrize('warmup', [0., .01, .1, .5, 1.])
def test_no_step_has_the_rate_0(warmup):
    config = TrainConfig(lr=1., warmup=warmup)
    assert all(0 < learning_rate(config, step, 20) <= 1 for step in range(20))
    if not warmup: assert learning_rate(config, 0, 20) == 1


def test_each_step_has_the_rate_of_the_schedule(tmp_path, steps):
    config = dict(epochs=2, lr=.1, warmup=.3, final_lr=.2)
    train(tmp_path, **config)
    expected = [learning_rate(TrainConfig(**config), step, 2 * STEPS) for step in range(2 * STEPS)]
    assert [s['lr'] for s in steps] == [{rate} for rate in expected]
    assert len(set(expected)) == 2 * STEPS, 'or a constant rate would pass'


def test_the_schedule_ends_with_the_last_step_and_not_the_last_epoch(tmp_path, steps):
    config = dict(epochs=3, max_steps=6, lr=.1)
    train(tmp_path, **config)
    assert [s['lr'] for s in steps] == [{learning_rate(TrainConfig(**config), step, 6)} for step in range(6)]


def test_a_rate_of_ones_own_is_used(tmp_path, steps):
    train(tmp_path, epochs=2, rate=lambda step: .01 * (step + 1))
    assert [s['lr'] for s in steps] == [{.01 * (step + 1)} for step in range(2 * STEPS)]


def test_the_first_step_moves_the_weights(tmp_path):
    model, before = Line(), Line()
    train(tmp_path, model, epochs=1, max_steps=1, warmup=1.)
    assert not model.line.weight.equal(before.line.weight)


# ---------------------------------------------------------------- the optimizer

def by_hand(config, clip_norm):
    "The same run without `fit`: Loshchilov and Hutter's AdamW, written out, on one epoch."
    model, data, moments = Line(), rows(), {}
    for step in range(STEPS):
        batch = {k: torch.stack([r[k] for r in data[step*BATCH:(step+1)*BATCH]]) for k in data[0]}
        model.zero_grad()
        squares(model(batch), batch)[0].backward()
        rate, norm = learning_rate(config, step, STEPS), torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        for name, p in model.named_parameters():
            grad = p.grad * min(1., clip_norm / norm)
            m, v = moments.get(name, (torch.zeros_like(p), torch.zeros_like(p)))
            m, v = config.beta1 * m + (1 - config.beta1) * grad, config.beta2 * v + (1 - config.beta2) * grad.square()
            moments[name] = m, v
            mean, square = m / (1 - config.beta1**(step + 1)), v / (1 - config.beta2**(step + 1))
            decay = config.weight_decay if name == 'line.weight' else 0.
            with torch.no_grad(): p.copy_(p * (1 - rate * decay) - rate * mean / (square.sqrt() + 1e-8))
    return model


def test_a_run_is_adamw_by_hand(tmp_path):
    settings = dict(epochs=1, lr=.1, weight_decay=.5, beta1=.7, beta2=.8, clip_norm=.3)
    model, _ = train(tmp_path, **settings)
    assert_close(model.state_dict(), by_hand(TrainConfig(**settings), .3).state_dict(), rtol=1e-4, atol=1e-5)


def test_matrices_shrink_without_a_gradient_and_biases_stay(tmp_path):
    "AdamW divides 0 by a little more than 0: what remains of a step is the decay."
    def nothing(outputs, batch): return 0 * outputs['y'].sum(), {}
    before = Line()
    model, _ = train(tmp_path, None, nothing, epochs=1, weight_decay=.5, rate=lambda step: .1)
    assert_close(model.line.weight, before.line.weight * (1 - .1 * .5)**STEPS)
    assert model.line.bias.equal(before.line.bias)


def test_the_optimizer_has_the_decay_and_the_betas_of_the_config(tmp_path, steps):
    train(tmp_path, epochs=1, weight_decay=.3, beta1=.6, beta2=.7)
    assert [s['weight_decay'] for s in steps] == [{.3, 0.}] * STEPS
    assert [s['betas'] for s in steps] == [{(.6, .7)}] * STEPS


def test_an_optimizer_of_ones_own_gets_the_groups_and_the_rates(tmp_path, steps):
    def sgd(groups): return torch.optim.SGD([{**g, 'betas': None} for g in groups], lr=7.)
    config = dict(epochs=1, lr=.1, weight_decay=.3)
    train(tmp_path, optimizer=sgd, **config)
    assert [s['lr'] for s in steps] == [{learning_rate(TrainConfig(**config), step, STEPS)} for step in range(STEPS)]
    assert [s['weight_decay'] for s in steps] == [{.3, 0.}] * STEPS


def steep(outputs, batch):
    loss, logs = squares(outputs, batch)
    return 1000 * loss, logs


@pytest.mark.parametrize('limit', [.5, 2.])
def test_gradients_are_clipped(tmp_path, steps, limit):
    train(tmp_path, None, steep, epochs=1, clip_norm=limit)
    assert [s['norm'] for s in steps] == pytest.approx([limit] * STEPS, rel=1e-4)


def test_a_limit_of_0_clips_nothing(tmp_path, steps):
    train(tmp_path, None, steep, epochs=1, clip_norm=0)
    assert all(s['norm'] > 10 for s in steps)


# ---------------------------------------------------------------- what decays

def decaying(model, weight_decay=.1):
    "Names of the parameters that decay; each trainable one is in one group."
    name = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, weight_decay)
    found = [(name[id(p)], g['weight_decay']) for g in groups for p in g['params']]
    assert sorted(n for n, _ in found) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert {decay for _, decay in found} <= {0., weight_decay}
    return {n for n, decay in found if decay}


class Parts(nn.Module):
    "One of each kind."
    def __init__(self):
        super().__init__()
        self.line, self.picture = nn.Linear(4, 4), nn.Conv2d(3, 4, 2)
        self.norm, self.batch, self.table = nn.LayerNorm(4), nn.BatchNorm1d(4), nn.Embedding(5, 4)
        self.position, self.cls_token = nn.Parameter(torch.zeros(1, 9, 4)), nn.Parameter(torch.zeros(1, 1, 4))
        self.mask_token, self.scale = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(()))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_matrices_of_layers_decay_and_nothing_else():
    assert decaying(Parts()) == {'line.weight', 'picture.weight'}


def test_the_matrices_of_our_encoder_decay_and_nothing_else():
    "Projections of attention, feed-forwards and patches; no positions, tables, norms or biases."
    shape = EncoderConfig(image_size=8, patch_size=4, emb_dim=8, depth=1, num_heads=2, vocab_size=7, context=5)
    model = nn.ModuleDict({'encoder': MultimodalEncoder(shape), 'head': Projector(8, 6, 4)})
    block = {f'encoder.blocks.0.{n}.weight' for n in ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')}
    head = {f'head.{i}.weight' for i in (0, 3, 6)}
    assert decaying(model) == {'encoder.embedders.image.patches.proj.weight', *block, *head}


def test_a_table_that_is_a_layer_as_well_does_not_decay():
    "The output matrix of a language model may be its table of embeddings."
    tied = nn.ModuleDict({'table': nn.Embedding(5, 4), 'head': nn.Linear(4, 5, bias=False), 'line': nn.Linear(4, 4)})
    tied['head'].weight = tied['table'].weight
    assert decaying(tied) == {'line.weight'}


class Listed(Parts):
    def no_weight_decay(self): return {'line.weight'}


def test_what_a_module_lists_does_not_decay():
    "timm's models name such parameters; the list counts wherever the module stands."
    assert decaying(Listed()) == {'picture.weight'}
    both = nn.ModuleDict({'a': Listed(), 'b': Parts()})
    assert decaying(both) == {'a.picture.weight', 'b.picture.weight', 'b.line.weight'}


def test_tokens_and_positions_of_timm_do_not_decay():
    vit = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    found = decaying(nn.ModuleDict({'vit': vit}))
    assert {'vit.patch_embed.proj.weight', 'vit.blocks.0.attn.qkv.weight', 'vit.head.weight'} <= found
    assert not [n for n in found if 'token' in n or 'pos' in n or 'norm' in n or n.endswith('bias')]


# ---------------------------------------------------------------- modes, scores and checkpoints

def test_a_model_is_evaluated_in_evaluation_mode_and_trained_in_training_mode(tmp_path):
    model, marks = Line(), []
    def evaluate(model, last):
        marks.append(({m.training for m in model.modules()}, torch.is_grad_enabled(), last))
        return {'score': model({'x': torch.zeros(1, 3, device=model.line.weight.device)})['y'].item()}
    train(tmp_path, model, epochs=3, evaluate=evaluate)
    assert model.modes == [*[{True}] * STEPS, {False}] * 3
    assert marks == [({False}, False, False), ({False}, False, False), ({False}, False, True)]


SCORES = [.1, .9, .2, .5, .4]  # by epoch


def scored(folder, **options):
    "Steps of the checkpoints that stay, and of the best, after an evaluation with these scores."
    left = iter(SCORES)
    def evaluate(model, last): return {'accuracy': next(left), 'other': 0.}
    train(folder, epochs=len(SCORES), keep=1, evaluate=evaluate, **options)
    kept, best = list_checkpoints(folder/'run/checkpoints'), best_checkpoint(folder/'run/checkpoints')
    return [load_checkpoint(p).step for p in kept], best and load_checkpoint(best)


def test_the_checkpoint_with_the_largest_score_stays(tmp_path):
    kept, best = scored(tmp_path, monitor='accuracy')
    assert kept == [2 * STEPS, 5 * STEPS], 'the best, and the last'
    assert (best.step, best.score) == (2 * STEPS, .9)


def test_without_a_monitor_no_checkpoint_is_the_best(tmp_path):
    assert scored(tmp_path) == ([5 * STEPS], None)


# ---------------------------------------------------------------- resume

class Counting(nn.Module):
    "An objective whose weight depends on how often it was called."
    def __init__(self):
        super().__init__()
        self.register_buffer('calls', torch.zeros((), dtype=torch.int64))

    def forward(self, outputs, batch):
        self.calls += 1
        loss, logs = squares(outputs, batch)
        return loss * self.calls, {**logs, 'calls': self.calls.float()}


def stop_at(step):
    "A transform that asks for the end of the run in a step."
    calls = []
    def transform(batch, generator):
        calls.append(1)
        if len(calls) == step: os.kill(os.getpid(), signal.SIGTERM)
        return batch
    return transform


@pytest.mark.parametrize('step', [2, STEPS, STEPS + 3])
def test_a_resumed_run_has_the_state_of_its_objective(tmp_path, step):
    settings = dict(epochs=3, lr=.1)
    whole, table = train(tmp_path/'whole', None, Counting(), **settings)
    with pytest.raises(SystemExit): train(tmp_path, None, Counting(), transform=stop_at(step), **settings)
    objective = Counting()
    again, found = train(tmp_path, None, objective, resume=True, **settings)
    assert objective.calls == 3 * STEPS
    assert found.calls.tolist() == table.calls.tolist() == [2.5, 6.5, 10.5]
    assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)
