"""Time both executions of each LinearConv layer, and show where `auto` picks the slower one.

    python scripts/benchmark.py layers --model vgg11 --variant LRr
    python scripts/benchmark.py layers --model resnet18 --write    # results/benchmarks/layers/*.csv

Each layer is timed by itself, forward and backward, on random inputs of the shape that it gets in
the network, with the memory format and small-image matrix products of runtime=fast. Rounds
alternate between the executions; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from configs import compose, identify
from data import SIZE
from linearconv import LinearConv2d
from linearconv.engine.device import device_name, resolve_device
from linearconv.engine.fast.memory import keep_freed_memory, unsafe_channels_last
from linearconv.engine.fast.small_images import small_image_products
from linearconv.engine.precision import autocast, effective_precision, precision_flags
from linearconv.errors import UserError
from scripts.bench.rows import BENCHMARKS, write
from scripts.bench.timing import synchronise
from train import initial_model

CALLS = 5
"""Calls per round."""

TIE = 0.05
"""A choice is wrong if it is slower than the other by more than this fraction."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this mode alone."""
    parser.add_argument("--model", default="vgg11")
    parser.add_argument("--variant", default="LRr", choices=("L", "Lr", "LRr"))
    parser.add_argument("--batch-size", type=int, default=64)


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    rows = measure(args)
    print(text(rows))
    if args.write:
        path = write(rows, BENCHMARKS / "layers", ("model", "variant", "precision", "layer"))
        print(f"wrote {path}", file=sys.stderr)
    return 0


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each LinearConv layer that supports both executions.

    Raises:
        UserError: an invalid argument.
    """
    if args.rounds < 1 or args.batch_size < 1:
        raise UserError("--rounds and --batch-size must be at least 1")
    config = compose([f"model={args.model}", f"variant={args.variant}"])
    device = resolve_device(args.device)
    model = initial_model(config, identify(config)).to(device)
    if device.type == "cpu" and (unsafe := unsafe_channels_last(model)):
        raise UserError(f"these layers cannot be trained in channels_last: {', '.join(unsafe)}")
    model = model.to(memory_format=torch.channels_last)
    keep_freed_memory()
    images = torch.zeros(2, config.dataset.channels, SIZE, SIZE, device=device)
    with precision_flags(args.precision), small_image_products(model):
        return [
            {
                "model": args.model,
                "variant": args.variant,
                "device": device_name(device),
                "precision": effective_precision(args.precision, device),
                "torch": torch.__version__,
                "rounds": args.rounds,
                "layer": name,
                "input": "x".join(map(str, shape)),
                "filters": layer.out_channels,
                "kernel": "x".join(map(str, layer.kernel_size)),
                "auto": layer.resolved_execution,
                **times(layer, (args.batch_size, *shape), device, args),
            }
            for name, layer, shape in layers(model, images)
        ]


def layers(model: nn.Module, images: Tensor) -> list[tuple[str, LinearConv2d, torch.Size]]:
    """Each ungrouped LinearConv layer with its name and the shape (C, H, W) of its input."""
    found: list[tuple[str, LinearConv2d, torch.Size]] = []

    def watch(name: str, layer: LinearConv2d) -> Any:
        return layer.register_forward_hook(
            lambda module, inputs, output: found.append((name, layer, inputs[0].shape[1:]))
        )

    handles = [
        watch(name, module)
        for name, module in model.named_modules()
        if isinstance(module, LinearConv2d) and module.groups == 1
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found


def times(
    layer: LinearConv2d, shape: tuple[int, ...], device: torch.device, args: argparse.Namespace
) -> dict[str, float]:
    """Milliseconds of a layer's forward and backward pass in each execution."""
    images = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
    images.requires_grad_()
    measured: dict[str, list[float]] = {"generate": [], "factored": []}
    for round_ in range(args.rounds + 1):
        for execution, milliseconds in measured.items():
            layer.execution = execution
            synchronise(device)
            began = time.perf_counter()
            for _ in range(CALLS):
                with autocast(args.precision, device):
                    outputs = layer(images)
                outputs.backward(torch.ones_like(outputs))
            synchronise(device)
            if round_:  # the first round is a warm-up
                milliseconds.append(1e3 * (time.perf_counter() - began) / CALLS)
    layer.execution = "auto"
    return {f"ms_{name}": statistics.median(values) for name, values in measured.items()}


def text(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, and how many choices are wrong."""
    first = rows[0]
    lines = [
        f"{first['model']}-{first['variant']} on {first['device']}, torch {first['torch']}, "
        f"{first['precision']}, {first['rounds']} rounds",
        f"{'layer':<28}{'input':>12}{'filters':>9}{'kernel':>8}{'generate, ms':>14}"
        f"{'factored, ms':>14}  auto",
    ]
    wrong = 0
    for row in rows:
        chosen, other = row["ms_generate"], row["ms_factored"]
        if row["auto"] == "factored":
            chosen, other = other, chosen
        is_wrong = chosen > (1 + TIE) * other
        wrong += is_wrong
        lines.append(
            f"{row['layer']:<28}{row['input']:>12}{row['filters']:>9}{row['kernel']:>8}"
            f"{row['ms_generate']:>14.2f}{row['ms_factored']:>14.2f}  {row['auto']}"
            + " is slower"
            * is_wrong
        )
    lines.append(f"{wrong} of {len(rows)} choices are slower by more than {TIE:.0%}")
    return "\n".join(lines)
