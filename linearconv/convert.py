"""Convert any torch model: its convolutions to LinearConv2d, and these back to plain ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from linearconv.adapters import PaddedLinearConv2d, padding_of, unpadded
from linearconv.layer import LinearConv2d, check_init, coefficient_count, split_filters
from linearconv.plan import FORMS, Plan, plan
from linearconv.regularizer import RegularizedConv2d
from linearconv.replacements import fitted, initialised, rank_of, relative_error, saved_by_rank
from linearconv.responses import as_images
from linearconv.responses import recalibrate as recalibrate_batch_norms
from linearconv.stand_in import check_plain, inherit, is_overridden
from linearconv.table import aligned


@dataclass(frozen=True)
class ConvertedLayer:
    """What `convert` did with one convolution.

    Attributes:
        name: its name in the model; of a shared module, its first name.
        shape: of its weight, (F, C/G, KH, KW).
        groups: G.
        parameters_before: number of parameters, bias included.
        parameters_after: the same as before if it was not converted.
        rank: of its coefficients; None without a rank, or if it was not converted.
        saved_by_rank: coefficients that the rank saves; not above 0 if it saves nothing.
        error: of a warm start, the norm of what is missed of the weight, relative to its norm.
        kept: of a warm start, the share of the output's energy that is kept, on the images or, if
            these do not reach it, on inputs without correlations: 1 - error^2.
        skipped: why it was not converted; None if it was.
    """

    name: str
    shape: tuple[int, ...]
    groups: int
    parameters_before: int
    parameters_after: int
    rank: int | None = None
    saved_by_rank: int | None = None
    error: float | None = None
    kept: float | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Conversion:
    """The result of `convert`; prints as a table.

    Attributes:
        model: the converted model.
        layers: one entry for each convolution of the model, in the order of its modules.
        plan: what was chosen for a budget; None without one.
    """

    model: nn.Module
    layers: tuple[ConvertedLayer, ...]
    plan: Plan | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The layers as dicts, for a DataFrame or a file."""
        return [asdict(layer) for layer in self.layers]

    def __str__(self) -> str:
        """One line for each layer, and their sum."""
        header = ("layer", "weight", "before", "after", "")
        body = [
            (
                layer.name or "(the model)",
                "x".join(map(str, layer.shape)),
                f"{layer.parameters_before:,}",
                f"{layer.parameters_after:,}",
                _remark(layer),
            )
            for layer in self.layers
        ]
        converted = sum(layer.skipped is None for layer in self.layers)
        before = sum(layer.parameters_before for layer in self.layers)
        after = sum(layer.parameters_after for layer in self.layers)
        saved = f"{100 * (1 - after / before):.1f} % fewer parameters" if before else ""
        count = f"{converted} of {len(self.layers)} converted"
        total = (count, "", f"{before:,}", f"{after:,}", saved)
        table = aligned([header, *body, total], left=(0, 1, 4))
        if not converted:
            return table
        warm = any(layer.kept is not None for layer in self.layers)  # by a warm start
        weights = (
            "fitted to those they replace"
            if warm
            else "new, those they replace are lost (warm_start=True fits them)"
        )
        return f"{table}\nweights of the converted layers: {weights}"


def _remark(layer: ConvertedLayer) -> str:
    if layer.skipped is not None:
        return f"skipped: {layer.skipped}"
    useless = layer.saved_by_rank is not None and layer.saved_by_rank <= 0
    rank = (
        []
        if layer.rank is None
        else [f"rank {layer.rank}" + " (the full coefficients are no more)" * useless]
    )
    kept = [] if layer.kept is None else [f"{100 * layer.kept:.1f} % of the output kept"]
    return ", ".join(rank + kept)


