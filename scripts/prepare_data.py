"""Download datasets and pack each into one file: python scripts/prepare_data.py cifar10.

The packed file <root>/<name>.npz is all that training reads; copy it to machines without
network access. Official files (archives, or unpacked as torchvision does) that are already in
<root>/raw/<name>/ or in <root> are not downloaded again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from configs import dataset_config
from configs.cli import MISTAKE
from data import DatasetFile
from data.official import DATASETS, pack
from data.packed import read_packed
from linearconv.errors import UserError


def main() -> int:
    """Pack and describe each named dataset; returns the exit code."""
    names = ", ".join(sorted(DATASETS))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="+", choices=sorted(DATASETS), metavar="NAME", help=f"one or more of {names}"
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=os.environ.get("LINEARCONV_DATA", "datasets"),
        help="folder of datasets (default: $LINEARCONV_DATA, else datasets)",
    )
    parser.add_argument(
        "--offline",
        action="store_true",
        help="never download: the official files are in <root>/raw/<name>/ or in <root>",
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for name in args.names:
            print(pack_and_describe(name, Path(args.root), download=not args.offline))
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    return 0


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
    sys.exit(main())
