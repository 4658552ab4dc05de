"""Count parameters and operations of every row of the paper's tables, or of one network.

    python scripts/count.py                          # Tables 2-5, here and in the paper
    python scripts/count.py --format json
    python scripts/count.py model=vgg11 variant=LRr  # a table of that network's layers
    python scripts/count.py --write                  # results/paper/{counts,cells}.csv

"FLOPs" are in the paper's convention. MACs are exact multiply-adds of one image's forward pass; in
training, generating the weights counts once per batch of the recipe.
"""

from __future__ import annotations

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import argparse
import json
import sys
from typing import Any

import pandas as pd
from torch import nn

from configs import compose
from configs.cli import MISTAKE
from configs.experiments import CELLS, all_cells, key_of
from configs.schema import TrainConfig
from linearconv import LinearConv2d
from linearconv.complexity import count_macs_by_phase, count_parameters, layer_table, paper_flops
from linearconv.engine.artifacts import primary_count
from linearconv.engine.files import atomic_write
from linearconv.errors import UserError
from scripts.evidence.counts import FILE, INPUT, Key, count, counts, network
from scripts.evidence.printed import PaperRow, paper_rows, printed
from scripts.evidence.quirks import QUIRKS
from scripts.evidence.results import recipes


def main() -> int:
    """Print the counts; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--write", action="store_true", help="count anew, into the files")
    args = parser.parse_args()
    try:
        if args.write:
            for path, lines in ((FILE, counted()), (CELLS, cells())):
                with atomic_write(path) as file:
                    file.write(pd.DataFrame(lines).to_csv(index=False).encode())
                print(path)
        elif args.overrides:
            config = compose(args.overrides)
            print(json.dumps(summary(config)) if args.format == "json" else summary_text(config))
        else:
            rows = table_rows()
            print(json.dumps(rows, indent=1) if args.format == "json" else rows_text(rows))
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    return 0


def counted() -> list[dict[str, Any]]:
    """The lines of results/paper/counts.csv: the networks of the tables and of their cells."""
    keys: dict[Key, None] = {}
    for row in paper_rows():
        cell = row.cell(next(iter(row.accuracies)))  # where the default alpha is None
        keys[cell.model, cell.variant, cell.alpha] = None
    keys |= {(cell.model, cell.variant, cell.alpha): None for cell in all_cells()}
    return [count(key).as_row(key) for key in keys]


def cells() -> list[dict[str, Any]]:
    """The lines of results/paper/cells.csv: the cells of the tables under each recipe."""
    return [
        vars(cell)
        | {"alpha": "" if cell.alpha is None else f"{cell.alpha:g}", "recipe": recipe}
        | {"cell_key": key_of(cell, recipe)}
        for recipe in recipes()
        for cell in all_cells()
    ]


def table_rows() -> list[dict[str, Any]]:
    """One object for each row of Tables 2 to 5, with this project's counts beside the paper's."""
    return [_count_row(row) for row in paper_rows()]


def _count_row(row: PaperRow) -> dict[str, Any]:
    found = counts(*row.network)
    return {
        "table": row.table,
        "model": row.model,
        "variant": row.variant,
        "alpha": row.alpha,
        "params": found.params,
        "params_paper_m": float(row.params_m),
        "params_match": printed(found.params, 1e6, row.params_m) == row.params_m,
        "flops_paper_convention": found.flops,
        "flops_without_quirks": found.flops_without_quirks,
        "flops_paper_b": float(row.flops_b),
        "flops_match": printed(found.flops, 1e9, row.flops_b) == row.flops_b,
        "quirks": list(found.quirks),
        **{f"macs_{phase}_{execution}": n for (phase, execution), n in found.macs.items()},
    }


def rows_text(rows: list[dict[str, Any]]) -> str:
    """The rows of all tables as text; = and X mark whether a cell agrees with the paper's."""
    lines = [
        f"{'':33}{'Parameters (M)':^20}{'paper FLOPs (B)':^21}{'training MACs (M)':>20}"
        f"{'inference MACs (M)':>21}",
        f"{'table model':<21}{'variant':<8}{'alpha':<6}{'here':>8}{'paper':>8}    {'here':>9}"
        f"{'paper':>8}  {'generate':>11}{'factored':>9}{'fused':>11}{'factored':>10}  quirks",
    ]
    for row in rows:
        alpha = "" if row["alpha"] is None else f"{row['alpha']:g}"
        params, flops = ("=" if row[f"{key}_match"] else "X" for key in ("params", "flops"))
        generate, factored, fused, inference = (row[key] / 1e6 for key in row if "macs_" in key)
        lines.append(
            f"{row['table']:>3}   {row['model']:<15}{row['variant']:<8}{alpha:<6}"
            f"{row['params'] / 1e6:>9.4f}{row['params_paper_m']:>7.2f} {params} "
            f"{row['flops_paper_convention'] / 1e9:>10.5f}{row['flops_paper_b']:>8.3f} {flops}"
            f"{generate:>11.1f}{factored:>9.1f}{fused:>11.1f}{inference:>10.1f}"
            f"  {', '.join(row['quirks'])}".rstrip()
        )
    cells = [row[f"{key}_match"] for row in rows for key in ("params", "flops")]
    used = dict.fromkeys(name for row in rows for name in row["quirks"])
    lines += ["", f"{sum(cells)} of {len(cells)} cells agree at the printed precision. Quirks:"]
    return "\n".join(lines + [f"  {name}: {QUIRKS[name].meaning}" for name in used])


