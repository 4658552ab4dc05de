"""Throughput of several training processes on one device, as with reproduce.py --slots.

    python scripts/benchmark.py slots --model base --variant Conv --slots 1,2
    python scripts/benchmark.py slots --slots 1,2,4 --write    # results/benchmarks/slots/*.csv

Each process trains epochs of random images with runtime=fast, as the mode speed does; on a CPU they
share its threads. In each round, the processes of a group start together and the slowest one's time
counts; rounds alternate between the groups, ratios are taken within a round, and all figures are
medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from configs import compose
from linearconv.engine.device import device_name, resolve_device
from linearconv.engine.precision import effective_precision, precision_flags
from linearconv.errors import UserError
from scripts.bench.cases import FastCase, random_images
from scripts.bench.rows import BENCHMARKS, write
from scripts.bench.timing import synchronise


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this mode alone."""
    parser.add_argument("--model", default="base")
    parser.add_argument("--variant", default="Conv")
    parser.add_argument("--slots", default="1,2", help="numbers of processes; 1 first")
    parser.add_argument("--images", type=int, default=3200, help="training images in an epoch")


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    rows = measure(args)
    print(f"{rows[0]['model']}-{rows[0]['variant']} on {rows[0]['device']}")
    for row in rows:
        print(
            f"{row['slots']} at once, {row['threads_each']} threads each: "
            f"{row['images_per_s']:.0f} images/s in total, x{row['ratio_to_first']:.2f}"
        )
    if args.write:
        path = write(rows, BENCHMARKS / "slots", ("model", "variant", "precision", "slots"))
        print(f"wrote {path}", file=sys.stderr)
    return 0


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each number of processes.

    Raises:
        UserError: an invalid argument.
    """
    numbers = args.slots.split(",")
    if not all(n.isdecimal() and int(n) > 0 for n in numbers) or args.rounds < 1:
        raise UserError(f"--slots must be numbers like 1,2,4, got {args.slots}; --rounds above 0")
    compose([f"model={args.model}", f"variant={args.variant}"])  # fail before starting processes
    device = resolve_device(args.device)
    groups = [Group(int(n), args) for n in numbers]
    seconds = {group: [] for group in groups}
    try:
        for _ in range(args.rounds):
            for group in groups:
                seconds[group].append(group.time_round())
    finally:
        for group in groups:
            group.stop()
    first = seconds[groups[0]]
    return [
        {
            "model": args.model,
            "variant": args.variant,
            "device": device_name(device),
            "torch": torch.__version__,
            "precision": effective_precision(args.precision, device),
            "rounds": args.rounds,
            "slots": group.number,
            "threads_each": group.threads,
            "images_per_s": group.number * args.images / statistics.median(times),
            "ratio_to_first": statistics.median(
                group.number / groups[0].number * a / b for a, b in zip(first, times, strict=True)
            ),
        }
        for group, times in seconds.items()
    ]


class Group:
    """N processes that train at the same time.

    Attributes:
        number: number of processes.
        threads: CPU threads per process.
    """

    def __init__(self, number: int, args: argparse.Namespace) -> None:
        self.number = number
        self.threads = max(1, torch.get_num_threads() // number)
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(number)]
        self._ends = [ours for ours, _ in pairs]
        self._processes = [
            context.Process(target=train, args=(args, self.threads, theirs)) for _, theirs in pairs
        ]
        for process in self._processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()  # so that recv() fails if a process dies
        self._receive()  # wait until all are warmed up

    def _receive(self) -> list[float]:
        try:
            return [end.recv() for end in self._ends]
        except EOFError:
            raise UserError(f"one of {self.number} processes failed: see above") from None

    def time_round(self) -> float:
        """Seconds until the slowest process has trained an epoch."""
        for end in self._ends:
            end.send(True)
        return max(self._receive())

    def stop(self) -> None:
        """End the processes."""
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join()


def train(args: argparse.Namespace, threads: int, end: Connection) -> None:
    """A worker process: signals that it is warmed up, then trains an epoch per request."""
    torch.set_num_threads(threads)
    config = compose(
        [f"model={args.model}", f"variant={args.variant}", f"precision={args.precision}"]
    )
    device = resolve_device(args.device)
    with precision_flags(args.precision):
        case = FastCase(config, random_images(config, args.images), device)
        case.epoch()
        seconds = 0.0
        while True:
            end.send(seconds)
            try:
                end.recv()
            except EOFError:
                return
            began = time.perf_counter()
            case.epoch()
            synchronise(device)
            seconds = time.perf_counter() - began
