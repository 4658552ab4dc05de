"""Tables, figures and the report, made from records as finished runs leave them."""

import csv
import html.parser
import re
import subprocess
import sys

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.text import Text

from configs import experiments
from configs.experiments import Cell
from scripts.evidence import costs
from scripts.evidence import results as results_module
from scripts.evidence.costs import costs_grid
from scripts.evidence.figures import all_figures, curve_figures, curves
from scripts.evidence.figures.base import DOUBLE, SINGLE, STYLE
from scripts.evidence.printed import paper_rows
from scripts.evidence.results import Results, load_runs, read_records
from tests.conftest import REPOSITORY
from tests.records import add_artifacts, add_runs, save_record

CIFAR = "cifar10"
SVG, PDF = b"<?xml", b"%PDF"


def add_everything(folder):
    """Base's variants with two seeds, one run of another recipe, and one that fits nothing."""
    conv = add_runs(folder, Cell("base", "Conv", CIFAR), [(87.0, 86.0), (88.0, 87.0)])
    linear = add_runs(folder, Cell("base", "Lr", CIFAR), [(87.0, 85.0), (87.0, 86.5)])
    add_runs(folder, Cell("base", "L", CIFAR), [(80.0, 79.0)])
    add_runs(folder, Cell("vgg11", "Lr", CIFAR), [(89.0, 88.0)])  # its baseline has not run
    add_runs(folder, Cell("base", "Lr", CIFAR), [(70.0, 69.0)], recipe="short")
    add_artifacts(folder, conv[0])
    add_artifacts(folder, linear[0])
    other = add_runs(folder, Cell("base", "r", CIFAR), [(97.77, 97.77)])[0]
    other["science"]["dataset"]["digest"] = "0" * 64
    save_record(folder, other)
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "card.csv").write_text(
        "model,variant,device,mode,precision,rounds,images_per_s,ms_per_step,latency_ms_fused_b1,"
        "latency_ms_fused_b256,date,commit\n"
        "base,Lr,Some card,usual,tf32,5,5000,6.5,9,9,2020-02-02,0123abcd\n"
        "base,Lr,Some card,fast,tf32,5,20000,2.5,0.25,4.125,2020-02-02,0123abcd\n"
    )
    return other["run_id"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    folder.joinpath("unused.txt").write_text(add_everything(folder))
    return folder


def call(name, *arguments):
    """Calls a script as a user does, from another folder."""
    command = [sys.executable, str(REPOSITORY / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd="/")


def read(folder, kinds=("md", "csv", "tex")):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for kind in kinds
        for path in sorted(folder.rglob(f"*.{kind}"))
    }


@pytest.fixture(scope="module")
def tables(results):
    done = call("report.py", "tables", "--recipe", "paper", "--results-dir", results)
    assert done.returncode == 0, done.stderr
    return done, read(results / "tables")


def test_all_tables_are_written(tables):
    assert set(tables[1]) == {
        f"table{n}.{kind}" for n in (2, 3, 4, 5) for kind in ("md", "csv", "tex")
    } | {"costs.md"}


def test_markdown_holds_paper_here_and_difference(tables):
    lines = tables[1]["table3.md"].decode().splitlines()
    (base,) = (line for line in lines if line.startswith("| Base | 87.2"))
    assert r"| 87.2 \| 87.50 ± 0.71 (n=2) \| +0.30 | 61.0 \| not run | 0.40 \| 0.40 \| = |" in base
    (linear,) = (line for line in lines if line.startswith("| Base-Lr | -0.1"))
    assert r"| -0.1 \| -0.50 ± 0.71 (n=2) \| -0.40 |" in linear
    assert r"| 0.23 \| 0.23 \| = | (0.017) 0.060 \| (0.017) 0.060 \| = |" in linear
    assert any(r"| -0.2 \| -7.00 (n=1) \| -6.80 |" in line for line in lines)
    assert any(r"+0.0 \| 89.00 absolute (n=1), baseline not run |" in line for line in lines)


def test_second_table_holds_seeds_macs_and_speed(tables):
    extra = tables[1]["table4.md"].decode().split("## Beyond the paper")[1]
    assert "card: Some card, measured 2020-02-02 at 0123abcd." in extra
    assert (
        "| Base-Lr | CIFAR-10 0, 1 | 15.4 / 8.6 | 15.1 / 8.6 | 6.5 / 2.5 | 0.25 / 4.12 |" in extra
    )
    assert "| AllConv | - | 281.2 / 281.2 | 281.2 / 281.2 | - / - | - / - |" in extra
    # At inference, weights of grouped layers are generated for each image.
    assert "| ResNeXt-29-Lr | - | 1430.1 / 1317.9 | 1409.5 / 1826.5 |" in extra
    assert "Some card" not in tables[1]["table2.md"].decode()  # nothing of it was measured


def test_what_a_run_costs(tables):
    lines = tables[1]["costs.md"].decode().splitlines()
    assert "| Network | Some card: seconds an epoch | Some card: 250 epochs |" in lines
    assert "| Base-Lr | 2.5 | 10 min |" in lines and "| Base-e | - | - |" in lines


def test_a_run_costs_what_it_does_in_the_precision_of_the_tables(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "card.csv").write_text(
        "model,variant,device,mode,precision,rounds,images_per_s\n"
        "base,Lr,Card,fast,tf32,5,20000\nbase,Lr,Card,fast,fp32,5,10000\n"
        "base,Lr,Card,fast,bf16,5,90000\nbase,e,Card,fast,fp32,5,10000\n"
    )
    rows = {row[0]: row[1:] for row in costs_grid(tmp_path, 250).body}
    assert rows["Base-Lr"] == ["2.5", "10 min"]
    assert rows["Base-e"] == ["-", "-"]  # known in the other precision alone


def test_table_2_is_laid_out_by_alpha(tables):
    lines = tables[1]["table2.md"].decode().splitlines()
    assert "| alpha | 0.125 | 0.25 | 0.5 | 0.75 | 0.875 | 1 |" in lines
    assert any(line.startswith(r"| Accuracy (%) | -1.2 \| not run |") for line in lines)


def rows_of(text):
    return list(csv.DictReader(text.decode().splitlines()))


def test_csv_holds_every_number(tables):
    rows = {(r["model"], r["variant"]): r for r in rows_of(tables[1]["table4.csv"])}
    assert len(rows) == 18
    linear = rows["base", "Lr"]
    expected = {
        "cifar10_paper": "-0.1",
        "cifar10_here": "-0.5000",
        "cifar10_std": "0.7071",
        "cifar10_n": "2",
        "cifar10_n_baseline": "2",
        "cifar10_difference": "-0.4000",
        "cifar10_accuracy": "87.0000",
        "cifar10_seeds": "0 1",
        "svhn_here": "",
        "svhn_n": "0",
        "svhn_difference": "",
        "params": "227418",
        "params_m_here_change": "-0.4250",
        "flops": "59947078",
        "macs_inference_fused": "15050752",
        "step_fast_ms (card, tf32)": "2.5",
        "latency_b256_ms (card, tf32)": "4.125",
    }
    assert {name: linear[name] for name in expected} == expected
    assert linear["cifar10_runs"].split()[0].startswith("cifar10-base-Lr-s0-")


def test_latex_is_complete_and_escaped(tables):
    for name, text in tables[1].items():
        if not name.endswith(".tex"):
            continue
        text = text.decode()
        assert text.isascii()
        assert text.count(r"\begin{tabular}{") == text.count("\n\\end{tabular}") == 2
        body = text.replace(r"\_", "").replace(r"\%", "")
        assert "_" not in body and "%" not in body.removeprefix("% \\usepackage")
        for table in text.split(r"\begin{tabular}{")[1:]:
            columns = len(re.match(r"(\w+)\}", table)[1])
            lines = [line for line in table.splitlines() if line.endswith(r"\\")]
            assert lines and all(line.count(" & ") == columns - 1 for line in lines)
    assert r"\stacked{$-$0.1 \\ $-$0.50 $\pm$ 0.71 (n=2) \\ $-$0.40}" in text_of(tables, 3)


def text_of(tables, number):
    return tables[1][f"table{number}.tex"].decode()


def test_records_that_fill_no_cell_are_named_in_one_line(tables, results):
    unused = (results / "unused.txt").read_text()
    (line,) = (line for line in tables[0].stderr.splitlines() if "fill no cell" in line)
    assert unused in line and "short" in line and line.count(",") == 1
    assert b"97.77" not in b"".join(tables[1].values())


def test_no_time_and_no_machine_in_the_tables(tables):
    text = b"".join(tables[1].values())
    assert b"2026" not in text and b"some-host" not in text


def test_tables_are_the_same_bytes_again(tables, tmp_path, script):
    unused = add_everything(tmp_path)
    done = script("report", "tables", "--results-dir", tmp_path)
    assert done.code == 0
    written = read(tmp_path / "tables")
    assert tables[1].items() <= written.items()
    assert {name for name in written if name not in tables[1]} == {
        f"short/{name}" for name in tables[1]
    }
    assert done.err.splitlines()[-1] == f"records that fill no cell: {unused}"


def test_the_frame_in_a_file_is_that_of_load_runs(results, tmp_path, script):
    path = tmp_path / "runs.csv"
    assert script("report", "tables", "--results-dir", results, "--frame", path).code == 0
    written, frame = pd.read_csv(path), load_runs(results)
    assert list(written.columns) == list(frame.columns)
    assert written.run_id.tolist() == frame.run_id.tolist()
    assert written.test_acc_last.tolist() == frame.test_acc_last.tolist()


def test_last_epochs_and_other_recipes(tmp_path, script):
    add_everything(tmp_path)
    last = ("tables", "--results-dir", tmp_path, "--metric", "last", "--recipe", "paper")
    assert script("report", *last).code == 0
    text = (tmp_path / "tables/table3.md").read_text()
    assert "the last epoch's test accuracy" in text
    assert r"| Base | 87.2 \| 86.50 ± 0.71 (n=2) \| -0.70 |" in text
    before = read(tmp_path / "tables")
    settled = ("--results-dir", tmp_path / "again", "--metric", "settled", "--recipe", "paper")
    add_everything(tmp_path / "again")
    assert script("report", "tables", "figures", "page", *settled).code == 0
    text = (tmp_path / "again/tables/table3.md").read_text()
    assert "the mean test accuracy of the last fifth of the epochs" in text
    assert script("report", "tables", "--results-dir", tmp_path, "--recipe", "short").code == 0
    assert {k: v for k, v in read(tmp_path / "tables").items() if "short" not in k} == before
    text = (tmp_path / "tables/short/table4.md").read_text()
    assert "recipe short" in text
    assert r"| Base | 87.2 \| not run |" in text
    assert r"-0.1 \| 70.00 absolute (n=1), baseline not run |" in text


def test_damaged_records_are_named_and_left_out(tmp_path, script):
    add_runs(tmp_path, Cell("base", "Conv", CIFAR), [(87.0, 86.0)])
    written = tmp_path / "tables/table3.csv"
    assert script("report", "tables", "--results-dir", tmp_path, "--strict").code == 0
    content = written.read_bytes()
    written.unlink()
    for broken in ("one", "two"):
        (tmp_path / "runs" / f"{broken}.json").write_text("{")
    done = script("report", "tables", "--results-dir", tmp_path)
    assert done.code == 0 and "one.json" in done.err and "two.json" in done.err
    assert written.read_bytes() == content


@pytest.mark.parametrize(
    ("part", "written"),
    [
        ("tables", "tables/table3.csv"),
        ("figures", "figures/figure3-accuracy.svg"),
        ("claims", "claims.csv"),
        ("studies", "studies.md"),
        ("page", "report.html"),
    ],
)
def test_a_strict_call_leaves_damaged_records_out_and_fails(tmp_path, script, part, written):
    add_runs(tmp_path, Cell("base", "Conv", CIFAR), [(87.0, 86.0)])
    (tmp_path / "runs/one.json").write_text("{")
    done = script("report", part, "--results-dir", tmp_path, "--strict")
    assert done.code == 1 and "one.json" in done.err
    assert (tmp_path / written).exists()


def test_a_wrong_folder_stops_with_one_message(tmp_path, script):
    done = script("report", "--results-dir", tmp_path / "typo")
    assert done.code == 2 and "typo/runs not found" in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "typo").exists()


