"""Other ways to compute the same network: small images as products, pooling before ReLU."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from linearconv import LinearConv2d
from linearconv.engine.fast import small_images
from linearconv.engine.fast.batch_counts import batches_uncounted, count_batches
from linearconv.engine.fast.pooling import pooling_before_relu
from linearconv.engine.fast.small_images import small_image_products


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
    assert small_images._pays_off(images, conv.weight)
    assert not small_images._pays_off(images[:, :64], narrow.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not small_images._pays_off(images, conv.weight)


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

    def note(module, _):
        if module in set(network):
            called.append(type(module).__name__)

    handle = register_module_forward_pre_hook(note)  # hooks of their own would prevent the swap
    expected = outcomes(network, images)
    with pooling_before_relu(network):
        found = outcomes(network, images)
    after = outcomes(network, images)
    handle.remove()
    assert called[:4] == called[8:] == ["Conv2d", "ReLU", "MaxPool2d", "ReLU"]
    assert called[4:8] == ["Conv2d", "MaxPool2d", "ReLU", "ReLU"]
    for mine, theirs, again in zip(found, expected, after, strict=True):
        assert torch.equal(mine, theirs) and torch.equal(again, theirs)
    assert 0 < (expected[0] == 0).sum() < expected[0].numel()


@pytest.mark.parametrize("before", [[], [nn.Identity()]])
def test_pooling_stays_behind_a_relu_that_changes_what_others_read(before):
    """The block of a network with pre-activation, whose shortcut gets ReLU's output."""
    block, images = (
        nn.Sequential(*before, nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        torch.randn(9, 9),
    )
    plain, swapped = images.clone()[None], images.clone()[None]
    block(plain)
    with pooling_before_relu(block):
        block(swapped)
    assert torch.equal(swapped, plain) and (plain >= 0).all()


@pytest.mark.parametrize("watched", [1, 2])
def test_pooling_stays_behind_a_relu_if_either_has_hooks(watched):
    network, images, seen = chain(kernel_size=2), torch.randn(2, 3, 8, 8), []
    network[watched].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    network(images)
    with pooling_before_relu(network):
        network(images)
    assert torch.equal(*seen)


class Taps(nn.Module):
    """Reads what is between the layers of a container, in the way `read`."""

    def __init__(self, read: str):
        super().__init__()
        self.features, self.read = chain(kernel_size=2), read

    def forward(self, x):
        if self.read == "iterated":
            taps = []
            for layer in self.features:
                x = layer(x)
                taps.append(x.mean())
            return torch.stack(taps)
        if self.read == "sliced":
            return self.features[:2](x).mean()[None]
        return self.features[2](self.features[1](x)).mean()[None]


@pytest.mark.parametrize("read", ["iterated", "sliced", "indexed"])
def test_layers_that_are_called_one_by_one_keep_their_order(read):
    torch.manual_seed(0)
    network, images = Taps(read), torch.randn(2, 3, 8, 8)
    expected = network(images)
    with pooling_before_relu(network):
        assert torch.equal(network(images), expected)


def test_a_relu_whose_output_is_kept_stays():
    network, kept = chain(kernel_size=2), []
    network[1].register_forward_hook(lambda module, inputs, output: kept.append(output.shape))
    with pooling_before_relu(network):
        network(torch.randn(2, 3, 8, 8))
    assert kept == [(2, 4, 8, 8)]


def test_pooling_that_also_returns_indices_stays():
    network = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, return_indices=True))
    images = torch.randn(1, 1, 4, 4)
    with pooling_before_relu(network):
        values, _ = network(images)
    assert torch.equal(values, F.max_pool2d(images.relu(), 2))


def test_batch_norms_count_their_batches_after_the_epoch():
    """Those in training mode that the plain class would count; the running means are as ever."""

    class Own(nn.BatchNorm2d):
        pass

    def norms() -> nn.Sequential:
        torch.manual_seed(0)
        frozen, uncounted = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)
        cumulative, own = nn.BatchNorm2d(3, momentum=None), Own(3)
        model = nn.Sequential(nn.BatchNorm2d(3), frozen, uncounted, cumulative, own)
        frozen.eval()
        return model

    plain, other = norms(), norms()
    images = torch.randn(4, 2, 3, 5, 5)
    for batch in images:
        plain(batch)
    with batches_uncounted(other):
        for batch in images:
            other(batch)
        assert [int(m.num_batches_tracked) for m in (other[0], other[3])] == [0, 4]
        count_batches(other, len(images))
    assert [int(other[i].num_batches_tracked) for i in (0, 1, 3, 4)] == [4, 0, 4, 4]
    for name, tensor in plain.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
