"""An exported ONNX network with 8-bit weights and activations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from data import Dataset, DatasetSpec, load_dataset
from linearconv.engine.files import atomic_write
from scripts.deployment.formats import INPUT, Logits, read_onnx
from scripts.deployment.images import normalised

CALIBRATION = 1000
"""Training images that the ranges of the activations are taken from."""
BATCH = 250


def quantise(source: Path, path: Path, spec: DatasetSpec, root: Path, limit: int | None) -> str:
    """Quantise the network `source` to `path`; returns a line with both accuracies.

    Weights are 8-bit integers with a scale for each filter, activations with one for each tensor,
    calibrated on training images.

    Args:
        source: an exported ONNX file.
        path: where to write.
        spec: the dataset, downloaded if it is missing.
        root: the folder of packed datasets.
        limit: number of test images, None for all.
    """
    data = load_dataset(spec, root, limit_test=limit)
    with atomic_write(path) as file:
        file.write(_quantised(source, data, spec))
        file.flush()
        files = {"fp32": source, "int8": Path(file.name)}
        correct = {name: _correct(read_onnx(found)[0], data, spec) for name, found in files.items()}
    total = len(data.test)
    accuracies = ", ".join(f"{name} {100 * n / total:.2f} %" for name, n in correct.items())
    return (
        f"{path}: int8, {path.stat().st_size:,} bytes; accuracy on {total:,} test images: "
        f"{accuracies}; calibrated on {min(CALIBRATION, len(data.train)):,} training images"
    )


def _quantised(source: Path, data: Dataset, spec: DatasetSpec) -> bytes:
    """The content of the quantised file."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class TrainingImages(CalibrationDataReader):
        """Batches of training images, each a dict of inputs; None at the end."""

        def __init__(self) -> None:
            self.batches = _batches(data.train.images[:CALIBRATION], spec)

        def get_next(self) -> dict | None:
            images = next(self.batches, None)
            return None if images is None else {INPUT: images.numpy()}

    with TemporaryDirectory() as folder:
        prepared, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            TrainingImages(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # 7 bits of each weight, since AVX2 adds products in 16 bits, which 8 bits overflow.
            reduce_range=True,
        )
        return target.read_bytes()


def _correct(logits: Logits, data: Dataset, spec: DatasetSpec) -> int:
    """Number of test images that are classified correctly."""
    batches = _batches(data.test.images, spec)
    predictions = torch.cat([logits(images).argmax(dim=1) for images in batches])
    return int((predictions.numpy() == data.test.labels).sum())


def _batches(pixels: np.ndarray, spec: DatasetSpec) -> Iterator[Tensor]:
    """The images in batches, normalised."""
    for start in range(0, len(pixels), BATCH):
        yield normalised(pixels[start : start + BATCH], spec)
