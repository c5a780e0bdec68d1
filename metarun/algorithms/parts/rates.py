"""Inner rates that are meta-learned: how many there are, and how they stay positive.

K is the number of inner steps of training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from metarun.errors import ConfigError
from metarun.inner import gradient_descent
from metarun.problem import Meta, Params

Rates = Literal["none", "global", "tensor", "parameter"]  # learned: not, one, a tensor's, each's
Transform = Literal["raw", "softplus", "exp"]
GROUP = "rates_learned"  # of the meta-parameters; "rates" holds those that validation chooses
_ALL = "all"

Update = Callable[[Meta, int, Params, Params], Params]  # step, adapted, gradient -> adapted


class InnerRates(NamedTuple):
    """Where inner rates begin, and which of them are learned."""

    inner_lr: float
    learned: Rates
    per_step: int  # K where every step has its own, else 0
    transform: Transform


def initial_rates(rates: InnerRates, params: Params) -> Meta:
    """Return the group of learned rates, every rate exactly `inner_lr`; nothing for `none`.

    Each is a scalar or of its parameter's shape, behind a leading axis [K] when every step has
    its own. Under a transform the tensors are zero where the rate is `inner_lr`, so that an
    outer step of a size moves every rate by the same factor, whatever it is.
    """
    if rates.learned == "none":
        return {}
    fill = rates.inner_lr if rates.transform == "raw" else 0.0
    steps = (rates.per_step,) if rates.per_step else ()
    some = next(iter(params.values()))
    shapes = {
        name: (*steps, *value.shape) if rates.learned == "parameter" else steps
        for name, value in ({_ALL: some} if rates.learned == "global" else params).items()
    }
    return {GROUP: {n: torch.full(s, fill, dtype=some.dtype) for n, s in shapes.items()}}


def learned_descent(rates: InnerRates) -> Update:
    """Return the update with the rates of `initial_rates`; `none` is plain descent.

    Per parameter it is Meta-SGD (Li et al., 2017, arXiv:1707.09835, section 3), per tensor and
    step the LSLR of MAML++ (Antoniou et al., 2019, arXiv:1810.09502, section 4). A step beyond
    the trained ones takes the rates of the last.

    Raises:
        ConfigError: it is said how rates are learned, and none is.
    """
    if rates.learned == "none":
        _refuse_unused(rates)
        return gradient_descent(rates.inner_lr)

    def rate_of(meta: Meta, name: str, step: int) -> Tensor:
        value = meta[GROUP][_ALL if rates.learned == "global" else name]
        return _transformed(at_step(value, step) if rates.per_step else value, rates)

    def update(meta: Meta, step: int, params: Params, gradient: Params) -> Params:
        return {n: v - rate_of(meta, n, step) * gradient[n] for n, v in params.items()}

    return update


def _refuse_unused(rates: InnerRates) -> None:
    for name, value, plain in (
        ("per_step", "true" if rates.per_step else "false", "false"),
        ("transform", rates.transform, "raw"),
    ):
        if value != plain:
            raise ConfigError(
                f"algo.{name}={value}: does nothing with algo.rates=none; set algo.{name}={plain}, "
                "or algo.rates=global, tensor or parameter"
            )


def at_step(value: Tensor, step: int) -> Tensor:
    """Return what belongs to a step of something [K, ...]; the last one's from there on."""
    return value[min(step, value.shape[0] - 1)]


def _transformed(value: Tensor, rates: InnerRates) -> Tensor:
    match rates.transform:
        case "raw":
            return value
        case "exp":
            return rates.inner_lr * value.exp()
        case "softplus":  # by its value at zero, so that zero is exactly inner_lr
            return rates.inner_lr * (F.softplus(value) / F.softplus(torch.zeros_like(value)))
