"""Training and inference: a usual loop against this project's, in one process.

    python scripts/benchmark.py --model vgg11 --variants Conv,Lr,LRr --rounds 5
    python scripts/benchmark.py --model base --write    # results/benchmarks/<device>-torch<v>.csv

`usual` is a typical research loop: torchvision transforms on PIL images, a DataLoader with 2
workers, eager PyTorch, `.item()` at each step, generated weights. `fast` is runtime=fast. An epoch
is training and evaluation, with five training images per test image as in CIFAR-10; the images are
random, since no timing depends on them. Rounds alternate between the cases and every ratio is taken
within a round, so that other load on the machine slows both sides. All figures are medians over the
rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from configs import compose, identify
from linearconv.engine.device import resolve_device
from linearconv.engine.precision import precision_flags
from linearconv.errors import UserError
from scripts.bench.cases import CASES, FastCase, random_images
from scripts.bench.rows import write
from scripts.bench.timing import device_limit, profiled


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this mode alone."""
    parser.add_argument("--model", default="vgg11")
    parser.add_argument("--variants", default="Conv,Lr,LRr", help="comma-separated; Conv first")
    parser.add_argument("--modes", default="usual,fast", help="usual, fast or both")
    parser.add_argument("--images", type=int, default=3200, help="training images in an epoch")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also print the kernels of runtime=fast's steps, the longest first",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py; runtime.* for mode fast"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    rows = measure(args)
    if args.write:
        print(f"wrote {write(rows)}", file=sys.stderr)
    print(json.dumps(rows, indent=1) if args.format == "json" else text(rows))
    return 0


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each variant and mode.

    Raises:
        UserError: an invalid argument.
    """
    if args.write and args.overrides:
        raise UserError(f"--write takes no overrides, got {' '.join(args.overrides)}")
    modes = args.modes.split(",")
    if not set(modes) <= set(CASES):
        raise UserError(f"--modes must be from {', '.join(CASES)}, got {args.modes}")
    device = resolve_device(args.device)
    configs = {
        variant: compose(
            [
                f"model={args.model}",
                f"variant={variant}",
                f"precision={args.precision}",
                *args.overrides,
            ]
        )
        for variant in args.variants.split(",")
    }
    recipe = next(iter(configs.values())).recipe
    if args.rounds < 1 or args.images < recipe.batch_size:
        raise UserError(
            f"--rounds must be at least 1 and --images at least a batch, {recipe.batch_size}"
        )
    spans = {
        config.recipe.batch_size * config.regularizer.every
        for config in configs.values()
        if identify(config)["regularizer"]
    }
    if args.write and any(args.images % span for span in spans):
        raise UserError(
            f"--write takes --images in multiples of {max(spans)}, so that as many steps as in "
            f"training have the correlation loss, got {args.images}"
        )
    if "usual" in modes and recipe.optimizer != "adam":
        raise UserError(
            f"the usual loop trains with Adam, got recipe.optimizer={recipe.optimizer}: add "
            "--modes fast"
        )
    dataset = random_images(next(iter(configs.values())), args.images)
    with precision_flags(args.precision):
        device_limit(args.precision, device)  # loads the libraries before the first case is timed
        cases = [
            CASES[mode](config, dataset, device) for config in configs.values() for mode in modes
        ]
        for _ in range(args.rounds):
            for case in cases:
                case.time_round()
        limit = device_limit(args.precision, device)
        if args.profile:
            for case in cases:
                if isinstance(case, FastCase):
                    table = profiled(case.steps_alone, device)
                    print(case.config.variant.name, table, sep="\n", file=sys.stderr)
        return [case.row(cases, limit) for case in cases]


def text(rows: list[dict[str, Any]]) -> str:
    """The main figures as a table."""
    first = rows[0]
    lines = [
        f"{first['model']} on {first['device']}, torch {first['torch']}, {first['precision']}, "
        f"{first['threads']} threads, {first['rounds']} rounds",
        f"{'variant':<8}{'mode':<7}{'images/s':>10}{'ms/step':>9}{'/usual':>8}{'/Conv':>7}"
        f"{'of limit':>10}{'ops':>6}{'latency, ms: b1':>17}{'fused':>8}{'b256':>9}{'fused':>8}",
    ]
    for row in rows:
        ratios = (
            f"{row[key]:.2f}" if row[key] else "-" for key in ("ratio_to_usual", "step_over_conv")
        )
        lines.append(
            "{:<8}{:<7}{:>10.0f}{:>9.1f}{:>8}{:>7}{:>10.2f}{:>6}{:>17.2f}{:>8.2f}{:>9.1f}{:>8.1f}".format(
                row["variant"],
                row["mode"],
                row["images_per_s"],
                row["ms_per_step"],
                *ratios,
                row["fraction_of_limit"],
                row["device_ops_per_step"] or "-",
                row["latency_ms_unfused_b1"],
                row["latency_ms_fused_b1"],
                row["latency_ms_unfused_b256"],
                row["latency_ms_fused_b256"],
            )
        )
    return "\n".join(lines)
