"""Evaluation with batch norms folded into the convolutions before them: equal up to rounding."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx, nn

from linearconv.layer import LinearConv2d
from linearconv.stand_in import has_hooks


class FoldedConv2d(nn.Module):
    """A convolution with the batch norm after it folded in; `refresh` folds the current weights.

    In evaluation mode a batch norm multiplies each channel by scale = gamma / sqrt(var + eps) and
    adds a shift. Scale and shift are folded into the filters and the bias or, in a factored
    LinearConv2d, into the coefficients and the copy of the primary outputs, which is made anyway.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm
        self.factored = (
            isinstance(conv, LinearConv2d)
            and conv.resolved_execution == "factored"
            and conv.primary_outputs is None
        )

    def refresh(self) -> None:
        """Fold the current weights (of both modules, in their own precision)."""
        conv, norm = self.conv, self.norm
        gamma, beta = norm.weight, norm.bias
        self._scale = gamma * torch.rsqrt(norm.running_var + norm.eps)
        bias = norm.running_mean.neg() if conv.bias is None else conv.bias - norm.running_mean
        self._shift = torch.addcmul(beta, bias, self._scale)
        if self.factored:
            primary = conv.primary.shape[0]
            *first, last = conv.factors
            self._factors = (*first, last * self._scale[primary:])
        else:
            self._weight = conv.weight * self._scale[:, None, None, None]

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, F, H', W')."""
        if not self.factored:
            return self.conv._conv_forward(input, self._weight, self._shift)
        outputs = self.conv._conv_forward(input, self.conv.primary, None)
        pixels = outputs.permute(0, 2, 3, 1)
        columns, primary = pixels.flatten(0, 2), outputs.shape[1]
        scale, shift, *factors = (
            t.to(columns.dtype) for t in (self._scale, self._shift, *self._factors)
        )
        joined = columns.new_empty(len(columns), len(shift))
        torch.addcmul(shift[:primary], columns, scale[:primary], out=joined[:, :primary])
        for factor in factors[:-1]:
            columns = columns @ factor
        torch.addmm(shift[primary:], columns, factors[-1], out=joined[:, primary:])
        return joined.unflatten(0, pixels.shape[:3]).permute(0, 3, 1, 2)


class FoldedNetwork:
    """A network with folded batch norms for evaluation, which shares the model's weights.

    It is built once; `refresh` updates it after the weights have changed.

    Args:
        model: any module that torch.fx can trace; it is not changed.

    Attributes:
        folded: number of batch norms that were folded.
    """

    def __init__(self, model: nn.Module) -> None:
        if has_hooks(model):
            raise ValueError("it has hooks, which tracing would lose")
        was_training = model.training
        model.eval()  # leaves out what modules do only in training (dropout)
        # Only the containers are new; the modules in them are the model's own.
        network = fx.GraphModule(model, _LeafTracer().trace(model))
        model.train(was_training)
        called = Counter(node.target for node in network.graph.nodes if node.op == "call_module")
        # Modules whose weights the model's forward reads itself.
        read = {n.target.rpartition(".")[0] for n in network.graph.nodes if n.op == "get_attr"}
        pairs = []
        for node in network.graph.nodes:
            if _is_norm_of_conv(node, network, called) and node.args[0].target not in read:
                (before,) = node.args
                conv, norm = (network.get_submodule(n.target) for n in (before, node))
                network.add_submodule(before.target, FoldedConv2d(conv, norm))
                pairs.append((before, node))
        for before, node in pairs:
            node.replace_all_uses_with(before)
            network.graph.erase_node(node)
        network.recompile()
        self._network = network
        self.folded = len(pairs)

    @torch.no_grad()
    def refresh(self) -> None:
        """Fold the current weights."""
        for module in self._network.modules():
            if isinstance(module, FoldedConv2d):
                module.refresh()

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes), as of the last `refresh`."""
        return self._network(images)


class _LeafTracer(fx.Tracer):
    """Traces through modules that have children and keeps those without as calls."""

    # Else what is computed from a buffer is computed while tracing, and never again.
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children())


def _is_norm_of_conv(node: fx.Node, network: fx.GraphModule, called: Counter[str]) -> bool:
    """Whether a node is a batch norm whose input is a convolution that nothing else reads."""
    if node.op != "call_module" or len(node.args) != 1:
        return False
    (before,) = node.args
    if before.op != "call_module" or len(before.users) != 1:
        return False
    conv, norm = (network.get_submodule(n.target) for n in (before, node))
    return (
        # Subclasses that override what they compute are neither.
        getattr(type(conv), "forward", None) in (nn.Conv2d.forward, LinearConv2d.forward)
        and type(conv)._conv_forward is nn.Conv2d._conv_forward
        and "forward" not in {**vars(conv), **vars(norm)}
        and getattr(type(norm), "forward", None) is nn.BatchNorm2d.forward
        and norm.affine
        and norm.track_running_stats
        and not has_hooks(conv)  # weight norm and pruning are hooks, too
        and not has_hooks(norm)
        and called[before.target] == called[node.target] == 1
    )
