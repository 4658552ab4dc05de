"""Run the CUDA tests, then report each GPU bar as met or missed.

    make certify    # or python scripts/benchmark.py certify

Exit code 0: tests passed and all bars met; 1: a test failed or a bar was missed; 2: no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from configs.cli import FAILED, MISTAKE
from linearconv.engine.device import resolve_device, unusable_cuda
from linearconv.engine.provenance import provenance
from scripts.bench import speed
from scripts.bench.options import parser_of
from scripts.bench.rows import write

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = "Conv,e,L,Lr,LRr"
COMMON = ("--images=6400", "--device=cuda")


def add_options(parser: argparse.ArgumentParser) -> None:
    """It takes none of its own, and sets those that all benchmarks have."""


def run(args: argparse.Namespace) -> int:
    """Run tests and benchmarks on the GPU; returns the exit code."""
    if not torch.cuda.is_available():
        reason = unusable_cuda() or "torch sees none"
        print(f"certify needs a CUDA device: {reason}", file=sys.stderr)
        return MISTAKE
    facts = provenance(resolve_device("cuda"))
    print(
        f"{facts['device']} (compute capability {facts['compute_capability']}), driver "
        f"{facts['driver']}, torch {torch.__version__} for CUDA {facts['cuda']}, cuDNN "
        f"{facts['cudnn']}",
        flush=True,
    )
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "cuda"], cwd=ROOT)
    met = [("CUDA tests", "all pass", "", tests.returncode == 0)]
    fast = {}
    for model in ("base", "vgg11", "resnet18"):
        rows = _measure(model, "usual,fast")
        print(speed.text(rows), f"wrote {write(rows)}", sep="\n", flush=True)
        fast[model] = {row["variant"]: row for row in rows if row["mode"] == "fast"}
    generated = {
        row["variant"]: row for row in _measure("vgg11", "fast", "runtime.execution=generate")
    }
    met += bars(fast, generated)
    met.append(_deterministic())
    for name, bar, value, ok in met:
        print(f"{'met   ' if ok else 'MISSED'}  {name:<52} {bar:>12}  {value}")
    return 0 if all(ok for *_, ok in met) else FAILED


def _measure(model: str, modes: str, *overrides: str) -> list[dict[str, Any]]:
    """The rows of the mode speed, as `python scripts/benchmark.py` measures them."""
    options = [f"--model={model}", f"--variants={VARIANTS}", f"--modes={modes}"]
    return speed.measure(parser_of(speed).parse_intermixed_args([*options, *COMMON, *overrides]))


def _deterministic() -> tuple[str, str, str, bool]:
    """What `runtime.deterministic=true` costs; no bar, but torch must have such algorithms.

    In processes of their own: what cuBLAS needs for it must be set before it is first used.
    """
    name = "vgg11-LRr, step with runtime.deterministic=true over without"
    milliseconds = []
    for overrides in ([], ["runtime.deterministic=true"]):
        done = subprocess.run(
            [sys.executable, "scripts/benchmark.py", "--model=vgg11", "--variants=LRr"]
            + ["--modes=fast", "--format=json", *COMMON, *overrides],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return name, "captured", said[-1], False
        (row,) = json.loads(done.stdout)
        if not row["steps"].startswith("captured"):
            return name, "captured", row["steps"], False
        milliseconds.append(row["ms_per_step"])
    without, with_it = milliseconds
    return name, "captured", f"{with_it / without:.3f}", True


def bars(
    fast: dict[str, dict[str, dict[str, Any]]], generated: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, str, str, bool]]:
    """Name, bar, value and whether it is met, for each bar of an H100-class GPU.

    Args:
        fast: rows of `scripts/benchmark.py` by model and variant, with ratios to the usual loop.
        generated: rows of VGG11 with `runtime.execution=generate`, by variant.
    """
    vgg11 = fast["vgg11"]

    def at_least(name: str, value: float, bar: float) -> tuple[str, str, str, bool]:
        return name, f">= {bar:g}", f"{value:.4g}", value >= bar

    def at_most(name: str, value: float, bar: float) -> tuple[str, str, str, bool]:
        return name, f"<= {bar:g}", f"{value:.4g}", value <= bar

    for model in ("base", "vgg11"):
        ratio = fast[model]["Conv"]["ratio_to_usual"]
        yield at_least(f"{model}-Conv, fast over usual", ratio, 10)
    yield at_least("vgg11-LRr, training images/s", 64e3 / vgg11["LRr"]["ms_per_step"], 60e3)
    for model in ("vgg11", "resnet18"):
        step = fast[model]["LRr"]["step_over_conv"]
        yield at_most(f"{model}-LRr, step over Conv's", step, 0.80)
    for variant, bar in (("Lr", 1.15), ("LRr", 1.05)):
        step = generated[variant]["step_over_conv"]
        yield at_most(f"vgg11-{variant}, step over Conv's, generate", step, bar)
    loss = vgg11["Lr"]["ms_per_step"] / vgg11["L"]["ms_per_step"]
    yield at_most("vgg11, step with the correlation loss over without", loss, 1.03)
    for batch in ("b1", "b256"):
        latency = vgg11["LRr"][f"latency_over_conv_fused_{batch}"]
        yield at_most(f"vgg11-LRr fused, latency over Conv's, {batch}", latency, 1.03)
    for model, rows in fast.items():
        notes = {row["steps"] for row in rows.values()}
        captured = all(note.startswith("captured") for note in notes)
        yield f"{model}, steps", "captured", "; ".join(sorted(notes)), captured
    yield at_most("vgg11-LRr, device operations a step", vgg11["LRr"]["device_ops_per_step"], 155)