def test_no_results_at_all(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "figures").mkdir()
    for stale in ("figures/figure3-accuracy.svg", "figures/curves-cifar10-base.svg"):
        (tmp_path / stale).touch()
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims/short.md").touch()
    assert call("report.py", "claims", "--results-dir", tmp_path).returncode == 0
    assert not list((tmp_path / "claims").iterdir())
    done = call("report.py", "figures", "--results-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "not drawn" in line]
    assert len(lines) == 9 and not list(tmp_path.rglob("*.svg"))
    assert any("cifar10-vgg11-Lr-a0.125" in line for line in lines)


@pytest.fixture(scope="module")
def figures(results, script):
    return script("report", "figures", "--pdf", "--results-dir", results)


def test_figures_and_their_data(figures, results, tmp_path, script):
    code, out, _ = figures
    folder = results / "figures"
    names = {
        "figure3-accuracy",
        "table2-alpha",
        "cost-of-accuracy",
        "figure3-correlations-base",
        "figure1-filters-base",
        "figure1-coefficients-base",
        "curves-cifar10-base",
        "curves-cifar10-vgg11",
    }
    assert code == 0
    for name in names:
        assert (folder / f"{name}.pdf").read_bytes().startswith(PDF)
        assert (folder / f"{name}.svg").read_bytes().startswith(SVG)
    assert {path.stem for path in (folder / "data").glob("*.csv")} == names
    missing = [line for line in out.splitlines() if line.startswith("figure3-correlations-base")]
    assert "artifacts/cifar10-base-L-s0" in missing[0]  # it has run, and left no arrays
    assert "figure3-correlations-vgg11: not drawn" in out

    again = tmp_path / "again"
    add_everything(again)
    assert script("report", "figures", "--results-dir", again).code == 0
    assert read(folder, ("csv", "svg")) == read(again / "figures", ("csv", "svg"))
    assert not list(again.rglob("*.pdf"))


def test_data_of_the_figures(figures, results):
    data = results / "figures" / "data"
    points = rows_of((data / "figure3-accuracy.csv").read_bytes())
    assert len(points) == sum(row.table == 4 for row in paper_rows())
    conv, linear, reduced = points[:3]
    assert (conv["accuracy"], conv["std"], conv["paper_accuracy"]) == ("87.5", "0.7071", "87.2")
    assert (linear["accuracy"], linear["paper_accuracy"], linear["n"]) == ("87.0", "87.1", "2")
    assert (reduced["accuracy"], reduced["n"], reduced["params"]) == ("", "0", "210458")
    curve = rows_of((data / "curves-cifar10-base.csv").read_bytes())
    assert [row["correlation_loss"] for row in curve if "-Lr-s0" in row["run_id"]] == [
        "300.0",
        "30.0",
        "3.0",
    ]
    cost = rows_of((data / "cost-of-accuracy.csv").read_bytes())
    assert [(row["model"], row["variant"], row["training_hours"]) for row in cost] == [
        ("base", "Conv", ""),  # not benchmarked
        ("base", "Lr", ""),  # in another precision than fp32
        ("vgg11", "Lr", ""),
    ]
    forward = 15_050_752 * 50_000 * 250 / 1e12
    assert float(cost[0]["forward_teramacs"]) == pytest.approx(forward, rel=1e-3)
    kinds = [row["kind"] for row in rows_of((data / "figure1-filters-base.csv").read_bytes())]
    assert kinds == ["primary"] * 8 + ["primary"] * 4 + ["secondary"] * 4
    blocks = rows_of((data / "figure3-correlations-base.csv").read_bytes())
    assert [(row["primary"], row["mean_abs_correlation_between"] == "") for row in blocks] == [
        ("8", True),
        ("8", True),
        ("4", False),
        ("4", False),
    ]


@pytest.mark.parametrize("width", [SINGLE, DOUBLE])
def test_figures_say_what_they_show_and_nothing_is_cut_off(results, width):
    found = [figure for figure in all_figures(Results(results, "paper"), "best") if figure.data]
    assert len(found) == 8
    for figure in found:
        with mpl.rc_context(STYLE):
            canvas = figure.canvas(width)
            canvas.draw_without_rendering()
            drawn = canvas.get_tightbbox()  # in inches
            labels = [(text, axes) for axes in canvas.axes for text in axes.texts]
            assert all(inside(text.get_window_extent(), axes.bbox) for text, axes in labels)
        assert inside(drawn, canvas.bbox_inches, 0.03), figure.name
        words = " ".join(text.get_text() for text in canvas.findobj(Text))
        assert "CIFAR-10" in words and "recipe=paper" in words and "n = " in words
        assert "Base" in words or "VGG11" in words


def inside(box, outer, tolerance=0.0):
    x, y = outer.padded(tolerance).intervalx, outer.padded(tolerance).intervaly
    return x[0] <= box.x0 and box.x1 <= x[1] and y[0] <= box.y0 and box.y1 <= y[1]


def test_a_correlation_loss_that_hardly_changes_has_readable_labels(tmp_path):
    (record,) = add_runs(tmp_path, Cell("base", "L", CIFAR), [(80, 80)])
    for entry, loss in zip(record["curve"], (1098, 1600, 1441), strict=True):
        entry["correlation_loss"] = loss
    save_record(tmp_path, record)
    (figure,) = curve_figures(Results(tmp_path, "paper"))
    with mpl.rc_context(STYLE):
        canvas = figure.canvas(SINGLE)
        canvas.draw_without_rendering()
    axis = canvas.axes[1].yaxis
    low, high = axis.get_view_interval()
    labels = [
        tick.label1.get_text() for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high
    ]
    assert len(set(labels)) >= 2 and all(re.fullmatch(r"\d,\d00", label) for label in labels)


def test_damaged_artifacts_are_named(tmp_path, script):
    (record,) = add_runs(tmp_path, Cell("base", "Lr", CIFAR), [(80, 80)])
    path = tmp_path / "artifacts" / f"{record['run_id']}.npz"
    path.parent.mkdir()
    path.write_bytes(b"PK\x03\x04 not a zip file")
    for part in ("figures", "claims"):
        code, _, err = script("report", part, "--results-dir", tmp_path)
        assert code == 0 and str(path) in err and len(err.splitlines()) == 1
        assert script("report", part, "--results-dir", tmp_path, "--strict").code == 1
    assert (tmp_path / "figures/figure3-accuracy.svg").exists()


def test_networks_that_the_paper_does_not_have_are_called_what_they_are(tmp_path, monkeypatch):
    own = Cell("efficientnet", "Lr", "digits")
    cells = (Cell("base", "Conv", CIFAR), own)
    for module in (experiments, results_module, curves):
        monkeypatch.setattr(module, "all_cells", lambda: cells)
    monkeypatch.setattr(costs, "table_cells", lambda table: cells)
    add_runs(tmp_path, own, [(80, 80)])
    names = [row[0] for row in costs_grid(tmp_path, 250).body]
    assert names == ["Base-Conv", "EfficientNet-Lr"]
    (figure,) = curve_figures(Results(tmp_path, "paper"))
    assert figure.heading.startswith("EfficientNet on digits, recipe=paper")


class Page(html.parser.HTMLParser):
    """Collects ids, addresses and buttons; every element must be closed in order."""

    VOID = {"meta", "link", "img", "source", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.addresses, self.buttons = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.addresses += [attributes[k] for k in ("src", "href", "srcset") if k in attributes]
        self.buttons += [attributes] if tag == "button" else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(results, script):
    assert script("report", "page", "--results-dir", results).code == 0
    return (results / "report.html").read_text()


def test_report(report, results):
    text, page = report, Page(report)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?:|@import|url\(", text)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)
    ids = {record["run_id"] for record in read_records(results).usable}
    assert {f"run-{run_id}" for run_id in ids} <= set(page.ids)
    named = {i for b in page.buttons for i in b.get("data-runs", "").split()}
    assert named == ids - {(results / "unused.txt").read_text()}
    assert all(b.get("data-runs") or b.get("data-detail") for b in page.buttons)
    claims = text.split('<section id="claims">')[1].split("</section>")[0]
    (estimate,) = re.findall(r'data-runs="([^"]*)" data-baseline="([^"]*)">-0.75 \[', claims)[:1]
    assert [len(ids.split()) for ids in estimate] == [2, 2]
    assert "Recipe short" in text and "Recipe demo" not in text
    assert "▼ -6.80" in text and "≈ -0.40" in text and "0123456789ab" in text
    assert "some-host" not in text
    assert text.count("<img src=") == 8 + 3  # of the paper's recipe, and of the short one
    assert text.count("<source ") == 8 + 3  # the same for phones
    assert "7 figures not drawn" in text


def test_what_has_not_run_is_folded(report):
    section = report.split("Recipe paper: 250 epochs")[1]
    table = section.split("Table 3:")[1].split("Table 4:")[0]
    shown, folded = table.split("<summary>16 accuracies not run: the whole table</summary>")
    assert "Base-Lr" in shown and 'class="absent"' not in shown
    assert "CIFAR-100" not in shown and "VGG11-e" not in shown
    assert "CIFAR-100" in folded and "VGG11-e" in folded
