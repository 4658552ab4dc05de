"""Networks that start from a trained network with plain convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from linearconv import convert
from linearconv.errors import UserError
from models.narrow import without
from models.registry import replaced_convs, widths_of
from models.variants import Variant


def start_from(
    model: nn.Module, trained: nn.Module, name: str, variant: Variant, images: Tensor
) -> None:
    """Load the weights of a trained network: narrowed, and converted, as the variant is.

    Args:
        model: built as the variant (`build_model`).
        trained: the same architecture with plain convolutions; on the CPU.
        name: of the architecture.
        variant: of `model`.
        images: some hundreds of training images as the network gets them (see `convert`).

    Raises:
        UserError: the weights cannot be narrowed to the model's widths.
    """
    if variant.width_factor != 1:
        trained = without(trained, images, 1 - variant.width_factor)
    if variant.linear or variant.pair:
        convs = replaced_convs(name, widths_of(name, variant))
        trained = convert(
            trained,
            alpha=dict.fromkeys(convs, variant.alpha),
            rank=variant.rank,
            form="pair" if variant.pair else "linear",
            min_reduction=False,
            warm_start=images,
            inplace=False,
        ).model
    try:
        model.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise UserError(f"{name} cannot be narrowed to {variant.widths}: {error}") from None