def convert(
    model: nn.Module,
    *,
    alpha: float | Mapping[str, float] = 0.5,
    rank: int | None = None,
    budget: float | None = None,
    cost: str = "parameters",
    form: str = "linear",
    skip: str | Iterable[str] = (),
    min_reduction: bool = True,
    warm_start: bool | Tensor | Iterable[Any] = False,
    recalibrate: bool = False,
    init: str = "released",
    inplace: bool = True,
) -> Conversion:
    """Replace the convolutions of any model by LinearConv2d.

    Replaced is each module whose type is exactly `torch.nn.Conv2d` or `RegularizedConv2d`, grouped
    and depth-wise ones included. Shared modules stay shared; device, dtype, memory format, mode,
    forward and backward hooks and `requires_grad` are kept. Converting a converted model changes
    nothing. The new parameters are unknown to optimisers and to wrappers for distributed training:
    convert first.

    Args:
        model: any module. What is scripted in it is not converted.
        alpha: share of primary filters, in (0, 1); or that of each layer to convert, by name.
        budget: keep at most this share of the network's cost, and choose layers and alphas by what
            they lose on the images of `warm_start` (see `linearconv.plan`), which is printed by
            `report.plan`.
        cost: what the budget counts: "parameters", or "macs", multiply-adds of the convolutions.
        form: "linear"; or "pair", to compare with: the low-rank pair of a convolution with P
            filters and a 1x1 convolution, in an `nn.Sequential`.
        rank: None for the full coefficients, else their rank, in each layer at most min(P, S).
        skip: names of modules as in `model.named_modules()`, or patterns ("features.*"), whose
            convolutions stay as they are.
        min_reduction: skip layers that would not have fewer parameters.
        warm_start: fit each layer to the weight it replaces (see `LinearConv2d.from_conv2d`)
            instead of initialising it, by which that weight is lost. With images, some hundreds, as
            a tensor or batches of the network's input, what counts is the error of the outputs on
            them, given the layers before (`linearconv.responses`); grouped layers, and those that
            the images do not reach, are fitted to their weights alone.
        recalibrate: afterwards set the statistics of the batch norms to those of the images, which
            loses accuracy where these are few.
        init: how the layers are initialised without a warm start (see `LinearConv2d`).
        inplace: change `model` itself; else a copy. If `model` is itself a convolution, only the
            report has its replacement.

    Returns:
        The report, with the model as `report.model`.

    Raises:
        ValueError: alpha, rank or init is out of range, a name to skip matches nothing, there are
            no images to recalibrate on, the model is distributed, or a convolution is compiled,
            lazy, or has a weight that is not finite; nothing has been changed.
    """
    images = None if isinstance(warm_start, bool) else as_images(warm_start)
    _check_alpha_and_rank(alpha, rank)
    check_init(init)
    if form not in FORMS or (form == "pair" and (rank is not None or warm_start is False)):
        raise ValueError(
            f"form must be one of {', '.join(FORMS)}, and a pair has no rank and needs a warm start"
        )
    if recalibrate and images is None:
        raise ValueError("recalibrate=True needs images: convert(model, warm_start=images, ...)")
    if budget is not None and (images is None or rank is not None):
        raise ValueError(
            "a budget needs images, and chooses full coefficients, without a rank: "
            "convert(model, budget=..., warm_start=images)"
        )
    if not inplace:
        model = copy.deepcopy(model)
    names = named_modules_of(model, _ConvNd)
    reasons = _left_alone(model, names, [skip] if isinstance(skip, str) else list(skip))
    free = {conv: names[conv][0] for conv, why in reasons.items() if why is None}
    planned = None
    if budget is not None:
        planned = plan(model, images, budget, free, cost=cost, form=form)
    alphas = _alphas(alpha if planned is None else planned, names)
    for conv in free:
        if conv not in alphas:
            reasons[conv] = "not named by alpha" if planned is None else "not in the plan"
        elif planned is None:
            reasons[conv] = _no_gain(conv, alphas[conv], rank, min_reduction)
    chosen = {conv: alphas[conv] for conv, why in reasons.items() if why is None}
    kept: dict[_ConvNd, float] = {}
    if warm_start is False:
        replacements = {c: initialised(c, share, rank, init) for c, share in chosen.items()}
    else:
        replacements = fitted(model, chosen, rank, form, images, kept)
    layers = tuple(
        _described(names[conv][0], conv, replacements.get(conv), kept.get(conv), why)
        for conv, why in reasons.items()
    )
    for conv, new in replacements.items():
        if form == "linear":
            inherit(new, conv, handles=True)
    model = replaced(model, replacements)
    if recalibrate:
        recalibrate_batch_norms(model, images)
    return Conversion(model, layers, planned)


