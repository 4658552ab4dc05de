"""Networks of torchvision and timm by their names, for commands that take any network."""

from __future__ import annotations

from difflib import get_close_matches

from torch import nn

from linearconv.errors import UserError
from models.registry import build_model, model_names
from models.variants import Variant


def any_network(name: str, *, in_channels: int, classes: int, pretrained: bool) -> nn.Module:
    """A classification network with plain convolutions.

    Args:
        name: `torchvision:NAME`, `timm:NAME`, or a model of this project.
        in_channels: of the images; torchvision's networks take 3.
        classes: number of classes; pretrained networks get a new last layer.
        pretrained: with the published weights, which are downloaded.

    Raises:
        UserError: there is no such network, or no weights, or timm is not installed.
    """
    library, _, model = name.rpartition(":")
    builders = {"torchvision": _torchvision, "timm": _timm, "": _ours}
    if library not in builders:
        raise UserError(f"{name}: expected torchvision:NAME, timm:NAME or a name of models/")
    return builders[library](model, in_channels, classes, pretrained)


def _torchvision(name: str, in_channels: int, classes: int, pretrained: bool) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    _check_name(f"torchvision:{name}", name, known)
    if in_channels != 3:
        raise UserError(f"torchvision:{name} takes images of 3 channels, not of {in_channels}")
    if not pretrained:
        return models.get_model(name, num_classes=classes)
    network = models.get_model(name, weights="DEFAULT")
    path, last = [(p, m) for p, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    network.set_submodule(path, nn.Linear(last.in_features, classes))
    return network


def _timm(name: str, in_channels: int, classes: int, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise UserError(f"timm:{name} needs timm: pip install timm") from None
    _check_name(f"timm:{name}", name.partition(".")[0], timm.list_models())
    return timm.create_model(name, pretrained=pretrained, in_chans=in_channels, num_classes=classes)


def _ours(name: str, in_channels: int, classes: int, pretrained: bool) -> nn.Module:
    _check_name(name, name, model_names())
    if pretrained:
        raise UserError(f"there are no pretrained weights of {name}; leave out --pretrained")
    return build_model(name, Variant(), in_channels=in_channels, classes=classes)


def _check_name(asked: str, name: str, known: list[str]) -> None:
    if name not in known:
        close = get_close_matches(name, known) or known[:10]
        raise UserError(f"no network {asked}; did you mean one of {', '.join(close)}?")
