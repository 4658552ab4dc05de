"""The formats that a network is exported to, and reading them back.

Every file has, under `KEY`, the same JSON text: what the network is and how its inputs are made.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from linearconv import set_execution
from linearconv.errors import UserError, first_line
from models import Variant, build_model

log = logging.getLogger(__name__)

KEY = "linearconv"
"""Of the JSON text: in ONNX among the model's properties, in safetensors in the header's metadata,
in torch.export the extra file `linearconv.json`."""
OPSET = 18
"""Of ONNX; named here, so that it does not change with torch."""
INPUT, OUTPUT = "images", "logits"
"""Names of the ONNX network's input and output."""

About = dict[str, Any]
Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: of its files.
        content: (network, example, about) -> a file's content; the network is in evaluation mode
            and on the CPU, the example a batch of at least two images.
        read: path -> the function from images to logits that the file describes, and `about`.
    """

    suffix: str
    content: Callable[[nn.Module, Tensor, About], bytes]
    read: Callable[[Path], tuple[Logits, About]]


def onnx_content(network: nn.Module, example: Tensor, about: About) -> bytes:
    """The network as one ONNX file, for any batch size."""
    import onnx

    model = onnx.load_from_string(_translated(network, example))
    onnx.helper.set_model_props(model, {KEY: json.dumps(about)})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _translated(network: nn.Module, example: Tensor) -> bytes:
    """The network in ONNX, as torch writes it."""
    names = {"input_names": [INPUT], "output_names": [OUTPUT], "opset_version": OPSET}
    names["verbose"] = False
    try:
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=_any_batch(),
            optimize=True,
            **names,
        )
        return program.model_proto.SerializeToString()
    except torch.onnx.OnnxExporterError as error:
        # torch 2.6 with an onnxscript of 2025 or later: it cannot translate batch norms.
        log.info("using the older exporter: %s", first_line(error))
    file = io.BytesIO()
    axes = {name: {0: "batch"} for name in (INPUT, OUTPUT)}
    torch.onnx.export(network, (example,), file, dynamo=False, dynamic_axes=axes, **names)
    return file.getvalue()


def _any_batch() -> tuple[dict[int, Any]]:
    """The first dimension of the input is free."""
    return ({0: torch.export.Dim("batch")},)


def read_onnx(path: Path) -> tuple[Logits, About]:
    """The network in ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return logits, json.loads(session.get_modelmeta().custom_metadata_map[KEY])


def torch_export_content(network: nn.Module, example: Tensor, about: About) -> bytes:
    """The network as torch.export.save writes it, for any batch size."""
    program = torch.export.export(network, (example,), dynamic_shapes=_any_batch())
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={f"{KEY}.json": json.dumps(about)})
    return file.getvalue()


def read_torch_export(path: Path) -> tuple[Logits, About]:
    """The network that torch.export.load finds in a file."""
    extra = {f"{KEY}.json": ""}
    program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra)
    return program.module(), json.loads(extra[f"{KEY}.json"])


def safetensors_content(network: nn.Module, example: Tensor, about: About) -> bytes:
    """The network's state dict."""
    state = network.state_dict()
    tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}  # as for tied
    return to_safetensors(tensors, {KEY: json.dumps(about)})


def read_safetensors(path: Path) -> tuple[nn.Module, About]:
    """The network, built anew by what the file says of it, with the file's tensors."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network = build_model(
        about["model"],
        Variant(**about["variant"]),
        in_channels=about["channels"],
        classes=about["classes"],
    )
    network.load_state_dict(tensors)
    if about["form"] == "factored":
        set_execution(network, "factored")
    return network.eval(), about


FORMATS = {
    "onnx": Format(".onnx", onnx_content, read_onnx),
    "torch_export": Format(".pt2", torch_export_content, read_torch_export),
    "safetensors": Format(".safetensors", safetensors_content, read_safetensors),
}


def check_packages(*names: str) -> None:
    """Check that packages of the extra `export` can be imported.

    Raises:
        UserError: one cannot; the message says how to install it.
    """
    for name in names:
        try:
            __import__(name)
        except ImportError as error:
            raise UserError(
                f"this needs the package {name} ({error}): pip install -e '.[export]' in the "
                "checkout, or pip install onnx onnxscript onnxruntime"
            ) from None
