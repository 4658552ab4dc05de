"""Converted networks in files, with what is needed to convert the network that loads them."""

from __future__ import annotations

import os
from typing import BinaryIO

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from linearconv.convert import convert, named_modules_of
from linearconv.layer import LinearConv2d

File = str | os.PathLike[str] | BinaryIO


def save_converted(model: nn.Module, file: File) -> None:
    """Write a network's weights, and which layers are LinearConv2d, for `load_converted`.

    Args:
        model: the network, or what `deploy` made of it; low-rank pairs are not known to the file.
        file: a path or an open file; it is read without executing code (`weights_only=True`).

    Raises:
        ValueError: the network is wrapped, so that its names are not those of the network.
    """
    if isinstance(model, (nn.DataParallel, DistributedDataParallel)) or hasattr(model, "_orig_mod"):
        raise ValueError(f"save the network itself, not its {type(model).__name__}")
    layers = {
        names[0]: {
            "alpha": len(layer.primary) / layer.out_channels,
            "rank": layer.rank,
            "execution": layer.execution,
        }
        for layer, names in named_modules_of(model, LinearConv2d).items()
    }
    torch.save({"layers": layers, "state_dict": model.state_dict()}, file)


def load_converted(model: nn.Module, file: File) -> nn.Module:
    """Convert a network as the saved one was, and load its weights.

    Args:
        model: the network as it was before it was converted, with any weights; it is changed.
        file: written by `save_converted`.

    Returns:
        The converted network, on the device of `model`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it was not written by `save_converted`, or the network has no convolution of one
            of the names.
        RuntimeError: the weights do not fit.
    """
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises many types for files that are not its own
        raise ValueError(f"{file} was not written by linearconv.save_converted") from error
    if not isinstance(saved, dict) or set(saved) != {"layers", "state_dict"}:
        raise ValueError(f"{file} was not written by linearconv.save_converted")
    layers = saved["layers"]
    for rank in {layer["rank"] for layer in layers.values()}:
        alpha = {name: layer["alpha"] for name, layer in layers.items() if layer["rank"] == rank}
        model = convert(model, alpha=alpha, rank=rank, min_reduction=False).model
    model.load_state_dict(saved["state_dict"])
    for name, layer in layers.items():
        model.get_submodule(name).execution = layer["execution"]
    return model
