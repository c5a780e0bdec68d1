"""How much each of several starts is used, and what keeps all of them in use.

Letters in shapes: T tasks, M starts.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from metarun.metagradient import MetaGradient
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


def kept_in_use(
    found: MetaGradient, meta: Meta, used: Tensor, upkeep: Upkeep, step: int
) -> MetaGradient:
    """Return a meta-gradient with the shift that keeps starts in use, and a figure of it.

    `used` [M] is what part of the tasks each start took. A start whose running share is too small
    begins again: it takes the most used start's place, `spread` beside it, its bias and half of
    both their shares. That depends on the state and the meta-step alone, never on the tasks, so
    chunks of a batch agree on it. The figure `restarts` counts them since training began.
    """
    state = meta[USAGE]
    shift: Meta = {
        USAGE: {
            "share": upkeep.share_rate * (used - state["share"]),
            "bias": upkeep.balance * (used - 1 / len(used)),
            "restarts": torch.zeros_like(state["restarts"]),
        }
    }
    if upkeep.restart and upkeep.share_rate:
        shift = _restarted(meta, shift, upkeep, step)
    count = (state["restarts"] + shift[USAGE]["restarts"]).round()  # chunks add up with a rounding
    figures = found.figures | {"restarts": count.expand(len(found.losses))}
    return found._replace(shift=shift, figures=figures)


def _restarted(meta: Meta, shift: Meta, upkeep: Upkeep, step: int) -> Meta:
    """Add to the shift a new beginning of the least used start, when its share is too small."""
    share, bias = meta[USAGE]["share"], meta[USAGE]["bias"]
    dead, top = int(share.argmin()), int(share.argmax())
    if float(share[dead]) >= upkeep.restart / len(share) or dead == top:
        return shift
    generator, moves = torch.Generator().manual_seed(step), dict[str, Tensor]()
    for name, value in meta["params"].items():
        noise = torch.randn(value[top].shape, generator=generator).to(value)
        scale = value[top].std() if noise.numel() > 1 else value[top].abs().sum()
        moves[name] = torch.zeros_like(value)
        moves[name][dead] = value[top] + upkeep.spread * scale * noise - value[dead]
    halved, moved = torch.zeros_like(share), torch.zeros_like(bias)
    halved[dead], halved[top] = (share[top] - share[dead]) / 2, (share[dead] - share[top]) / 2
    moved[dead] = bias[top] - bias[dead]
    state = shift[USAGE]
    more = {"share": halved, "bias": moved, "restarts": torch.ones_like(state["restarts"])}
    return {"params": moves, USAGE: {name: state[name] + more[name] for name in state}}
