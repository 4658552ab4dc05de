"""Measure how fast training and inference are on this device.

    python scripts/benchmark.py --model vgg11            # a usual loop against runtime=fast
    python scripts/benchmark.py layers --model resnet18  # both executions of each layer
    python scripts/benchmark.py slots --slots 1,2        # several trainings at once
    python scripts/benchmark.py certify                  # on a GPU: the CUDA tests and each bar

`python scripts/benchmark.py MODE --help` has the options of each; `--write` keeps what was measured
under results/benchmarks/.
"""

from __future__ import annotations

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import sys

from configs.cli import MISTAKE
from linearconv.errors import UserError
from scripts.bench import certify, layers, slots, speed
from scripts.bench.options import parser_of

MODES = {"speed": speed, "layers": layers, "slots": slots, "certify": certify}


def main() -> int:
    """Measure in the mode of the first argument, by default speed; returns the exit code."""
    words = sys.argv[1:]
    name = words.pop(0) if words and words[0] in MODES else "speed"
    mode = MODES[name]
    description = mode.__doc__ if name != "speed" else f"{__doc__}\n{mode.__doc__}"
    parser = parser_of(mode, prog=f"benchmark.py {name}", description=description)
    try:
        return mode.run(parser.parse_intermixed_args(words))
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE


if __name__ == "__main__":
    exit_with(main)
