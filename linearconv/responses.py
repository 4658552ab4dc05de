"""What convolutions give on images, and layers fitted to that, one after the other."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from linearconv.warm_start import Responses

CHUNK = 2**22
"""Values of an output that are turned into float64 at a time."""
LEAST_SCALE = 1e-3
"""Of an output, relative to the largest: one that a batch norm has switched off still counts."""


def as_images(images: Tensor | Iterable[Any]) -> Tensor:
    """A tensor of images, or batches of them (or of images and labels), as one tensor.

    Raises:
        ValueError: there are none.
    """
    if not isinstance(images, Tensor):
        batches = [batch if isinstance(batch, Tensor) else batch[0] for batch in images]
        if not batches:
            raise ValueError("a warm start on images needs some, got an empty iterable")
        images = torch.cat(batches)
    if images.dim() < 2 or not len(images):
        raise ValueError(
            f"a warm start needs a batch of images, got a tensor of shape {tuple(images.shape)}"
        )
    return images


@torch.no_grad()
def fit_on_images(
    model: nn.Module,
    layers: Mapping[nn.Conv2d, Callable[[Responses], nn.Conv2d]],
    images: Tensor,
) -> dict[nn.Conv2d, nn.Conv2d]:
    """Fit layers to convolutions in the order in which images reach them.

    Each is fitted on what the layers before it, already in place, make of the images (Zhang, Zou,
    He and Sun, 2016, section 3.3). All images go through the network at once, in evaluation mode.

    Args:
        model: the network; it is not changed.
        layers: for each convolution, the function that makes its layer. Grouped ones, whose
            outputs have no inputs in common, are not to be among them.
        images: the network's input (N, ...), on its device.

    Returns:
        The layers of the convolutions that the images reach.
    """
    norms = _batch_norms_behind(model, layers, images[:2])
    fitted: dict[nn.Conv2d, nn.Conv2d] = {}

    def put_in_place(conv: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (received,) = inputs
        if conv not in fitted:
            plain = without_bias(output, conv.bias)
            fitted[conv] = layers[conv](measure(plain, conv.bias, norms.get(conv), conv.weight))
        return fitted[conv].forward(received)

    with _evaluating(model), _hooked(layers, put_in_place):
        model(images)
    return fitted


@torch.no_grad()
def measure_all(
    model: nn.Module, convolutions: Iterable[nn.Conv2d], images: Tensor
) -> dict[nn.Conv2d, tuple[Responses, int]]:
    """The responses of convolutions in the network as it is, and how many positions each has.

    Left out are those that the images do not reach; of one that is used several times the first
    use counts.
    """
    norms = _batch_norms_behind(model, convolutions, images[:2])
    found: dict[nn.Conv2d, tuple[Responses, int]] = {}

    def look(conv: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if conv not in found:
            plain = without_bias(output, conv.bias)
            responses = measure(plain, conv.bias, norms.get(conv), conv.weight)
            found[conv] = responses, plain[0, 0].numel()

    with _evaluating(model), _hooked(convolutions, look):
        model(images)
    return found


def without_bias(output: Tensor, bias: Tensor | None) -> Tensor:
    """The output (N, F, H, W) of a convolution, less its bias (F,)."""
    return output if bias is None else output - bias[:, None, None]


def measure(
    plain: Tensor,
    bias: Tensor | None,
    norm: _BatchNorm | None = None,
    weight: Tensor | None = None,
) -> Responses:
    """The moments of outputs.

    Args:
        plain: outputs (N, F, H, W) without the bias.
        bias: (F,) of the convolution; with one, the moments are about the mean.
        norm: the batch norm behind, whose factors the outputs are weighted with.
        weight: (F, ...) of the convolution: as many outputs as there are filters say little about
            what other images give, so the moments are drawn towards those for inputs without
            correlations, F parts of these to as many parts of the measured as there are outputs.
    """
    count = plain.numel() // plain.shape[1]
    total = plain.new_zeros(plain.shape[1], dtype=torch.float64)
    moments = torch.zeros(len(total), len(total), dtype=torch.float64, device=plain.device)
    for part in plain.split(max(1, CHUNK // plain[0].numel())):
        values = part.transpose(0, 1).flatten(1).double()
        total += values.sum(dim=1)
        moments += values @ values.t()
    mean, moments = total / count, moments / count
    scale = torch.ones_like(mean)
    if norm is not None and norm.weight is not None and norm.running_var is not None:
        scale = norm.weight.double().abs() / (norm.running_var.double() + norm.eps).sqrt()
        scale = scale.clamp_min(LEAST_SCALE * scale.max().clamp_min(1e-30))
    if bias is not None:
        moments = moments - torch.outer(mean, mean)
    if weight is not None:
        rows = weight.double().flatten(1)
        plain_inputs = rows @ rows.t()
        share = len(moments) / (len(moments) + count)
        plain_inputs *= moments.trace() / plain_inputs.trace().clamp_min(1e-300)
        moments = (1 - share) * moments + share * plain_inputs
    return Responses(moments, None if bias is None else mean + bias.double(), scale)


@torch.no_grad()
def recalibrate(model: nn.Module, images: Tensor) -> None:
    """Set the statistics of a network's batch norms to those of images, in one pass."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    with _evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        try:
            model(images)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def _batch_norms_behind(
    model: nn.Module, convolutions: Iterable[nn.Conv2d], images: Tensor
) -> dict[nn.Conv2d, _BatchNorm]:
    """The batch norms that get a convolution's output as it is."""
    outputs: list[tuple[nn.Conv2d, weakref.ref[Tensor]]] = []
    found: dict[nn.Conv2d, _BatchNorm] = {}

    def keep(conv: nn.Conv2d, inputs: Any, output: Tensor) -> None:
        outputs.append((conv, weakref.ref(output)))

    def look(norm: _BatchNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.update((conv, norm) for conv, kept in outputs if kept() is inputs[0])

    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    with _evaluating(model), _hooked(convolutions, keep), _hooked(norms, look):
        model(images)
    return found


@contextmanager
def _hooked(modules: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Call a forward hook meanwhile."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode meanwhile; each module gets back its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
