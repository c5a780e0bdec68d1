"""Meta-parameters as they are when the classes are renamed, the head's rows with them.

Letters in shapes: N classes.
"""

from __future__ import annotations

from torch import Tensor

from metarun.problem import Meta, Params

OUT = ".out"  # after a parameter's name: a matrix [N, N] that maps its gradient's rows


def relabelled(meta: Meta, model: Params, ways: int) -> Meta:
    """Move what belongs to a class of a head one class on."""
    return {
        group: {name: _rolled(name, value, heads, ways) for name, value in params.items()}
        for group, params in meta.items()
        for heads in [_heads(params, model, ways)]
    }


def _heads(params: Params, model: Params, ways: int) -> Params:
    """Return the model's heads, where a group has a number for each of a parameter's.

    One group holds one kind of thing: rates of a tensor [steps] look like a bias when there are
    as many steps as classes, but beside them is none of a weight's shape.
    """
    named = {name: model[name].shape for name in params if name in model}
    if any(params[n].shape[params[n].dim() - len(s) :] != s for n, s in named.items()):
        return {}
    return {n: v for n, v in model.items() if "head." in n and v.dim() and v.shape[0] == ways}


def _rolled(name: str, value: Tensor, heads: Params, ways: int) -> Tensor:
    if name in heads:  # its rows may be behind further axes: starts, steps
        return value.roll(1, value.dim() - heads[name].dim())
    if name.removesuffix(OUT) in heads and value.shape == (ways, ways):
        return value.roll((1, 1), (0, 1))
    return value
