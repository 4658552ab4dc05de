"""Networks of torchvision and timm by their names, for commands that take any network."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import NamedTuple

from torch import nn

from linearconv.errors import UserError, first_line
from models.registry import build_model, model_names
from models.variants import Variant

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Means and standard deviations of ImageNet's channels."""


def check_network(name: str, *, pretrained: bool) -> None:
    """Check that there is a network of this name, before any data is loaded.

    Raises:
        UserError: there is none, or no weights of it, or timm is not installed.
    """
    library, model = _split(name)
    known = _LIBRARIES[library].names()
    if model not in known:
        close = get_close_matches(model, known) or known[:10]
        raise UserError(f"no network {name}; did you mean one of {', '.join(close)}?")
    if pretrained and not library:
        raise UserError(f"there are no pretrained weights of {name}; leave out --pretrained")


def any_network(name: str, *, in_channels: int, classes: int, pretrained: bool) -> nn.Module:
    """A classification network with plain convolutions.

    Args:
        name: `torchvision:NAME`, `timm:NAME`, or a model of this project.
        in_channels: of the images; torchvision's networks take 3.
        classes: number of classes; pretrained networks get a new last layer.
        pretrained: with the published weights, which are downloaded.

    Raises:
        UserError: as in `check_network`; or it cannot be built so, or its weights not be fetched.
    """
    check_network(name, pretrained=pretrained)
    library, model = _split(name)
    try:
        return _LIBRARIES[library].build(model, in_channels, classes, pretrained)
    except UserError:
        raise
    except Exception as error:  # each library, and each of its downloads, has errors of its own
        weights = " with its published weights" if pretrained else ""
        raise UserError(
            f"{name} cannot be built{weights} for {in_channels} channels and {classes} classes: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def published_normalisation(name: str) -> tuple[list[float], list[float]]:
    """Means and standard deviations of the channels that a network's published weights expect.

    They are ImageNet's, except where timm says otherwise.
    """
    library, model = _split(name)
    mean, std = IMAGENET
    if library == "timm":
        import timm

        published = timm.get_pretrained_cfg(model)
        if published is not None:
            mean, std = published.mean, published.std
    return list(mean), list(std)


class _Library(NamedTuple):
    """Where networks come from.

    Attributes:
        names: lists its networks.
        build: makes one, given its name, in_channels, classes and pretrained.
    """

    names: Callable[[], list[str]]
    build: Callable[[str, int, int, bool], nn.Module]


def _split(name: str) -> tuple[str, str]:
    """The library and the network's name in it."""
    library, _, model = name.rpartition(":")
    if library not in _LIBRARIES:
        raise UserError(f"{name}: expected torchvision:NAME, timm:NAME or a name of models/")
    return library, model


def _torchvision_names() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)


def _torchvision(name: str, in_channels: int, classes: int, pretrained: bool) -> nn.Module:
    from torchvision import models

    if in_channels != 3:
        raise UserError(f"torchvision:{name} takes images of 3 channels, not of {in_channels}")
    if not pretrained:
        return models.get_model(name, num_classes=classes)
    return with_classes(models.get_model(name, weights="DEFAULT"), classes)


def with_classes(network: nn.Module, classes: int) -> nn.Module:
    """Replace the last layer of a network of torchvision, changing the network.

    It is linear, or a convolution of 1x1 pixels (SqueezeNet).
    """
    path, last = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ][-1]
    if isinstance(last, nn.Linear):
        layer = nn.Linear(last.in_features, classes)
    else:
        layer = nn.Conv2d(last.in_channels, classes, last.kernel_size)
    network.set_submodule(path, layer)
    return network


def _timm_names() -> list[str]:
    try:
        import timm
    except ImportError:
        raise UserError("networks of timm need timm: pip install timm") from None
    return [*timm.list_models(), *timm.list_pretrained()]  # the latter with the weights' tags


def _timm(name: str, in_channels: int, classes: int, pretrained: bool) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=pretrained, in_chans=in_channels, num_classes=classes)


def _ours(name: str, in_channels: int, classes: int, pretrained: bool) -> nn.Module:
    del pretrained  # refused before
    return build_model(name, Variant(), in_channels=in_channels, classes=classes)


_LIBRARIES = {
    "torchvision": _Library(_torchvision_names, _torchvision),
    "timm": _Library(_timm_names, _timm),
    "": _Library(model_names, _ours),
}