def _check_alpha_and_rank(alpha: float | Mapping[str, float], rank: int | None) -> None:
    if not isinstance(alpha, Mapping) and not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must be between 0 and 1, both excluded, got {alpha}")
    if rank is not None and (type(rank) is not int or rank < 1):
        raise ValueError(f"rank must be a whole number of at least 1, or None, got {rank}")


def _left_alone(
    model: nn.Module, names: Mapping[_ConvNd, list[str]], skip: list[str]
) -> dict[_ConvNd, str | None]:
    """Why each convolution stays as it is, whatever its share; None if it may be converted."""
    _check_whole(model, names)
    owners, skipped = _owners(model), _matching(model, skip)
    reasons: dict[_ConvNd, str | None] = {}
    for conv, found in names.items():
        others = {n for p in conv.parameters(False) for n in owners[_memory(p)]} - set(found)
        if skipped & set(found):
            reasons[conv] = "as requested"
        elif others:
            reasons[conv] = f"shares parameters with {', '.join(sorted(others))}"
        else:
            reasons[conv] = _unsuitable(conv)
    return reasons


def _described(
    name: str, conv: _ConvNd, new: nn.Module | None, kept: float | None, skipped: str | None
) -> ConvertedLayer:
    """What was done with a convolution."""
    return ConvertedLayer(
        name=name,
        shape=tuple(conv.weight.shape),
        groups=conv.groups,
        parameters_before=sum(p.numel() for p in conv.parameters()),
        parameters_after=sum(p.numel() for p in (new or conv).parameters()),
        rank=getattr(new, "rank", None),
        saved_by_rank=saved_by_rank(new),
        error=None if kept is None else relative_error(new, conv),
        kept=kept,
        skipped=skipped,
    )


def fuse(model: nn.Module) -> nn.Module:
    """A copy of `model` with each LinearConv2d fused into a plain Conv2d; equal outputs.

    The original is unchanged. A layer used in several places stays one shared layer; hooks are
    kept.

    Raises:
        ValueError: a layer is compiled, its parameters are pruned, or it computes something else
            than LinearConv2d; the message says what to do.
    """
    for layer, found in named_modules_of(model, LinearConv2d).items():
        for method in ("forward", "_conv_forward"):
            kind = PaddedLinearConv2d if type(layer) is PaddedLinearConv2d else LinearConv2d
            if is_overridden(layer, method, kind):
                raise ValueError(
                    f"layer {found[0]!r} has a {method} of its own, which a plain convolution "
                    "would not have: replace the layer by what it computes first"
                )
        for name in ("primary", "coefficients", "coefficients1", "coefficients2", "bias"):
            if f"{name}_orig" in layer._parameters or f"{name}_g" in layer._parameters:
                raise ValueError(
                    f"{name} of layer {found[0]!r} is computed from other parameters, which cannot "
                    f"be copied: first call torch.nn.utils.prune.remove(layer, {name!r}) (or "
                    f"remove_weight_norm or remove_spectral_norm(layer, {name!r}))"
                )
    model = copy.deepcopy(model)
    return replaced(model, {layer: layer.fuse() for layer in named_modules_of(model, LinearConv2d)})


def set_execution(model: nn.Module, execution: str) -> None:
    """Set how every LinearConv2d of `model` computes its output (see `LinearConv2d`).

    Grouped layers cannot be factored: with execution="factored" they use "generate".
    """
    for module in model.modules():
        if isinstance(module, LinearConv2d):
            grouped = execution == "factored" and module.groups != 1
            module.execution = "generate" if grouped else execution


