"""Networks that start from a trained network with plain convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from linearconv import convert
from linearconv.errors import UserError, first_line
from models.pruning import pruned
from models.registry import replaced_convs, widths_of
from models.variants import Variant


def start_from(
    model: nn.Module, trained: nn.Module, name: str, variant: Variant, images: Tensor
) -> None:
    """Load the weights of a trained network: pruned to the variant's widths, and converted.

    Args:
        model: built as the variant (`build_model`).
        trained: the same architecture with plain convolutions; on the CPU.
        name: of the architecture.
        variant: of `model`.
        images: some hundreds of training images as the network gets them (see `convert`).

    Raises:
        UserError: the network cannot be pruned to these widths.
    """
    try:
        model.load_state_dict(_changed(trained, name, variant, images).state_dict())
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"a trained {name} cannot start variant.widths={variant.widths}: {first_line(error)}"
        ) from None


def _changed(trained: nn.Module, name: str, variant: Variant, images: Tensor) -> nn.Module:
    """The trained network as the variant is."""
    convs = replaced_convs(name, widths_of(name, variant))
    if variant.width_factor != 1:
        widths = {layer: conv.out_channels for layer, conv in convs.items()}
        trained = pruned(trained, images, widths)
    if not (variant.linear or variant.pair):
        return trained
    return convert(
        trained,
        alpha=dict.fromkeys(convs, variant.alpha),
        rank=variant.rank,
        form="pair" if variant.pair else "linear",
        min_reduction=False,
        warm_start=images,
        inplace=False,
    ).model
