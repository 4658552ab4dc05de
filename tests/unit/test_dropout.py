"""Counter-based dropout: statistics, and independence of layout, history and machine."""

import copy

import pytest
import torch
from torch import nn

from linearconv.dropout import CounterDropout, hash32, seed_dropout


def test_masks_are_pinned():
    """Records of networks with dropout depend on these."""
    assert hash32(torch.arange(3)).tolist() == PINNED_HASH
    layer = CounterDropout(0.5)
    layer.key = 12345
    assert layer.mask((8,)).int().tolist() == PINNED_MASK


PINNED_HASH = [0, 824515495, 1722258072]
PINNED_MASK = [1, 1, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_rate_and_independence(p):
    layer = CounterDropout(p)
    layer.key = 99
    masks = []
    for _ in range(3):
        masks.append(layer.mask((1 << 20,)).double())
        layer.step += 1
    deviation = (p * (1 - p)) ** 0.5
    for mask in masks:
        assert mask.mean().item() == pytest.approx(1 - p, abs=5 * deviation / 1024)
    pairs = [(m[lag:], m[: len(m) - lag]) for m in masks[:1] for lag in (1, 2, 32, 1024)]
    pairs += [(masks[0], masks[1]), (masks[1], masks[2]), (masks[0], masks[2])]
    for a, b in pairs:
        correlation = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
        assert abs(correlation) < 5 / 1024


def test_kept_elements_are_scaled_and_gradients_masked():
    layer = CounterDropout(0.25)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    keep = layer.mask(x.shape)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(y, x * keep / 0.75)
    torch.testing.assert_close(x.grad, keep / 0.75)
    assert layer.step == 1 and not torch.equal(layer.mask(x.shape), keep)


def test_memory_layout_does_not_matter():
    x = torch.randn(4, 3, 8, 8)
    layers = [CounterDropout(0.5) for _ in range(2)]
    plain = layers[0](x)
    last = layers[1](x.to(memory_format=torch.channels_last))
    assert torch.equal(plain, last)


def test_evaluation_passes_through_and_does_not_count():
    layer = CounterDropout(0.5).eval()
    x = torch.randn(3, 4)
    assert layer(x) is x and layer.step == 0


def test_the_state_dict_continues_the_sequence():
    layer = CounterDropout(0.5)
    x = torch.ones(100)
    layer(x), layer(x)
    other = CounterDropout(0.5)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert torch.equal(layer(x), other(x))


def test_global_generator_is_untouched():
    state = torch.get_rng_state()
    CounterDropout(0.5)(torch.ones(10))
    assert torch.equal(torch.get_rng_state(), state)


def test_per_sample_drops_whole_samples():
    y = CounterDropout(0.5, per_sample=True)(torch.ones(256, 3, 2, 2)).flatten(1)
    assert all(row.unique().numel() == 1 for row in y) and 0 < (y[:, 0] == 0).sum() < 256


def test_layers_and_seeds_have_their_own_keys():
    model = nn.Sequential(CounterDropout(0.5), nn.ReLU(), CounterDropout(0.5))
    keys = []
    for seed in (0, 1):
        seed_dropout(model, seed)
        keys += [model[0].key, model[2].key]
    assert len(set(keys)) == 4
    seed_dropout(model, 0)
    assert [model[0].key, model[2].key] == keys[:2]


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0])
def test_wrong_probability(p):
    with pytest.raises(ValueError, match="p must be at least 0 and below 1"):
        CounterDropout(p)
