"""The packed file of a dataset: its digest and its images."""

from __future__ import annotations

import logging
import os
from functools import cached_property
from pathlib import Path

from data.packed import Dataset, file_of, packed_path, read_names, read_packed
from data.spec import DatasetSpec
from linearconv.engine.files import in_checkout
from linearconv.errors import UserError

log = logging.getLogger(__name__)


def default_root() -> str:
    """The folder of packed datasets: $LINEARCONV_DATA, else datasets in the checkout."""
    return os.environ.get("LINEARCONV_DATA") or str(in_checkout("datasets"))


class DatasetFile:
    """`<root>/<name>.npz`, downloaded and packed on first use, or `spec.path`, read in place.

    Args:
        spec: the dataset, and what its file must contain.
        root: the folder of packed files.
    """

    def __init__(self, spec: DatasetSpec, root: Path) -> None:
        self.spec, self.root = spec, root.expanduser()
        self.path = file_of(spec, self.root)

    @cached_property
    def digest(self) -> str:
        """What identifies the data, read without loading the images if possible.

        That of the published data (`DatasetSpec.published`), if the file has the published digest
        or was packed from the official files, or if there is no file yet; else the digest of what
        is in the file.

        Raises:
            UserError: the data is missing and cannot be fetched, or is damaged.
        """
        published = self.spec.published
        if not self.path.exists() and published is not None:
            return published
        self._fetch()
        digest, official = read_names(self.spec, self.root)
        if digest is None:  # nothing ties the official files to the images
            digest, official = self._dataset.digest, None
        return self._name(digest, official)

    def _name(self, digest: str, official: str | None) -> str:
        """What identifies data with this digest that was packed from these official files."""
        spec = self.spec
        known = digest == spec.digest if spec.digest else official == spec.published
        return spec.published if known and spec.published else digest

    def load(
        self,
        *,
        limit_train: int | None = None,
        limit_test: int | None = None,
        val_fraction: float = 0.0,
        strict: bool = False,
        option: str | None = "dataset.strict=true",
    ) -> Dataset:
        """The images in canonical order; see `data.load_dataset`.

        `option` is what makes it `strict`, for the message; None where nothing does.

        Raises:
            UserError: the data is damaged, does not match the spec, is missing and cannot be
                fetched, or is not `strict`.
        """
        self._fetch()
        dataset = self._dataset
        if self._name(dataset.digest, dataset.official) != self.digest:
            raise UserError(
                f"{self.path} has digest {dataset.digest}, but {self.digest} was expected before "
                "it was read: run the same command again to use this data under its own identity"
            )
        if self.digest != self.spec.published:
            log.warning("%s: the run gets its own identity and fills no table cell", self.unknown)
        if self.spec.own:  # the published ones are the paper's as they are
            dataset.report_shared(self.path, strict=strict, option=option)
        return dataset.limited(limit_train, limit_test).hold_out(val_fraction)

    @property
    def unknown(self) -> str:
        """Why the file is not known to have the published data, for messages."""
        spec, digest = self.spec, self._dataset.digest
        if spec.digest and spec.own:
            return (
                f"{self.path} (sha256 {digest}) is not the {spec.name} that its yaml describes "
                f"({spec.digest}): `python scripts/prepare_data.py --from-folder DIR --name "
                f"{spec.name} --overwrite` writes both"
            )
        if spec.digest:
            return (
                f"{self.path} differs from the published {spec.name} in images or labels (sha256 "
                f"{digest}, expected {spec.digest})"
            )
        if spec.official_md5:
            return (
                f"{self.path} was packed without verifying the official files of {spec.name}: "
                f"delete it and run `python scripts/prepare_data.py {spec.name}`"
            )
        return f"nothing is pinned that {self.path} (sha256 {digest}) could be compared with"

    @cached_property
    def _dataset(self) -> Dataset:
        return read_packed(self.spec, self.root)

    def _fetch(self) -> None:
        """Download a published dataset without a file; of others, reading says what to do."""
        spec = self.spec
        if self.path.exists() or spec.own or spec.path is not None:
            return
        from data.official import pack

        self._check_root()
        log.info("%s not found: fetching %s", self.path, spec.name)
        pack(spec.name, self.root, official_md5=spec.official_md5)

    def _check_root(self) -> None:
        """Refuse to download into a folder that may be a typing error: only the default is made."""
        if self.root.exists() or self.root.resolve() == in_checkout("datasets").resolve():
            return
        usual = packed_path(self.spec.name, Path(default_root()))
        raise UserError(
            f"the folder of datasets, {self.root}, does not exist, so nothing was downloaded. The "
            f"default is {usual.parent}/, where {usual.name} is "
            f"{'' if usual.exists() else 'not '}present. Correct the folder, or create it "
            f"(mkdir -p {self.root}) to download {self.spec.name} into it"
        )