def named_modules_of(model: nn.Module, kind: type[nn.Module]) -> dict[Any, list[str]]:
    """The modules of a kind with all their names.

    Raises:
        ValueError: one is compiled, so that replacing it would have no effect.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, kind):
            names.setdefault(module, []).append(name)
        # The wrapper of torch.compile keeps calling the module that it was made of.
        # (TorchScript's modules have items() alone.)
        compiled = dict(module._modules.items()).get("_orig_mod")
        if isinstance(compiled, kind) or isinstance(module, kind) and module._compiled_call_impl:
            raise ValueError(
                f"layer {name!r} is compiled (torch.compile): do this with the plain model, and "
                "compile the result"
            )
    return names


def _owners(model: nn.Module) -> dict[tuple[int, int], list[str]]:
    """The names of the modules whose parameters begin at each place in memory.

    Those of a shared module are all named.
    """
    owners: dict[tuple[int, int], list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(_memory(parameter), []).append(name)
    return owners


def _memory(parameter: Tensor) -> tuple[int, int]:
    """Where a parameter begins; equal for two that were tied by their data alone."""
    if is_lazy(parameter) or parameter.layout != torch.strided:  # has no such place
        return id(parameter), 0
    return parameter.untyped_storage()._cdata, parameter.storage_offset()


def _matching(model: nn.Module, patterns: list[str]) -> set[str]:
    """The names of all modules that match a pattern, or are inside one that does."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    matching: set[str] = set()
    for pattern in patterns:
        found = [name for name in names if name and fnmatchcase(name, pattern)]
        if not found:
            convolutions = ", ".join(sum(named_modules_of(model, _ConvNd).values(), []))
            raise ValueError(f"skip={pattern!r} matches no module; convolutions: {convolutions}")
        inside = tuple(f"{name}." for name in found)
        matching |= {*found, *(name for name in names if name.startswith(inside))}
    return matching


def _check_whole(model: nn.Module, names: dict[Any, list[str]]) -> None:
    """Check that the convolutions have their weights, and nothing else refers to these.

    Raises:
        ValueError: a convolution is lazy, or the model is distributed.
    """
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError("convert the model before DistributedDataParallel wraps it")
    for conv, found in names.items():
        if isinstance(conv, LazyModuleMixin):
            raise ValueError(f"layer {found[0]!r} has no shape yet: run the model once before")
        if hasattr(conv.weight, "full_tensor"):  # a DTensor
            raise ValueError(f"layer {found[0]!r} is sharded: convert the model before sharding it")


def _alphas(
    alpha: float | Mapping[str, float], names: Mapping[_ConvNd, list[str]]
) -> dict[_ConvNd, float]:
    """The share of primary filters of each convolution.

    Raises:
        ValueError: a name is that of no convolution.
    """
    if not isinstance(alpha, Mapping):
        return dict.fromkeys(names, alpha)
    by_name = {name: conv for conv, found in names.items() for name in found}
    if unknown := [name for name in alpha if name not in by_name]:
        raise ValueError(
            f"alpha names {', '.join(unknown)}; the convolutions are {', '.join(by_name)}"
        )
    return {by_name[name]: share for name, share in alpha.items()}


def _unsuitable(conv: _ConvNd) -> str | None:
    """Why a convolution cannot be converted, or None."""
    if isinstance(conv, LinearConv2d):
        return "is a LinearConv2d"
    subclass = type(conv) not in (nn.Conv2d, RegularizedConv2d) and not is_parametrized(conv)
    padded = padding_of(conv) is not None and set(conv._parameters) == {"weight", "bias"}
    if subclass and isinstance(conv, nn.Conv2d) and not padded:
        return f"is a subclass, {type(conv).__name__}, whose output may be something else"
    try:
        check_plain(unpadded(conv) if padded else conv)
    except ValueError as error:
        return str(error)
    return "is complex" if conv.weight.is_complex() else None


def _no_gain(conv: nn.Conv2d, alpha: float, rank: int | None, min_reduction: bool) -> str | None:
    """Why a convolution should not be converted with this share, or None."""
    try:
        primary, secondary = split_filters(conv.out_channels, alpha)
    except ValueError as error:
        return str(error)
    coefficients = coefficient_count(primary, secondary, rank_of(conv, alpha, rank))
    saved = secondary * conv.weight[0].numel() - coefficients
    if min_reduction and saved <= 0:
        return f"{-saved:,} parameters more" if saved else "as many parameters"
    return None


def replaced(model: nn.Module, replacements: dict[Any, nn.Module]) -> nn.Module:
    """The model with its modules replaced, in all places."""
    if model in replacements:
        return replacements[model]
    for parent in list(model.modules()):
        # named_children() would skip a module registered twice in one parent.
        for name, child in list(parent._modules.items()):
            if child in replacements:
                setattr(parent, name, replacements[child])
    return model