def summary(config: TrainConfig) -> dict[str, Any]:
    """Totals and layers of one network, for its own dataset's images."""
    channels = config.dataset.channels
    net = network(config, channels, config.dataset.classes)
    shape = (channels, *INPUT[1:])
    batch_size = config.recipe.batch_size
    macs = count_macs_by_phase(net, shape, batch_size=batch_size)
    return {
        "model": config.model.name,
        "variant": config.variant.name,
        "input": list(shape),
        "layers": [
            layer | _split(net.get_submodule(layer["name"]))
            for layer in layer_table(net, shape, batch_size=batch_size)
        ],
        "params": count_parameters(net),
        "flops_paper_convention": paper_flops(net, shape),
        "macs_train_generate": macs["train"]["generate"],
        "macs_train_factored": macs["train"]["factored"],
        "macs_inference_fused": macs["inference"]["fused"],
    }


def _split(module: nn.Module) -> dict[str, int | None]:
    """Numbers of primary and secondary filters; None except for LinearConv layers."""
    if not isinstance(module, LinearConv2d):
        return {"primary": None, "secondary": None}
    primary = primary_count(module)
    return {"primary": primary, "secondary": module.out_channels - primary}


def summary_text(config: TrainConfig) -> str:
    """The summary in at most 100 columns."""
    found = summary(config)
    lines = [
        f"{found['model']}-{found['variant']} on {'x'.join(map(str, found['input']))}",
        f"{'layer':<26}{'kind':<14}{'output':<14}{'parameters':>12}{'generate':>11}{'factored':>11}"
        f"{'P + S':>11}",
    ]
    for layer in found["layers"]:
        split = "" if layer["primary"] is None else f"{layer['primary']} + {layer['secondary']}"
        lines.append(
            f"{layer['name'][-25:]:<26}{layer['kind']:<14}"
            f"{'x'.join(map(str, layer['output'])):<14}{layer['params']:>12,}"
            f"{layer['macs_generate'] / 1e6:>11.3f}{layer['macs_factored'] / 1e6:>11.3f}"
            f"{split:>11}".rstrip()
        )
    totals = [found[f"macs_train_{name}"] / 1e6 for name in ("generate", "factored")]
    lines.append(f"{'total':<54}{found['params']:>12,}{totals[0]:>11.3f}{totals[1]:>11.3f}")
    lines += [
        "MACs in millions for one training image; P primary, S secondary filters.",
        f"Fused for inference: {found['macs_inference_fused'] / 1e6:.3f} M.",
        f"FLOPs in the paper's convention: {found['flops_paper_convention'] / 1e9:.6f} B.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    exit_with(main)
