"""An exported ONNX network with 8-bit weights and activations."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from data import Batches
from linearconv.engine.files import atomic_write
from scripts.deployment.formats import INPUT, Logits, read_onnx

CALIBRATION = 1000
"""Training images that the ranges of the activations are taken from."""


def quantise(source: Path, path: Path, batches: Batches) -> str:
    """Quantise the network `source` to `path`; returns a line with both accuracies.

    Weights are 8-bit integers with a scale for each filter, activations with one for each tensor,
    calibrated on training images.

    Args:
        source: an exported ONNX file.
        path: where to write.
        batches: `test()` are the test images, `val()` the training images, without augmentation.
    """
    with atomic_write(path) as file:
        file.write(_quantised(source, batches))
        file.flush()
        files = {"fp32": source, "int8": Path(file.name)}
        correct = {name: _correct(read_onnx(found)[0], batches) for name, found in files.items()}
    total = len(batches.dataset.test)
    accuracies = ", ".join(f"{name} {100 * n / total:.2f} %" for name, n in correct.items())
    return (
        f"{path}: int8, {path.stat().st_size:,} bytes; accuracy on {total:,} test images: "
        f"{accuracies}; calibrated on {len(batches.dataset.val):,} training images"
    )


def _quantised(source: Path, batches: Batches) -> bytes:
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
            self.batches = batches.val()

        def get_next(self) -> dict | None:
            images, _ = next(self.batches, (None, None))
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


def _correct(logits: Logits, batches: Batches) -> int:
    """Number of test images that are classified correctly."""
    return sum(
        int((logits(images).argmax(dim=1) == labels).sum()) for images, labels in batches.test()
    )
