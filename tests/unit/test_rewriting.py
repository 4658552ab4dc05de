"""Other ways to compute the same network: small images as products, pooling before the rest."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from linearconv import LinearConv2d
from linearconv.engine import pooling, small_images
from linearconv.engine.pooling import pooling_before_norm, pooling_before_relu
from linearconv.engine.small_images import small_image_products


def by_products(monkeypatch) -> list[tuple[int, ...]]:
    """Every small image counts as worth it; returns the shapes of those that come by."""
    monkeypatch.setattr(small_images, "PAIRS_PER_PIXEL", 1)
    seen: list[tuple[int, ...]] = []
    original = small_images._Products.apply

    def apply(input, *rest):
        seen.append(tuple(input.shape))
        return original(input, *rest)

    monkeypatch.setattr(small_images._Products, "apply", apply)
    return seen


def outcomes(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Outputs, and the gradients of the images and of all parameters."""
    images = images.clone(memory_format=torch.preserve_format).requires_grad_()
    network.zero_grad()
    outputs = network(images)
    weights = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view(outputs.shape)
    (outputs * weights).sum().backward()
    return [outputs.detach(), images.grad, *(p.grad for p in network.parameters())]


GEOMETRIES = [
    (size, kernel, padding)
    for size, kernel, padding in itertools.product(
        [(1, 1), (2, 2), (3, 4), (4, 4)], [(3, 3), (1, 3), (2, 2), (5, 5)], [(0, 0), (1, 1), (2, 1)]
    )
    if all(s + 2 * p >= k for s, k, p in zip(size, kernel, padding, strict=True))
]


@pytest.mark.parametrize(("size", "kernel", "padding"), GEOMETRIES)
@pytest.mark.parametrize("kind", [nn.Conv2d, LinearConv2d])
def test_products_are_the_convolution(size, kernel, padding, kind, monkeypatch):
    seen = by_products(monkeypatch)
    torch.manual_seed(0)
    conv = kind(6, 8, kernel, padding=padding, dtype=torch.float64)
    images = torch.randn(5, 6, *size, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        conv = conv.to(memory_format=layout)
        expected = outcomes(conv, images.to(memory_format=layout))
        assert not seen
        with small_image_products(conv):
            found = outcomes(conv, images.to(memory_format=layout))
        assert seen.pop() == tuple(images.shape)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("conv", "size", "why"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), 8, "large"),
        (nn.Conv2d(4, 4, 1), 4, "1x1"),
        (nn.Conv2d(4, 4, 3, stride=2), 4, "strided"),
        (nn.Conv2d(4, 4, 3, dilation=2, padding=2), 4, "dilated"),
        (nn.Conv2d(4, 4, 3, groups=2), 4, "grouped"),
        (nn.Conv2d(4, 4, 3, padding="same"), 4, "padding by name"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), 4, "circular"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_other_convolutions_stay_the_librarys(conv, size, why, monkeypatch):
    seen = by_products(monkeypatch)
    images = torch.randn(2, 4, size, size)
    expected = conv(images)
    with small_image_products(conv):
        assert torch.equal(conv(images), expected) and not seen


def test_only_large_products_in_full_precision_gain(monkeypatch):
    conv, images = nn.Conv2d(128, 128, 3, padding=1), torch.randn(1, 128, 2, 2)
    narrow = nn.Conv2d(64, 64, 3, padding=1)
    assert small_images._gains(images, conv.weight)
    assert not small_images._gains(images[:, :64], narrow.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not small_images._gains(images, conv.weight)


def test_the_librarys_convolution_comes_back_after_a_failure():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    with pytest.raises(RuntimeError, match="stop"), small_image_products(conv):
        assert "_conv_forward" in vars(conv)
        raise RuntimeError("stop")
    assert "_conv_forward" not in vars(conv)


def chain(**pooling) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(**pooling), nn.ReLU()
    )


@pytest.mark.parametrize(
    "pooling", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}]
)
def test_pooling_before_relu_changes_no_bit(pooling):
    torch.manual_seed(0)
    network = chain(**pooling)
    # Whole numbers, so that values tie, among them zeros and windows without a positive value.
    images = torch.randint(-2, 2, (8, 3, 8, 8)).float()
    for parameter in network.parameters():
        nn.init.constant_(parameter, -1.0)
    network[0].weight.data[::2] = 1.0
    called: list[str] = []
    for module in network:
        module.register_forward_hook(lambda m, *_: called.append(type(m).__name__))
    expected = outcomes(network, images)
    with pooling_before_relu(network):
        found = outcomes(network, images)
    after = outcomes(network, images)
    assert called[:4] == called[8:] == ["Conv2d", "ReLU", "MaxPool2d", "ReLU"]
    assert called[4:8] == ["Conv2d", "MaxPool2d", "ReLU", "ReLU"]
    for mine, theirs, again in zip(found, expected, after, strict=True):
        assert torch.equal(mine, theirs) and torch.equal(again, theirs)
    assert 0 < (expected[0] == 0).sum() < expected[0].numel()


