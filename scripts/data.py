"""Download datasets and pack each into one file: python scripts/data.py cifar10.

The packed file <root>/<name>.npz is all that training reads; copy it to machines without a
network. Official files that already lie under <root>/raw/<name>/ are not downloaded again.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
from pathlib import Path


def become_the_package() -> None:
    """Put the package `data` in the place of this file in `sys.modules`.

    Python puts a script's own folder first on its path, so that `import data`, in any script of
    this folder, finds this file before the package of the same name.
    """
    package = Path(__file__).resolve().parents[1] / "data"
    spec = importlib.util.spec_from_file_location(
        "data", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["data"] = module
    spec.loader.exec_module(module)


def main() -> int:
    """Pack each named dataset and say what it holds; returns the exit code."""
    from data.official import READERS
    from linearconv.errors import UserError

    names = ", ".join(sorted(READERS))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="+", choices=sorted(READERS), metavar="NAME", help=f"one or more of {names}"
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
        help="never download: the official files lie under <root>/raw/<name>/",
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for name in args.names:
            print(pack_and_describe(name, Path(args.root), download=not args.offline))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def pack_and_describe(name: str, root: Path, *, download: bool) -> str:
    """Pack a dataset unless its file is there; read it back and say what it holds."""
    from configs import dataset_config
    from data.official import pack
    from data.packed import packed_path, read_packed

    if not packed_path(name, root).exists():
        pack(name, root, download=download)
    spec = dataset_config(name)
    dataset = read_packed(spec, root)
    verdict = "as published" if dataset.digest == spec.digest else f"published: {spec.digest}"
    return (
        f"{packed_path(name, root)}: {len(dataset.train)} training and {len(dataset.test)} test "
        f"images, {len(dataset.classes)} classes, sha256 {dataset.digest} ({verdict})"
    )


if __name__ == "data":
    become_the_package()
elif __name__ == "__main__":
    sys.exit(main())
