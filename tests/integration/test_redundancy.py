"""What is left of a network with fewer filters: scripts/redundancy.py on small runs."""

import json

import pandas as pd
import pytest

from configs import compose
from tests.integration.conftest import SIZE
from train import train


@pytest.fixture(scope="module")
def results(tmp_path_factory, digits_root):
    """Base-Conv and Base-L, trained for an epoch."""
    folder = tmp_path_factory.mktemp("redundancy")
    for variant in ("Conv", "L"):
        places = [f"{kind}_dir={folder}/{kind}" for kind in ("results", "checkpoint", "log")]
        overrides = ["model=base", f"variant={variant}", "dataset=digits", "recipe.epochs=1"]
        overrides += [*SIZE, f"dataset.root={digits_root}", *places]
        train(compose(overrides), overrides)
    return folder / "results"


def test_all_networks_and_once(script, results, digits_root):
    runs = {path.stem: json.loads(path.read_text()) for path in (results / "runs").glob("*.json")}
    places = ("--results-dir", results, "--data-root", digits_root)
    done = script("redundancy", *places, *runs)
    assert done.code == 0, done.err
    rows = pd.read_csv(results / "redundancy.csv").fillna({"form": "", "fitted_to": ""})
    (half,) = (record for record in runs.values() if record["science"]["variant"]["linear"])
    for run_id, record in runs.items():
        found = rows[rows.run_id == run_id]
        (itself,) = found[found.form == ""].itertuples()
        assert itself.accuracy == pytest.approx(record["test_acc_last"], abs=0.01)
        assert itself.parameters == 399_050
        linear = found[(found.form == "linear") & (found.fitted_to == "images")]
        everywhere = linear[linear.layer.isna() & linear.budget.isna()].set_index("alpha")
        assert list(everywhere.index) == [0.125, 0.25, 0.375, 0.5, 0.75]
        assert everywhere.kept.is_monotonic_increasing
        assert everywhere.parameters[0.5] == half["params"]
    linear = rows[(rows.variant == "L") & (rows.alpha == 0.5)]
    assert linear.kept.item() == 1  # it has no more than half
    plain = rows[rows.variant == "Conv"]
    for budget in (0.57, 0.7, 0.85):
        same = plain[plain.budget == budget]
        assert sorted(same.form) == ["linear", "pair", "pruned"]
        assert (same.parameters <= budget * 399_050).all()
    of_one = plain[plain.layer == "conv4"]
    assert len(of_one) == 4 and of_one.parameters.nunique() == 2

    before = (results / "redundancy.csv").read_bytes()
    again = script("redundancy", *places)  # of the paper's recipe alone, which these are not
    assert again.code == 0 and "networks" not in again.out
    assert (results / "redundancy.csv").read_bytes() == before


def test_a_run_without_weights_is_named(script, results):
    done = script("redundancy", "--results-dir", results, "nothing-s0")
    assert done.code == 2 and "nothing-s0.safetensors not found" in done.err
