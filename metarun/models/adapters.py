"""Small trainable parts at a model's layers, which leave it as it was until they move.

Each is a few parameters and a forward hook on the layer, so that no other name changes.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.models.layers import Norm
from metarun.models.net import ADAPTER, Net

AdapterKind = Literal["film", "residual", "lora"]
Hook = Callable[[Any, tuple[Any, ...], Tensor], Tensor]  # layer, its inputs, its output
CONTEXT = "context"  # the last part of the name of CAVIA's parameters


def with_adapters(net: Net, kind: AdapterKind, rank: int) -> Net:
    """Return a copy of the model with an adapter at every layer of its body.

    `film`: h -> (1 + scale) h + shift after each normalisation, also where that is none (Perez
    et al., 2018, arXiv:1709.07871). `residual`: a 1x1 convolution beside each convolution, or a
    linear map beside each linear layer, begun at 0 (Li et al., 2022, arXiv:2107.00358).
    `lora`: up @ down of the given rank added to each weight, up begun at 0 (Hu et al., 2021,
    arXiv:2106.09685), so that in the first inner step only up can move.
    """
    adapted = deepcopy(net)
    some = next(adapted.parameters())
    for layer in list(adapted.body.modules()):
        if kind == "film" and isinstance(layer, Norm):
            shape = (layer.channels,)
            _attach(layer, _film, scale=some.new_zeros(shape), shift=some.new_zeros(shape))
        elif isinstance(layer, nn.Linear | nn.Conv2d) and kind != "film":
            weight = layer.weight.detach()
            if kind == "residual":
                _attach(layer, _residual, mix=weight.new_zeros(weight.shape[:2]))
            else:
                inputs = weight[0].numel()
                down = torch.randn(rank, inputs).to(weight) / inputs**0.5
                _attach(layer, _low_rank, down=down, up=weight.new_zeros(len(weight), rank))
    own = {n for n, _ in adapted.named_parameters() if n.rpartition(".")[2].startswith(ADAPTER)}
    adapted.adapted = net.adapted | own
    return adapted


def _attach(layer: nn.Module, hook: Hook, **tensors: Tensor) -> None:
    for name, value in tensors.items():
        layer.register_parameter(f"{ADAPTER}{name}", nn.Parameter(value))
    layer.register_forward_hook(hook)


def _film(layer: Any, inputs: tuple[Any, ...], h: Tensor) -> Tensor:
    return _scaled(h, layer.adapter_scale, layer.adapter_shift)


def _scaled(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    per_channel = (1, -1) + (1,) * (h.dim() - 2)
    return h * (1 + scale.view(per_channel)) + shift.view(per_channel)


def _residual(layer: Any, inputs: tuple[Any, ...], h: Tensor) -> Tensor:
    if h.dim() == 2:
        return h + F.linear(inputs[0], layer.adapter_mix)
    return h + F.conv2d(inputs[0], layer.adapter_mix[:, :, None, None], stride=layer.stride)


def _low_rank(layer: Any, inputs: tuple[Any, ...], h: Tensor) -> Tensor:
    down, up = layer.adapter_down, layer.adapter_up
    if h.dim() == 2:
        return h + F.linear(F.linear(inputs[0], down), up)
    kernel = down.view(-1, *layer.weight.shape[1:])
    small = F.conv2d(inputs[0], kernel, stride=layer.stride, padding=layer.padding)
    return h + F.conv2d(small, up[:, :, None, None])


def with_context(net: Net, size: int) -> Net:
    """Return a copy of the model with `size` context parameters, which alone an inner loop moves.

    Zintgraf et al., 2019, arXiv:1810.03642: a perceptron sees them as further inputs; elsewhere,
    and where a batch normalisation would take such a constant away again, they are mapped to
    scale and shift of the third normalisation's output, as in their Conv-4. Theirs scales by
    that map, this by 1 plus it: a context of 0 changes nothing.
    """
    wrapped = deepcopy(net)
    linears = [layer for layer in wrapped.body.modules() if isinstance(layer, nn.Linear)]
    if linears and net.bn_mode is None:
        layer, hook = linears[0], _further_inputs
        reach = (layer.in_features + size) ** -0.5  # of a first layer with as many more inputs
        tensors = {"weight": (layer.out_features, reach)}
    else:
        norms = [layer for layer in wrapped.body.modules() if isinstance(layer, Norm)]
        layer, hook = norms[min(2, len(norms) - 1)], _context_film
        tensors = {"scale": (layer.channels, size**-0.5), "shift": (layer.channels, size**-0.5)}
    some = next(wrapped.parameters())
    for name, (rows, reach) in tensors.items():
        value = torch.empty(rows, size).uniform_(-reach, reach).to(some)
        layer.register_parameter(f"{CONTEXT}_{name}", nn.Parameter(value))
    layer.register_parameter(CONTEXT, nn.Parameter(some.new_zeros(size)))
    layer.register_forward_hook(hook)
    names = (name for name, _ in wrapped.named_parameters())
    wrapped.adapted = frozenset(name for name in names if name.endswith(f".{CONTEXT}"))
    return wrapped


def _further_inputs(layer: Any, inputs: tuple[Any, ...], h: Tensor) -> Tensor:
    return h + F.linear(layer.context, layer.context_weight)


def _context_film(layer: Any, inputs: tuple[Any, ...], h: Tensor) -> Tensor:
    scale, shift = (F.linear(layer.context, w) for w in (layer.context_scale, layer.context_shift))
    return _scaled(h, scale, shift)
