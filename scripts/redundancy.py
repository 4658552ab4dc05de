"""Measure how much of each published network is left with fewer filters, without any training.

    python scripts/redundancy.py                            # all weights of recipe=paper
    python scripts/redundancy.py cifar10-base-Conv-s0-2b22fbec

The weights of a run's last epoch are folded into plain convolutions, and these are converted in
closed form (`linearconv.convert`, fitted to training images) to some shares of their filters. Of
plain convolutions also for a budget, for single layers, fitted to the weights alone, as the
low-rank pair, and with filters removed instead (`models.pruning`). Writes the test accuracies to
results/redundancy.csv; what is there already is not measured again, unless the run is named.
"""

from __future__ import annotations

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from configs import dataset_config, variant_name
from configs.cli import FAILED, MISTAKE
from configs.naming import recipe_name
from data import WARM_START_IMAGES, ResidentBatches, default_root, first_images, load_dataset
from eval import trained_model
from linearconv import convert, fuse
from linearconv.engine.device import device_name, resolve_device
from linearconv.engine.files import atomic_write
from linearconv.engine.step import evaluate
from linearconv.engine.weights import published_runs, read_weights, weights_path
from linearconv.errors import UserError
from models.pruning import pruned_to
from scripts.evidence.results import RESULTS

SHARES = (0.125, 0.25, 0.375, 0.5, 0.75)
"""Of the filters of every layer, for all networks."""
BUDGETS = (0.57, 0.7, 0.85)
"""Of the parameters, for plain ones; 0.57 is what half the filters in every layer come to."""

Case = dict[str, Any]
"""`form` (linear, pair or pruned), `fitted_to` (images or weights), and `alpha` or `budget`;
`layer` if it is one alone."""


def main() -> int:
    """Measure and write the file; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="*", help="run_ids; default: all new ones of recipe=paper")
    parser.add_argument("--results-dir", type=Path, default=RESULTS)
    parser.add_argument("--data-root", type=Path, default=default_root())
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    path = args.results_dir / "redundancy.csv"
    try:
        device = resolve_device(args.device)
        known = pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else None
        done = set() if known is None else set(known.run_id)
        for run in args.run or sorted(set(published_runs(args.results_dir)) - done):
            checkpoint = read_weights(weights_path(args.results_dir, run), "last")
            if not args.run and recipe_name(checkpoint["science"]) != "paper":
                continue
            rows = measured(checkpoint, args.data_root, device)
            others = [] if known is None else [known[known.run_id != run]]
            known = pd.concat([*others, pd.DataFrame(rows, dtype=object).fillna("").astype(str)])
            with atomic_write(path) as file:
                file.write(known.sort_values("run_id", kind="stable").to_csv(index=False).encode())
            print(f"{run}: {len(rows)} networks", flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    except OSError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return FAILED
    print(path)
    return 0


def measured(
    checkpoint: dict[str, Any], data_root: Path, device: torch.device
) -> list[dict[str, Any]]:
    """A row for each network that is made of the weights of a checkpoint; the first: none."""
    identity = checkpoint["science"]
    spec = dataset_config(identity["dataset"]["name"])
    limits = {key: identity["dataset"][key] for key in ("limit_train", "limit_test")}
    batches = ResidentBatches(
        load_dataset(spec, data_root, **limits), spec, batch_size=64, eval_batch_size=500,
        seed=identity["seed"], device=device,
    )  # fmt: skip
    images = first_images(batches.train(0), WARM_START_IMAGES)
    network = fuse(trained_model(checkpoint, spec)).to(device)
    about = {
        "run_id": checkpoint["run_id"],
        "dataset": spec.name,
        "model": identity["model"]["name"],
        "variant": variant_name(identity["variant"]),
        "seed": identity["seed"],
    }
    measured_on = {"device": device_name(device), "torch": torch.__version__}
    rows = []
    for case in [{}, *cases(network, about["variant"])]:
        made, kept = (network, None) if not case else make(network, images, **case)
        rows.append(
            about
            | dict.fromkeys(("form", "fitted_to", "alpha", "budget", "layer"))
            | case
            | {
                "parameters": sum(parameter.numel() for parameter in made.parameters()),
                "kept": None if kept is None else f"{kept:.4f}",
                "accuracy": f"{evaluate(made, batches.test(), 'fp32').accuracy:.2f}",
            }
            | measured_on
        )
    return rows


def cases(network: nn.Module, variant: str) -> list[Case]:
    """What is made of a network."""
    found: list[Case] = [
        {"form": "linear", "fitted_to": "images", "alpha": share} for share in SHARES
    ]
    if variant != "Conv":
        return found
    *_, last = (name for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    for alpha, layer in ((0.5, None), (0.75, None), (0.5, last)):
        found += [
            {"form": form, "fitted_to": fitted_to, "alpha": alpha, "layer": layer}
            for form in ("linear", "pair")
            for fitted_to in ("weights", "images")
            if layer or (form, fitted_to) != ("linear", "images")  # that is there
        ]
    for budget in BUDGETS:
        found += [
            {"form": form, "fitted_to": "images", "budget": budget} for form in ("linear", "pair")
        ]
        found.append({"form": "pruned", "budget": budget})
    return found


def make(
    network: nn.Module,
    images: Tensor,
    *,
    form: str,
    fitted_to: str | None = None,
    alpha: float | None = None,
    budget: float | None = None,
    layer: str | None = None,
) -> tuple[nn.Module, float | None]:
    """The network that a case describes, and the mean share of its layers' outputs that is kept."""
    if form == "pruned":
        whole = sum(parameter.numel() for parameter in network.parameters())
        return pruned_to(network, images, int(budget * whole)).eval(), None
    if budget is not None:
        size: dict[str, Any] = {"budget": budget}
    else:
        convs = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
        widths = {n: m.out_channels for n, m in convs.items() if layer in (None, n)}
        # The nearest share, since the widths of variant e are any numbers.
        size = {"alpha": {n: max(1, round(alpha * width)) / width for n, width in widths.items()}}
    report = convert(
        network,
        **size,
        form=form,
        min_reduction=False,
        warm_start=images if fitted_to == "images" else True,
        inplace=False,
    )
    kept = [found.kept for found in report.layers if found.kept is not None]
    # Of the weight it says little, and for a budget it is of other layers each time.
    known = kept and fitted_to == "images" and budget is None
    return report.model.eval(), sum(kept) / len(kept) if known else None


if __name__ == "__main__":
    exit_with(main)
