"""Devices that are there and cannot be used, with stand-ins for torch.cuda's functions."""

import logging

import pytest
import torch

from configs import compose
from configs.checks import check_ready
from linearconv.engine import device as device_module
from linearconv.engine.device import (
    CUDNN_HEURISTICS,
    cuda_devices,
    resolve_device,
    unusable_cuda,
)
from linearconv.engine.provenance import provenance
from linearconv.errors import UserError
from train import out_of_memory

TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040).\nPlease update"


@pytest.fixture
def old_driver(monkeypatch):
    """A GPU whose driver is too old for the installed torch."""

    def refuse():
        raise RuntimeError(TOO_OLD)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)


def test_a_driver_too_old_for_torch_is_said_once(old_driver, caplog):
    assert cuda_devices() == 0
    assert unusable_cuda() == TOO_OLD.splitlines()[0]
    caplog.set_level(logging.WARNING)
    assert resolve_device("auto") == torch.device("cpu")
    (message,) = caplog.messages
    assert "using the CPU" in message and "driver on your system is too old" in message


def test_a_device_that_is_asked_for_by_name_is_refused_with_the_reason(old_driver):
    config = compose(["model=base", "variant=Conv", "device=cuda"])
    with pytest.raises(UserError, match="torch can use 0 CUDA device.*too old .*device=cpu"):
        check_ready(config)


def test_where_there_is_no_gpu_nothing_is_said(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu") and not caplog.messages
    assert unusable_cuda() is None


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of compute capability 5.0; returns what sets the error of its first operation."""
    for name, value in {
        "is_available": True,
        "device_count": 2,
        "get_device_capability": (5, 0),
        "get_device_name": "Some GPU",
        "get_arch_list": ["sm_80", "sm_90"],
        "set_device": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setenv(CUDNN_HEURISTICS, "")  # so that it is restored
    monkeypatch.delenv(CUDNN_HEURISTICS)

    def fails(error):
        def refuse(*_, **__):
            raise error

        monkeypatch.setattr(device_module.torch, "ones", refuse)

    return fails


def test_a_gpu_without_kernels_is_named_with_what_torch_supports(gpu):
    gpu(RuntimeError("CUDA error: no kernel image is available\nCompile with ..."))
    with pytest.raises(UserError) as error:
        resolve_device("cuda:1")
    for words in ("cuda:1 (Some GPU", "5.0", torch.__version__, "sm_80, sm_90", "no kernel image"):
        assert words in str(error.value)
    assert "Compile with" not in str(error.value)


def test_too_little_free_memory_is_named(gpu):
    gpu(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.\nSee ..."))
    with pytest.raises(UserError, match="cuda has too little free memory: .*2.00 MiB.* Free some"):
        resolve_device("auto")


def test_running_out_of_memory_while_training_is_one_line(cli, small, monkeypatch):
    def fail(*_, **__):
        raise torch.cuda.OutOfMemoryError("Tried to allocate 2 GiB, 1 GiB is free.\nMore")

    monkeypatch.setattr("train.execute", fail)
    done = cli("train", "model=base", "variant=Conv", *small)
    assert done.code == 1
    (line,) = [line for line in done.err.splitlines() if "out of memory" in line]
    for words in ("batches of 16 images", "1 GiB is free.", "runtime.eval_batch_size (now"):
        assert words in line
    assert "Traceback" not in done.err
    config = compose(["model=base", "variant=Conv"])
    assert "\n" not in out_of_memory(config, torch.cuda.OutOfMemoryError("a\nb"))


def test_the_provenance_names_what_the_bits_depend_on(gpu, monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(device_module, "_try", lambda _: None)
    found = provenance(resolve_device("cuda"))
    assert found["device"] == "Some GPU" and found["compute_capability"] == "5.0"
    assert found["cudnn"] == 91002 and found["cuda"] == torch.version.cuda
    assert found["tf32_overrides"] == {"NVIDIA_TF32_OVERRIDE": "0"}
    assert found["cudnn_heuristics"] == "B"
    monkeypatch.setenv(CUDNN_HEURISTICS, "0")
    assert provenance(resolve_device("cuda"))["cudnn_heuristics"] == "A"
    on_cpu = provenance(torch.device("cpu"))
    assert [on_cpu[key] for key in ("cuda", "cudnn", "compute_capability")] == [None] * 3
