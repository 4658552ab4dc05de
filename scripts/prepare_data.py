"""Pack a dataset into one file: python scripts/prepare_data.py cifar10.

The packed file <root>/<name>.npz is all that training reads; copy it to machines without
network access. Official files (archives, or unpacked as torchvision does) that are already in
<root>/raw/<name>/ or in <root> are not downloaded again.

Images of your own, with one folder per class:

    python scripts/prepare_data.py --from-folder photos --name birds
    python train.py dataset=birds model=base variant=Lr

This packs <root>/birds.npz and describes it in configs/dataset/birds.yaml; docs/datasets.md has
the details.
"""

from __future__ import annotations

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import argparse
import logging
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from configs import dataset_config
from configs.cli import MISTAKE
from configs.own_dataset import check_new_name, write_config
from data import DatasetFile, DatasetSpec, default_root
from data.image_folder import read_folder
from data.official import DATASETS, pack
from data.own import describe
from data.packed import KEYS, packed_path, read_file, read_packed, write_packed
from linearconv.errors import UserError
from scripts.jobs.plan import override

SHOWN = 10
"""Classes whose images are counted one by one."""


def main() -> int:
    """Pack and describe datasets; returns the exit code."""
    parser = options()
    args = parser.parse_args()
    check_options(parser, args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if not args.names:
            print(pack_own(args))
        for name in args.names:
            print(pack_and_describe(name, Path(args.root), download=not args.offline))
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""  # none if a disk is full
        print(f"{where}{error.strerror}; nothing was packed", file=sys.stderr)
        return MISTAKE
    return 0


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message if options contradict each other, or one has no effect."""
    own = args.from_folder is not None or args.from_npz is not None
    if own == bool(args.names) or not DATASETS.keys() >= set(args.names):
        parser.error(
            f"give one or more of {', '.join(sorted(DATASETS))}, or else --from-folder or "
            f"--from-npz; got {' '.join(args.names) or 'nothing'}"
        )
    if own == (args.name is None):
        parser.error("--name NAME belongs to --from-folder and --from-npz, which need it")
    folder = args.from_folder is not None
    for option, given, applies, belongs_to in (
        ("--test-fraction", args.test_fraction is not None, folder, "--from-folder"),
        ("--flip", args.flip is not None, own, "--from-folder and --from-npz"),
        ("--strict", args.strict, own, "--from-folder and --from-npz"),
        ("--overwrite", args.overwrite, own, "--from-folder and --from-npz"),
        ("--offline", args.offline, not own, "datasets that are downloaded"),
    ):
        if given and not applies:
            parser.error(f"{option} belongs to {belongs_to}")
    root = args.root.expanduser()
    for path in (root, *root.parents):
        if path.exists() and not path.is_dir():
            parser.error(f"--root {args.root}: {path} is a file, expected a folder")


def options() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"one or more of {', '.join(sorted(DATASETS))}",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=default_root(),
        help="folder of datasets (default: $LINEARCONV_DATA, else datasets)",
    )
    parser.add_argument(
        "--offline",
        action="store_true",
        help="never download: the official files are in <root>/raw/<name>/ or in <root>",
    )
    own = parser.add_argument_group("images of your own")
    source = own.add_mutually_exclusive_group()
    source.add_argument(
        "--from-folder", type=Path, metavar="DIR", help="DIR/<class>/, or DIR/{train,test}/<class>/"
    )
    source.add_argument("--from-npz", type=Path, metavar="FILE", help="arrays in an .npz file")
    own.add_argument("--name", help="name of the dataset: lower-case letters, digits, underscores")
    own.add_argument(
        "--test-fraction",
        type=float,
        metavar="F",
        help="share of each class to test on, if DIR has no test/ or val/ (default: 0.2)",
    )
    own.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="mirror half the training images; wrong for digits and letters (default: no)",
    )
    own.add_argument(
        "--strict",
        action="store_true",
        help="refuse test images that are training images, too, instead of warning",
    )
    own.add_argument("--overwrite", action="store_true", help="replace a dataset of your own")
    return parser


def pack_own(args: argparse.Namespace) -> str:
    """Pack a user's images, write their config and describe what was done."""
    path = packed_path(args.name, args.root.expanduser())
    check_new_name(args.name, path, overwrite=args.overwrite)
    if args.from_folder is not None:
        folder = args.from_folder.expanduser()
        arrays, notes = read_folder(folder, test_fraction=args.test_fraction, strict=args.strict)
    else:
        arrays, notes = read_npz(args.from_npz.expanduser(), strict=args.strict), []
    source = args.from_folder or args.from_npz
    spec, config = write_described(path, arrays, args.name, source=source, flip=bool(args.flip))
    shape = "x".join(map(str, (spec.image_size, spec.image_size, spec.channels)))
    return "\n".join(
        [
            f"{path}: {spec.train_size} training and {spec.test_size} test images ({shape}), "
            f"{spec.classes} classes, sha256 {spec.digest}",
            f"classes (training + test images): {class_counts(arrays)}",
            *notes,
            f"mirrored in training: {'yes' if args.flip else 'no (--flip)'}",
            f"described in {config}; train with `python train.py dataset={spec.name} model=base "
            f"variant=Lr{_root_override(args.root)}`",
        ]
    )


def write_described(
    path: Path, arrays: Mapping[str, np.ndarray], name: str, *, source: Path, flip: bool
) -> tuple[DatasetSpec, Path]:
    """Pack arrays and describe the file; returns the description and the path of the config.

    The file gets its name last, so that one that cannot be described is not left behind.

    Raises:
        UserError: they cannot be trained on; a file that was there before is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder:
        new = Path(folder) / path.name
        write_packed(new, arrays)
        try:
            spec = describe(new, name)
        except UserError as error:
            raise UserError(str(error).replace(str(new), str(source))) from None
        spec = replace(spec, augmentation=replace(spec.augmentation, flip=flip))
        config = write_config(spec)
        new.replace(path)
    return spec, config


def class_counts(arrays: Mapping[str, np.ndarray]) -> str:
    """The number of training and of test images of each class, of many only the first."""
    names = arrays["classes"]
    train, test = (
        np.bincount(arrays[f"{split}_labels"], minlength=len(names)) for split in ("train", "test")
    )
    counts = [f"{c} {n} + {m}" for c, n, m in zip(names, train, test, strict=True)]
    return ", ".join(counts[:SHOWN] + [f"and {len(counts) - SHOWN} more"] * (len(counts) > SHOWN))


def read_npz(path: Path, *, strict: bool) -> dict[str, np.ndarray]:
    """The arrays of a user's file, checked, in the form that packed files have.

    Raises:
        UserError: the file is missing, cannot be trained on, or is not `strict`.
    """
    describe(path)
    dataset = read_file(path)
    dataset.report_shared(path, strict=strict, option="--strict")
    splits = (dataset.train, dataset.test)
    arrays = [part for split in splits for part in (split.images, split.labels)]
    return dict(zip(KEYS, [*arrays, np.array(dataset.classes)], strict=True))


def _root_override(root: Path) -> str:
    """What train.py must be told to find the folder, if it is not the default."""
    usual = Path(default_root())
    if root.expanduser().resolve() == usual.resolve():
        return ""
    return f" {shlex.quote(override('dataset.root', root))}"


def pack_and_describe(name: str, root: Path, *, download: bool) -> str:
    """Pack a dataset unless its file exists, then read it back and describe it."""
    spec = dataset_config(name)
    file = DatasetFile(spec, root)
    if not file.path.exists():
        pack(name, root, download=download, official_md5=spec.official_md5)
    dataset = read_packed(spec, file.root)
    verdict = "as published" if file.digest == spec.published else file.unknown
    return (
        f"{file.path}: {len(dataset.train)} training and {len(dataset.test)} test "
        f"images, {len(dataset.classes)} classes, sha256 {dataset.digest} ({verdict})"
    )


if __name__ == "__main__":
    exit_with(main)
