"""How much each of several starts is used, and what keeps all of them in use.

Letters in shapes: T tasks, M starts.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from metarun.data.counter import normal
from metarun.gradients.metagradient import MetaGradient
from metarun.problem import Meta, Params

USAGE = "usage"  # the group of meta-parameters that no gradient moves
Fraction = Annotated[float, Field(ge=0, le=1)]


class Upkeep(NamedTuple):
    """How starts are kept in use."""

    balance: float  # how far a bias moves a step against starts that take more than their share
    share_rate: float  # how far the running shares follow a step
    restart: float  # a start begins again below this part of an equal share; 0: never
    spread: float  # relative distance of the new beginning from the most used start


def initial_usage(starts: int) -> Params:
    """Return equal running shares [M], biases of zero [M], and that no start began again."""
    return {
        "share": torch.full((starts,), 1 / starts),
        "bias": torch.zeros(starts),
        "restarts": torch.zeros(()),
    }


def kept_in_use(found: MetaGradient, meta: Meta, used: Tensor, upkeep: Upkeep) -> MetaGradient:
    """Return a meta-gradient with the shift that keeps starts in use, and a figure of it.

    `used` [M] is what part of the tasks each start took. A start whose running share is too small
    begins again: it takes the most used start's place, `spread` beside it, its bias and half of
    both their shares. That depends on the state alone, never on the tasks, so chunks of a batch
    agree on it, and it is arithmetic without a branch, so one graph holds it for every meta-step.
    The figure `restarts` counts them since training began.
    """
    state = meta[USAGE]
    shift: Meta = {
        USAGE: {
            "share": upkeep.share_rate * (used - state["share"]),
            "bias": upkeep.balance * (used - 1 / len(used)),
            "restarts": torch.zeros_like(state["restarts"]),
        }
    }
    if upkeep.restart and upkeep.share_rate and len(used) > 1:
        shift = _restarted(meta, shift, upkeep)
    count = (state["restarts"] + shift[USAGE]["restarts"]).round()  # chunks add up with a rounding
    figures = found.figures | {"restarts": count.expand(len(found.losses))}
    return found._replace(shift=shift, figures=figures)


def _restarted(meta: Meta, shift: Meta, upkeep: Upkeep) -> Meta:
    """Add to the shift a new beginning of the least used start, when its share is too small."""
    state = meta[USAGE]
    share, count = state["share"], state["restarts"].round().long()
    (low, dead), (high, top) = share.min(0, keepdim=True), share.max(0, keepdim=True)  # each [1]
    number = torch.arange(len(share), device=share.device)
    begins = (number == dead) & (low < upkeep.restart / len(share)) & (dead != top)  # [M]
    gives = (number == top) & begins.any()
    moves = dict[str, Tensor]()
    for name, value in meta["params"].items():
        best = value.index_select(0, top)  # [1, ...]
        place = torch.arange(best.numel(), device=value.device).view(best.shape)
        noise = normal(("restart", name), count, place).to(value)
        scale = best.std() if best.numel() > 1 else best.abs().sum()
        way = best + upkeep.spread * scale * noise - value
        moves[name] = way.where(begins.view(-1, *(1,) * (value.dim() - 1)), torch.zeros_like(value))
    half = (high - low) / 2
    more = {
        "share": half * begins - half * gives,
        "bias": (state["bias"].index_select(0, top) - state["bias"]) * begins,
        "restarts": begins.any().to(share),
    }
    return {"params": moves, USAGE: {name: shift[USAGE][name] + more[name] for name in more}}