def test_pooling_that_also_returns_indices_stays():
    network = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, return_indices=True))
    images = torch.randn(1, 1, 4, 4)
    with pooling_before_relu(network):
        values, _ = network(images)
    assert torch.equal(values, F.max_pool2d(images.relu(), 2))


POOLINGS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (2, 3), "ceil_mode": True},
    {"kernel_size": 2, "dilation": 2},
]


@pytest.fixture
def pooled_norms(monkeypatch) -> list[torch.Tensor]:
    """Every pooling counts as worth it; returns what batch norm and pooling at once make."""
    monkeypatch.setattr(pooling, "LARGE", 1)
    seen: list[torch.Tensor] = []
    original = pooling._PooledNorm.apply

    def apply(*arguments):
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr(pooling._PooledNorm, "apply", apply)
    return seen


def normalised_chain(**window) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.MaxPool2d(**window), nn.ReLU()
    ).double()
    nn.init.normal_(network[1].bias)
    return network


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("lowest", [0.5, -1.0], ids=["rising", "some falling"])
@pytest.mark.parametrize("kind", POOLINGS, ids=str)
def test_pooling_before_batch_norm_is_the_same(kind, lowest, layout, pooled_norms):
    images = torch.randn(4, 3, 7, 9, dtype=torch.float64)
    written, other = normalised_chain(**kind), normalised_chain(**kind)
    for network in (written, other):
        nn.init.uniform_(network[1].weight, lowest, 1, generator=torch.Generator().manual_seed(0))
        network.to(memory_format=layout)
    assert (written[1].weight < 0).any() == (lowest < 0)
    expected = [*outcomes(written, images.to(memory_format=layout)), *written.buffers()]
    assert not pooled_norms
    with pooling_before_norm(other):
        found = [*outcomes(other, images.to(memory_format=layout)), *other.buffers()]
    assert len(pooled_norms) == 1
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_a_large_mean_does_not_spoil_the_gradients_in_single_precision(pooled_norms):
    exact = normalised_chain(kernel_size=2)[1:]
    images = (torch.randn(16, 6, 8, 8) + 100).double()
    expected = outcomes(exact, images)
    single = copy.deepcopy(exact).float()
    with pooling_before_norm(single):
        found = outcomes(single, images.float())
    assert len(pooled_norms) == 1
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).norm() < 1e-4 * theirs.norm()


def test_pooling_chooses_among_ties_as_the_library_does(pooled_norms):
    """Equal inputs, and the equal outputs that a weight of zero makes of different ones."""
    network = normalised_chain(kernel_size=2)[1:]
    network[0].weight.data.copy_(torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0, 0.0]))
    images = torch.randint(-1, 2, (8, 6, 8, 8)).double()
    expected = outcomes(network, images)
    with pooling_before_norm(network):
        found = outcomes(network, images)
    assert len(pooled_norms) == 1
    for part in (expected[2], found[2]):  # the weights' gradients,
        part[4:] = 0  # of which those of zero may be any subgradient
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def cumulative(norm: nn.BatchNorm2d) -> None:
    norm.momentum = None


def without_weight(norm: nn.BatchNorm2d) -> None:
    norm.affine, norm.weight, norm.bias = False, None, None


def without_averages(norm: nn.BatchNorm2d) -> None:
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None


@pytest.mark.parametrize("change", [nn.Module.eval, cumulative, without_weight, without_averages])
def test_other_batch_norms_stay_the_librarys(change, pooled_norms):
    network, images = normalised_chain(kernel_size=2), torch.randn(4, 3, 8, 8).double()
    change(network[1])
    expected = copy.deepcopy(network)(images)
    with pooling_before_norm(network):
        assert torch.equal(network(images), expected) and not pooled_norms
        assert torch.equal(network.eval()(images), copy.deepcopy(network)(images))


def test_a_wrong_number_of_channels_is_the_librarys_error(pooled_norms):
    network = normalised_chain(kernel_size=2)[1:]
    with pytest.raises(RuntimeError, match="running_mean"), pooling_before_norm(network):
        network(torch.randn(4, 7, 8, 8).double())
    assert "forward" not in vars(network)


def test_small_batches_half_precision_and_other_devices_keep_the_librarys_batch_norm():
    norm, images = nn.BatchNorm2d(2**6), torch.empty(2**4, 2**6, 2**5, 2**5)
    assert pooling._gains(images, norm)
    assert not pooling._gains(images[1:], norm)
    assert not pooling._gains(images.bfloat16(), norm)
    assert not pooling._gains(images.bfloat16(), copy.deepcopy(norm).bfloat16())
    assert not pooling._gains(images.to("meta"), norm)
