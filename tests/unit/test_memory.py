"""Memory layouts that a CPU cannot train in (oneDNN issue 6035, by shape), and kept memory."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from linearconv import LinearConv2d
from linearconv.engine.fast.memory import row_major_images, unsafe_channels_last
from linearconv.engine.fast.runtime import AcceleratedModel, Runtime
from linearconv.engine.optimizer import build_optimizer
from linearconv.engine.step import TrainStep
from models import Variant, build_model, model_names

CHANNELS_LAST = Runtime(channels_last=True)


@pytest.mark.parametrize(
    ("conv", "unsafe"),
    [
        (nn.Conv2d(1, 8, 1, stride=2), True),
        (nn.Conv2d(15, 8, 1, stride=(1, 2)), True),
        (LinearConv2d(8, 8, 1, stride=2), True),
        (nn.Conv2d(32, 32, 1, stride=2, groups=4), True),
        (nn.Conv2d(16, 8, 1, stride=2), False),
        (nn.Conv2d(1, 8, 1), False),
        (nn.Conv2d(1, 8, 3, stride=2), False),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_unsafe_are_strided_1x1_convolutions_of_few_channels(conv, unsafe):
    model = nn.Sequential(nn.Identity(), conv)
    assert unsafe_channels_last(model) == (["1"] if unsafe else [])


@pytest.mark.parametrize("name", model_names())
def test_no_network_of_the_paper_is_unsafe(name):
    with torch.device("meta"):
        model = build_model(name, Variant(), in_channels=3, classes=10)
    assert unsafe_channels_last(model) == []


def shortcut(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 8, 1, stride=2))


def is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.stride() == tensor.to(memory_format=torch.channels_last).stride()


def test_products_which_are_channels_last_stay_out_of_such_a_network():
    model = nn.Sequential(
        nn.Conv2d(512, 512, 3, padding=1), nn.Conv2d(512, 8, 1), nn.Conv2d(8, 8, 1, stride=2)
    )
    seen = []
    model[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    speed = Runtime(channels_last=True, small_image_products=True)
    with AcceleratedModel(model, speed).rewritten(), torch.no_grad():
        model(torch.randn(2, 512, 4, 4))
    assert not is_channels_last(seen[0])


def test_the_provenance_tells(caplog):
    model = shortcut(8)
    step = TrainStep(model, build_optimizer(model, 1e-3, fused=False), None, "fp32")
    _, notes = AcceleratedModel(model, CHANNELS_LAST).steps(step, None)
    assert notes == {"steps": "eager, row-major because of 1"}


@pytest.mark.parametrize("channels", [8, 16])
def test_such_a_network_stays_row_major_and_says_so_once(channels, caplog):
    accelerated = AcceleratedModel(shortcut(channels), CHANNELS_LAST)
    seen: list[torch.Tensor] = []
    for module in accelerated.model:
        module.register_forward_hook(lambda module, inputs, output: seen.extend(inputs))
    images = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    with accelerated.rewritten():
        for _ in range(2):
            accelerated.model(images)
    safe = channels == 16
    assert [is_channels_last(tensor) for tensor in seen] == [safe] * 4
    assert [is_channels_last(conv.weight) for conv in accelerated.model][0] == safe
    assert caplog.text.count("channels_last is off for this network") == (not safe)
    assert safe or "oneDNN issue 6035): 1" in caplog.text


def test_other_devices_keep_channels_last(caplog):
    with torch.device("meta"):
        accelerated = AcceleratedModel(shortcut(8), CHANNELS_LAST)
    assert is_channels_last(accelerated.model[0].weight) and not caplog.text


def test_images_of_one_channel_become_row_major_too():
    """Their two layouts differ by nothing but a stride that no address depends on."""
    images = torch.randn(2, 1, 4, 4).to(memory_format=torch.channels_last)
    seen = []
    model = nn.Identity()
    model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].stride()))
    with row_major_images(model):
        model(images)
    model(images)
    assert seen == [(16, 16, 4, 1), images.stride()]
    assert images.stride() != (16, 16, 4, 1)


FAULTS = """
import resource, sys, torch
from linearconv.engine.fast.memory import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_freed_memory()


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def work():
    return sum(torch.full((12 * 2**20,), float(i)).sum().item() for i in range(25))


work()  # small blocks that fall into a freed large one may still make the heap grow a few times
before = faults()
print(work(), faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_kept_memory_is_not_faulted_in_again():
    outcomes = {}
    for mode in ("keep", "return"):
        command = [sys.executable, "-c", FAULTS, mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        outcomes[mode] = tuple(map(float, done.stdout.split()))
    assert outcomes["keep"][0] == outcomes["return"][0]
    assert outcomes["keep"][1] < 0.25 * outcomes["return"][1]
