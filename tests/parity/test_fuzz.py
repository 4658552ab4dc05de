"""Random layers and random damage; a few examples in the fast tier, many in the long one."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.packed import read_packed
from data.spec import Augmentation, DatasetSpec, Normalisation
from linearconv import LinearConv2d, correlation_loss
from linearconv.errors import UserError

LAYERS = st.fixed_dictionaries(
    {
        "groups": st.integers(1, 3),
        "per_group": st.integers(1, 3),
        "filters_per_group": st.sampled_from([4, 8]),
        "kernel": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "padding_mode": st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
        "alpha": st.sampled_from([0.25, 0.5, 0.75]),
        "rank": st.sampled_from([None, 1]),
        "bias": st.booleans(),
        "size": st.tuples(st.integers(6, 9), st.integers(6, 9)),
        "seed": st.integers(0, 2**31),
    }
)


def check_layer(draw: dict) -> None:
    """Each execution and the folded layer give a plain convolution's output with the filters
    combined in NumPy, and both executions the same gradients.
    """
    torch.manual_seed(draw["seed"])
    channels = draw["groups"] * draw["per_group"]
    layer = LinearConv2d(
        channels,
        draw["groups"] * draw["filters_per_group"],
        draw["kernel"],
        draw["stride"],
        draw["padding"],
        draw["dilation"],
        draw["groups"],
        draw["bias"],
        draw["padding_mode"],
        alpha=draw["alpha"],
        rank=draw["rank"],
        dtype=torch.float64,
    )
    images = torch.randn(2, channels, *draw["size"], dtype=torch.float64)
    primary, *factors = (t.detach().numpy() for t in (layer.primary, *layer.factors))
    secondary = np.einsum("pchw,ps->schw", primary, functools.reduce(np.matmul, factors))
    plain = layer.fuse()
    with torch.no_grad():
        plain.weight.copy_(torch.from_numpy(np.concatenate([primary, secondary])))
    outputs, gradients = [layer.fuse()(images)], []
    for execution in ("generate", "factored") if draw["groups"] == 1 else ("generate",):
        layer.execution = execution
        output = layer(images)
        outputs.append(output)
        gradients.append(torch.autograd.grad(output.square().sum(), list(layer.parameters())))
    for output in outputs:
        torch.testing.assert_close(output, plain(images), rtol=0, atol=1e-11)
    for other in zip(*gradients, strict=True):
        torch.testing.assert_close(other[-1], other[0], rtol=1e-11, atol=1e-9)
    assert correlation_loss(layer.primary).isfinite()


@settings(max_examples=60, deadline=None)
@given(LAYERS)
def test_random_layers(draw):
    check_layer(draw)


@pytest.mark.long
@settings(max_examples=5000, deadline=None)
@given(LAYERS)
def test_many_random_layers(draw):
    check_layer(draw)


SPEC = DatasetSpec(
    "toy", 1, 3, 1, 4, 6, 3, Normalisation([0.5], [0.5]), Augmentation(), digest=None
)


@pytest.fixture(scope="module", params=[np.savez, np.savez_compressed], ids=["plain", "compressed"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("fuzz") / "toy.npz"
    request.param(
        path,
        train_images=random.integers(0, 256, (6, 4, 4, 1), dtype=np.uint8),
        train_labels=np.arange(6) % 3,
        test_images=random.integers(0, 256, (3, 4, 4, 1), dtype=np.uint8),
        test_labels=np.arange(3),
        classes=np.array(["a", "b", "c"]),
    )
    return path


def check_damage(path: Path, tmp_path: Path, position: int, bit: int) -> None:
    """A flipped bit either gives one clear error or the very same data."""
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << bit
    (tmp_path / "toy.npz").write_bytes(content)
    whole = read_packed(SPEC, path.parent)
    try:
        found = read_packed(SPEC, tmp_path)
    except UserError as error:
        assert str(tmp_path / "toy.npz") in str(error)
    else:
        assert found.digest == whole.digest and found.classes == whole.classes


FIXTURES = [HealthCheck.function_scoped_fixture]


@settings(max_examples=100, deadline=None, suppress_health_check=FIXTURES)
@given(st.integers(0, 2**20), st.integers(0, 7))
def test_damaged_files(packed, tmp_path, position, bit):
    check_damage(packed, tmp_path, position, bit)


@pytest.mark.long
@settings(max_examples=5000, deadline=None, suppress_health_check=FIXTURES)
@given(st.integers(0, 2**20), st.integers(0, 7))
def test_damaged_files_at_length(packed, tmp_path, position, bit):
    check_damage(packed, tmp_path, position, bit)
