"""The same picture in training and in test: its accuracy is no measure of what was learned."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from linearconv.errors import UserError

log = logging.getLogger(__name__)

SHOWN = 3
"""Pairs that a message names."""

Pairs = tuple[tuple[int, int], ...]
"""Index of a test image, and of the first training image that is the same picture."""


def shared_pictures(train: Sequence[bytes], test: Sequence[bytes]) -> Pairs:
    """The test images that are training images, too, by the digests of their pixels."""
    first: dict[bytes, int] = {}
    for index, digest in enumerate(train):
        first.setdefault(digest, index)
    return tuple((i, first[digest]) for i, digest in enumerate(test) if digest in first)


def relative(paths: Sequence[Path], folder: Path) -> list[str]:
    """Paths as they are named in a folder."""
    return [str(path.relative_to(folder)) for path in paths]


def report_shared(
    names: Sequence[tuple[object, object]],
    tests: int,
    source: Path,
    *,
    strict: bool,
    option: str | None,
) -> None:
    """Say once how many test images are training images, too, and which.

    Args:
        names: what each such test image, and the training image, is called.
        tests: number of test images.
        source: of the images.
        strict: refuse them.
        option: what makes `strict` true, for the message; None where nothing does.

    Raises:
        UserError: there are any, and `strict`.
    """
    if not names:
        return
    shown = ", ".join(f"{test} = {train}" for test, train in names[:SHOWN])
    message = (
        f"{source}: {len(names)} of {tests} test images are training images, too ({shown}"
        f"{', ...' * (len(names) > SHOWN)}), so the test accuracy is too high"
    )
    if strict:
        raise UserError(f"{message}: remove them from one of the two, or leave out {option}")
    log.warning("%s%s", message, f"; {option} refuses them" if option else "")
