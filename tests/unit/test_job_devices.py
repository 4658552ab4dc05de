"""Which device each slot gets, on machines with more devices than this one."""

import os

import pytest
import torch

from configs import compose
from scripts.jobs.devices import sharing_note, slots, visible_devices


@pytest.fixture
def gpus(monkeypatch):
    """A machine with so many CUDA devices, of which the variable names some."""

    def machine(count: int, named: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if named is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)

    return machine


@pytest.mark.parametrize(
    ("count", "named", "device", "expected"),
    [
        (0, None, "auto", []),
        (0, "", "auto", []),
        (0, "0,1", "auto", []),  # a CPU build of torch
        (2, None, "auto", ["0", "1"]),
        (2, None, "cpu", []),
        (2, "3, 5", "auto", ["3", "5"]),
        (1, "GPU-8f2e,-1,0", "auto", ["GPU-8f2e"]),  # CUDA stops at the first that is not there
        (2, "3,5", "cuda:1", ["5"]),
        (2, None, "cuda:1", ["1"]),
        (2, None, "cuda", ["0", "1"]),
    ],
)
def test_visible_devices(gpus, count, named, device, expected):
    gpus(count, named)
    assert visible_devices(device) == expected


def test_a_driver_too_old_for_torch_gives_no_devices(gpus, monkeypatch):
    """device_count() asks NVML, which knows the device; torch still cannot use it."""
    gpus(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert visible_devices("auto") == []
    assert slots(config(), 1)[0].environment == {}


def config(*overrides: str):
    return compose(["model=base", "variant=Conv", *overrides])


def test_slots_are_spread_over_the_devices(gpus):
    gpus(2, "3,5")
    found = slots(config(), 2)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in found] == ["3", "5", "3", "5"]
    assert {slot.arguments for slot in found} == {()}
    # A process sees its one device as the first.
    (only,) = slots(config("device=cuda:1"), 1)
    assert only.environment["CUDA_VISIBLE_DEVICES"] == "5" and only.arguments == ("device=cuda",)


def test_slots_share_the_threads_of_a_cpu(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(6), raising=False)
    assert [slot.arguments for slot in slots(config(), 1)] == [()]  # torch's own choice
    assert [slot.arguments for slot in slots(config(), 4)] == [("runtime.threads=1",)] * 4
    assert [slot.arguments for slot in slots(config(), 2)] == [("runtime.threads=3",)] * 2
    assert [slot.arguments for slot in slots(config(), 8)] == [("runtime.threads=1",)] * 8
    assert [slot.arguments for slot in slots(config("runtime.threads=2"), 2)] == [(), ()]


def test_threads_are_counted_where_the_system_has_no_affinity(gpus, monkeypatch):
    """On macOS and Windows."""
    gpus(0)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [slot.arguments for slot in slots(config(), 2)] == [("runtime.threads=4",)] * 2


def test_runs_that_share_a_gpu_without_mps_are_told(gpus, monkeypatch, tmp_path):
    gpus(2)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert "take turns" in sharing_note(slots(config(), 2))
    assert sharing_note(slots(config(), 1)) == ""
    (tmp_path / "control").touch()
    assert sharing_note(slots(config(), 2)) == ""
    gpus(0)
    assert sharing_note(slots(config(), 2)) == ""
