"""LinearConv2d: primary filters, and secondary ones that are their linear combinations.

Shapes in this file: N batch, C input channels, F filters (= output channels), G groups,
P primary and S secondary filters (F = P + S), R rank, KH x KW kernel.
"""

from __future__ import annotations

import math
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linearconv.combine import append_combinations, without_autocast
from linearconv.stand_in import check_plain, conv_arguments, inherit
from linearconv.warm_start import FilterFit, fit_filters

EXECUTIONS = ("auto", "generate", "factored")
MACS_PER_OUTPUT = 64
"""Multiply-adds that combining must save per output value, to offset its extra memory traffic;
measured with `scripts/benchmark.py layers` on a CPU."""
PERMUTED = "permuted"
"""The entry in a state dict's metadata that says whether a layer's outputs are permuted."""

INITS = ("released", "variance_preserving")


def split_filters(filters: int, alpha: float) -> tuple[int, int]:
    """Numbers (P, S) of primary and secondary filters: P = alpha * filters (paper, section 3.2).

    Raises:
        ValueError: alpha is outside (0, 1) or alpha * filters is not a whole number.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must be between 0 and 1, both excluded, got {alpha}")
    primary = round(alpha * filters)
    if abs(alpha * filters - primary) > 1e-6 or not 0 < primary < filters:
        raise ValueError(
            f"alpha={alpha:g} does not split {filters} filters into whole primary and secondary "
            f"filters (alpha * {filters} = {alpha * filters:g}); {nearest_alphas(alpha, filters)}"
        )
    return primary, filters - primary


def coefficient_count(primary: int, secondary: int, rank: int | None) -> int:
    """Number of coefficients of P primary and S secondary filters."""
    return primary * secondary if rank is None else (primary + secondary) * rank


def nearest_alphas(alpha: float, filters: int) -> str:
    """A message with the valid alphas, multiples of 1/`filters`, nearest to `alpha`."""
    below, above = math.floor(alpha * filters + 1e-9), math.ceil(alpha * filters - 1e-9)
    valid = sorted({k for k in (below, above) if 0 < k < filters})
    if not valid:
        return "no alpha does: at least two filters are needed"
    return "nearest valid: " + " and ".join(f"{k / filters:.10g}" for k in valid)


class LinearConv2d(nn.Conv2d):
    """2-D convolution whose last F - P filters are linear combinations of its first P.

    A drop-in replacement for `torch.nn.Conv2d` with fewer parameters (paper, section 3.2 and
    Algorithm 2). The parameters are

    * `primary` (P, C/G, KH, KW), P = alpha * F;
    * `coefficients` (P, S), the paper's A, or, with a rank, `coefficients1` (P, R) and
      `coefficients2` (R, S), A = A1 A2 (Eq. 1, which asks for R < min(P, S); R = min(P, S) is
      allowed here);
    * `bias` (F,), with `bias=True`.

    The buffer `primary_outputs` (F,) is None except in a layer that `from_conv2d` has fitted with
    primary filters from anywhere: it is then nonzero at the outputs of the primary filters.

    `weight` is the generated (F, C/G, KH, KW) tensor: differentiable, recomputed at each access
    and read-only. Writing into it, as `nn.init.kaiming_normal_(layer.weight)` does, has no
    effect; initialise `primary` and the coefficients instead, and name them, not "weight", to
    `torch.nn.utils.prune`, `weight_norm` and `spectral_norm`. Tools that rewrite weights (batch
    norm folding, TorchScript) need `fuse()` first.

    Args:
        in_channels: C.
        out_channels: F.
        kernel_size: as in `torch.nn.Conv2d`.
        stride: as in `torch.nn.Conv2d`.
        padding: as in `torch.nn.Conv2d`.
        dilation: as in `torch.nn.Conv2d`.
        groups: G.
        bias: whether to add a learnable bias to all F outputs.
        padding_mode: as in `torch.nn.Conv2d`.
        alpha: share of primary filters, in (0, 1), with alpha * F a whole number.
        rank: None for a full A, else R with 1 <= R <= min(P, S).
        execution: how the output is computed; all are equal up to rounding. "generate" generates
            the weight and convolves once (as in the paper). "factored" (G = 1 only) convolves
            with the primary filters and combines their outputs, about half the multiply-adds.
            "auto" uses "factored" if G = 1 and it saves at least 64 multiply-adds per output
            value: S * KH * KW * C - (P * S or (P + S) * R) >= 64 * F.
        init: "released" as in the authors' code (Xavier uniform primary filters, the rest
            uniform in +-0.1) or "variance_preserving": every filter, generated ones included,
            has the variance that `torch.nn.Conv2d` would give it.
        device: as in `torch.nn.Conv2d`.
        dtype: as in `torch.nn.Conv2d`, but real.

    Raises:
        ValueError: an argument is out of range; the message lists the valid values.

    Shape:
        (N, C, H, W) or (C, H, W) to (N, F, H', W') or (F, H', W'), as `torch.nn.Conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        alpha: float = 0.5,
        rank: int | None = None,
        execution: str = "auto",
        init: str = "released",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        primary, secondary = split_filters(out_channels, alpha)
        _check_rank(rank, primary, secondary)
        check_init(init)
        if dtype is not None and dtype.is_complex:
            raise ValueError(f"dtype must be real, got {dtype}: LinearConv is defined for reals")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        del self._parameters["weight"]  # registered by Conv2d; replaced by the property below
        self.alpha, self.rank, self.init = alpha, rank, init
        self.execution = execution

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.primary = empty(primary, in_channels // groups, *self.kernel_size)
        if rank is None:
            self.coefficients = empty(primary, secondary)
        else:
            self.coefficients1 = empty(primary, rank)
            self.coefficients2 = empty(rank, secondary)
        self.register_buffer("primary_outputs", None)
        self.reset_parameters()

    @property
    def execution(self) -> str:
        """The requested execution: "auto", "generate" or "factored"."""
        return self._execution

    @execution.setter
    def execution(self, value: str) -> None:
        _check_choice("execution", value, EXECUTIONS)
        if value == "factored" and self.groups != 1:
            raise ValueError(
                f"execution='factored' needs groups=1, got groups={self.groups}: a secondary "
                "filter combines primary filters of other groups, which have other inputs; use "
                "'generate' or 'auto'"
            )
        self._execution = value

    @property
    def resolved_execution(self) -> str:
        """The execution in use: "generate" or "factored"."""
        if self.execution != "auto":
            return self.execution
        # Depends only on the constructor's integers, never on a tensor, so that torch.export and
        # torch.compile do not specialise on a batch or image size and torch.fx can trace it.
        if self.groups != 1:
            return "generate"
        primary, secondary = split_filters(self.out_channels, self.alpha)
        combining = coefficient_count(primary, secondary, self.rank)
        saved = secondary * self.in_channels * math.prod(self.kernel_size) - combining
        return "factored" if saved >= MACS_PER_OUTPUT * self.out_channels else "generate"

    def reset_parameters(self) -> None:
        """Draw all parameters, including the bias, from torch's global generator."""
        if "primary" not in self._parameters:
            return  # called by Conv2d.__init__, before this class has its parameters
        if self.init == "released":
            nn.init.xavier_uniform_(self.primary)
            bounds = dict.fromkeys(("coefficients", "coefficients1", "coefficients2", "bias"), 0.1)
        else:
            # Var(sum of P products) = P var(A) var(primary), so var(A) = 1/P keeps the variance
            # of the primary filters, which is that of nn.Conv2d: uniform in +-1/sqrt(fan_in).
            primary_bound = self.primary[0].numel() ** -0.5
            nn.init.uniform_(self.primary, -primary_bound, primary_bound)
            by_primary = math.sqrt(3.0 / self.primary.shape[0])
            bounds = {"coefficients": by_primary, "coefficients1": by_primary}
            bounds["coefficients2"] = math.sqrt(3.0 / self.rank) if self.rank else 0.0
            bounds["bias"] = primary_bound
        for name, bound in bounds.items():
            parameter = self._parameters.get(name)
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)

    @property
    def weight(self) -> Tensor:
        """All filters (F, C/G, KH, KW): [primary, secondary] (Algorithm 2), then permuted."""
        # Generated in the parameters' own precision also under autocast: only the convolution
        # with the result may be autocast.
        with without_autocast(self.primary):
            # V^T (D, P), D = KH * KW * C/G: the filters' values in memory order, since their
            # combination does not depend on the order and any other order needs a copy.
            channels_last = is_channels_last(self.primary)
            stored = self.primary.permute(0, 2, 3, 1) if channels_last else self.primary
            columns = append_combinations(stored.flatten(1).t(), self.factors, None)
            weight = self._permuted(columns.t(), 0).unflatten(1, stored.shape[1:])
            return weight.permute(0, 3, 1, 2) if channels_last else weight

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The paper's (A,), or (A1, A2) with a rank."""
        if self.rank is None:
            return (self.coefficients,)
        return self.coefficients1, self.coefficients2

    def regularized_filters(self) -> Tensor:
        """The filters that take part in the correlation loss: the primary ones."""
        return self.primary

    def forward(self, input: Tensor) -> Tensor:
        """Convolve: (N, C, H, W) -> (N, F, H', W')."""
        if self.resolved_execution == "generate":
            return self._conv_forward(input, self.weight, self.bias)
        return self._factored_forward(input)

    def _factored_forward(self, input: Tensor) -> Tensor:
        """Combine the primary outputs instead of the filters: x * (A^T W) = A^T (x * W)."""
        primary = self._conv_forward(input, self.primary, None)
        # The bias belongs to the combined output, so it cannot be added before the combination.
        bias = None if self.bias is None else self.bias.to(primary.dtype)
        factors = tuple(factor.to(primary.dtype) for factor in self.factors)
        if is_channels_last(primary):
            pixels = primary.permute(0, 2, 3, 1)  # (N, H', W', P), in memory order
            if self.primary_outputs is None:
                joined = append_combinations(pixels.flatten(0, 2), factors, bias)
            else:
                joined = append_combinations(pixels.flatten(0, 2), factors, None)
                joined = self._permuted(joined, 1)
                joined = joined if bias is None else joined + bias
            # unflatten would fix the batch size where this is traced for ONNX.
            return joined.view(*pixels.shape[:3], self.out_channels).permute(0, 3, 1, 2)
        secondary = primary
        for factor in factors:  # combine channels by a 1x1 convolution
            secondary = F.conv2d(secondary, factor.t()[:, :, None, None])
        output = self._permuted(torch.cat([primary, secondary], dim=-3), -3)
        return output if bias is None else output + bias.view(-1, 1, 1)

    @property
    def permutation(self) -> Tensor | None:
        """(F,): output k is row permutation[k] of [primary, secondary]; None for the identity."""
        if self.primary_outputs is None:
            return None
        first = self.primary_outputs != 0
        # Not cumsum of bool, which torch's older ONNX exporter writes as it is: invalid.
        secondary = self.primary.shape[0] - 1 + (~first).long().cumsum(0)
        return torch.where(first, first.long().cumsum(0) - 1, secondary)

    def _permuted(self, joined: Tensor, dim: int) -> Tensor:
        """[primary, secondary] along `dim` in the order of the outputs."""
        permutation = self.permutation
        return joined if permutation is None else joined.index_select(dim, permutation)

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None:
            metadata[PERMUTED] = self.primary_outputs is not None

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        # Whether there is a permutation is part of what is loaded. A dict without the metadata of
        # `state_dict()` may be of parameters alone: there the absence says nothing.
        name = f"{prefix}primary_outputs"
        given = state_dict.get(name)
        if given is not None and self.primary_outputs is None:
            self.primary_outputs = torch.empty_like(given, device=self.primary.device)
        whole = local_metadata and any(key.startswith(f"{prefix}primary") for key in state_dict)
        # Older dicts do not say it in their metadata.
        if given is None and whole and not local_metadata.get(PERMUTED, False):
            self.primary_outputs = None
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """A plain `torch.nn.Conv2d` with the same outputs, for inference.

        Mode, forward and backward hooks, and `requires_grad` (that of `primary`, or of what it is
        parametrised by) are kept.
        """
        fused = nn.Conv2d(*conv_arguments(self), device="meta")
        order = torch.channels_last if is_channels_last(self.primary) else torch.contiguous_format
        fused.weight = nn.Parameter(self.weight.detach().clone(memory_format=order))
        if self.bias is not None:
            fused.bias = nn.Parameter(self.bias.detach().clone())
        fused.requires_grad_(self._trains_filters())
        return inherit(fused, self)

    def __prepare_scriptable__(self) -> None:
        """Called by torch.jit.script, whose own words would not say what to do.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "TorchScript cannot compile a LinearConv2d: script linearconv.fuse(model), which has "
            "the same outputs (or export the model with torch.export)"
        )

    def _trains_filters(self) -> bool:
        """Whether the primary filters are trained; parametrised ones are by their parameters."""
        sources = (p for name, p in self.named_parameters() if "primary" in name)
        return any(parameter.requires_grad for parameter in sources)

    @classmethod
    @torch.no_grad()
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        *,
        alpha: float = 0.5,
        rank: int | None = None,
        execution: str = "auto",
        fit: FilterFit | None = None,
    ) -> LinearConv2d:
        """The LinearConv2d that represents a trained convolution best (a warm start).

        Without a rank it is the best approximation of the weight by one of rank P; with a rank, P
        of the filters are kept and A1 A2 is the best fit of the others (see
        `linearconv.warm_start`). The outputs keep their order. Equal to `conv` if F - P of its
        filters are such combinations of the others. Mode, hooks, memory format and `requires_grad`
        are those of `conv`.

        Args:
            conv: the convolution.
            alpha: share of primary filters.
            rank: of the coefficients.
            execution: of the layer.
            fit: what `fit_filters` has found on images; None: the fit to the weight.

        Raises:
            ValueError: as in the constructor; or `conv` computes something else than its weight's
                convolution, or its weight is not finite.
        """
        check_plain(conv)
        layer = nn.utils.skip_init(
            cls,
            *conv_arguments(conv),
            alpha=alpha,
            rank=rank,
            execution=execution,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        fit = fit or fit_filters(conv.weight, len(layer.primary), rank)
        layer.primary.copy_(fit.filters)
        for factor, fitted in zip(layer.factors, fit.factors, strict=True):
            factor.copy_(fitted)
        layer.primary_outputs = fit.primary_outputs
        if conv.bias is not None:
            layer.bias.copy_(conv.bias if fit.bias is None else fit.bias)
        layer.stored_as(conv)
        return inherit(layer, conv)

    def stored_as(self, conv: nn.Conv2d) -> None:
        """Set memory format and `requires_grad` as a convolution has them."""
        if is_channels_last(conv.weight):
            self.to(memory_format=torch.channels_last)
        for parameter in (self.primary, *self.factors):
            parameter.requires_grad_(conv.weight.requires_grad)
        if self.bias is not None:
            self.bias.requires_grad_(conv.bias.requires_grad)

    def extra_repr(self) -> str:
        """Conv2d's arguments, alpha, rank and execution."""
        rank = "" if self.rank is None else f", rank={self.rank}"
        return f"{super().extra_repr()}, alpha={self.alpha:g}{rank}, {self.resolved_execution}"


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor (N, C, H, W) is stored in channels_last order, and only in that.

    If one of its dimensions makes both orders the same (C = 1, or H = W = 1), it is row-major.
    """
    # torch.fx traces with proxies, which are not Tensors, and vmap's tensors do not know.
    return (
        isinstance(tensor, Tensor)
        and not torch._C._are_functorch_transforms_active()
        and tensor.dim() == 4
        and tensor.is_contiguous(memory_format=torch.channels_last)
        and not tensor.is_contiguous()
    )


def _check_rank(rank: int | None, primary: int, secondary: int) -> None:
    if rank is None or (isinstance(rank, Integral) and 1 <= rank <= min(primary, secondary)):
        return
    raise ValueError(
        f"rank must be None or a whole number between 1 and {min(primary, secondary)} for "
        f"{primary} primary and {secondary} secondary filters (paper, Eq. 1), got {rank}"
    )


def check_init(init: str) -> None:
    """Check the name of an initialisation.

    Raises:
        ValueError: there is no such one; the message lists those that there are.
    """
    _check_choice("init", init, INITS)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
