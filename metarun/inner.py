"""The inner loop: what one task does with its support, step by step.

Everything here takes and gives tensors with a leading task axis [T]; the functions that an
algorithm's author writes are of one task and never see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.errors import ConfigError
from metarun.problem import Meta, Params

# A learner, meta-parameters, support x and y [T, S, ...], steps -> parameters [T, ...] after each.
Path = Callable[["Learner", Meta, Tensor, Tensor, int], Iterator[Params]]


class Learner(NamedTuple):
    """Where tasks start, what each minimises, and how a gradient moves it.

    `loss` and `update` are of one task; `start` is of all, with a leading axis [T] everywhere,
    so that a choice made for a whole batch can be handed in. `over_tasks` lifts one of one task.
    """

    start: Callable[[Meta, Tensor, Tensor], Params]  # supports [T, S, ...] -> parameters [T, ...]
    loss: Callable[[Meta, Params, Tensor, Tensor], Tensor]  # parameters, support -> scalar
    update: Callable[[Meta, int, Params, Params], Params]  # step, adapted, gradient -> adapted
    adapted: frozenset[str]  # names that the inner loop moves; the others are held
    proximal: float = 0.0  # strength of the pull to the start that is part of the loss
    path: Path | None = None  # how it adapts, where not by one `update` after the other


def over_tasks(function: Callable[..., Any], *, shared: int, count: int) -> Callable[..., Any]:
    """Give each argument after the first `shared` a leading task axis, and the result too.

    One task runs plainly and several under `vmap`, so a chunk of one is an ordinary loop.
    """
    if count > 1:

        def together(*args: Any) -> Any:
            in_dims = (None,) * shared + (0,) * (len(args) - shared)
            return torch.vmap(function, in_dims=in_dims)(*args)

        return together

    def alone(*args: Any) -> Any:
        inner = (_each(lambda t: t.squeeze(0), a) for a in args[shared:])
        return _each(lambda t: t[None], function(*args[:shared], *inner))

    return alone


def _each(function: Callable[[Tensor], Tensor], value: Tensor | Params) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    return {name: function(tensor) for name, tensor in value.items()}


def leaves(params: Params) -> Params:
    """Return the same values as fresh leaves that collect gradients."""
    return {name: value.detach().requires_grad_() for name, value in params.items()}


def meta_leaves(meta: Meta) -> Meta:
    """Return the same meta-parameters as fresh leaves that collect gradients."""
    return {group: leaves(params) for group, params in meta.items()}


def inner_step(
    learner: Learner,
    meta: Meta,
    step: int,
    params: Params,
    support: tuple[Tensor, Tensor],
    *,
    second_order: bool,
) -> Params:
    """Take one step from `params` [T, ...], which must require gradients.

    With `second_order` the result is a differentiable function of `params` and `meta` whole;
    without, the inner gradient counts as a constant and no graph of it is ever built.
    """
    count = support[0].shape[0]
    names = [name for name in params if name in learner.adapted]
    with torch.enable_grad():
        losses = over_tasks(partial(_loss, learner.loss), shared=1, count=count)(
            meta, params, *support
        )
        gradient = torch.autograd.grad(
            losses.sum(), [params[name] for name in names], create_graph=second_order
        )
        update = over_tasks(partial(_update, learner.update, step), shared=1, count=count)
        adapted = {name: params[name] for name in names}
        moved = update(meta, adapted, dict(zip(names, gradient, strict=True)))
    return params | moved


def _loss(
    loss: Callable[[Meta, Params, Tensor, Tensor], Tensor],
    meta: Meta,
    params: Params,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    found: Any = loss(meta, params, x, y)
    if not isinstance(found, Tensor) or found.dim():
        shape = f"of shape {[*found.shape]}" if isinstance(found, Tensor) else repr(found)
        raise ConfigError(
            f"algo: a task's inner loss is {shape}; must be a tensor of one number, such as the "
            "mean over the support"
        )
    return found


def _update(
    update: Callable[[Meta, int, Params, Params], Params],
    step: int,
    meta: Meta,
    params: Params,
    gradient: Params,
) -> Params:
    moved: Any = update(meta, step, params, gradient)
    if not isinstance(moved, dict):
        raise ConfigError(
            f"algo: its update gave a {type(moved).__name__}; must be the parameters, by name"
        )
    for name, value in params.items():
        if name in moved and moved[name].shape != value.shape:
            raise ConfigError(
                f"algo: its update gave {name} of shape {[*moved[name].shape]}; must be "
                f"{[*value.shape]}, as before"
            )
    return moved


def adapt(
    learner: Learner, meta: Meta, support_x: Tensor, support_y: Tensor, steps: int
) -> Iterator[Params]:
    """Yield every task's parameters [T, ...] after 0, 1, ..., `steps` steps, without graphs."""
    if learner.path is not None:
        yield from learner.path(learner, meta, support_x, support_y, steps)
        return
    support = (support_x, support_y)
    with torch.no_grad():
        params = learner.start(meta, *support)
    yield params
    for step in range(steps):
        moved = inner_step(learner, meta, step, leaves(params), support, second_order=False)
        params = {name: value.detach() for name, value in moved.items()}
        yield params


def gradient_descent(inner_lr: float) -> Callable[[Meta, int, Params, Params], Params]:
    """Return the plain update, parameters minus rate times gradient."""

    def update(meta: Meta, step: int, params: Params, gradient: Params) -> Params:
        return {name: value - inner_lr * gradient[name] for name, value in params.items()}

    return update


def pulled(learner: Learner, proximal: float) -> Learner:
    """Add `proximal` / 2 times the squared distance from the start to what each task minimises.

    Rajeswaran et al., 2019, arXiv:1909.04630, equation 3. The start is held beside the parameters.
    """
    if not proximal:
        return learner
    names = {name: f"start of {name}" for name in sorted(learner.adapted)}

    def start(meta: Meta, support_x: Tensor, support_y: Tensor) -> Params:
        first = learner.start(meta, support_x, support_y)
        return first | {held: first[name] for name, held in names.items()}

    def loss(meta: Meta, params: Params, x: Tensor, y: Tensor) -> Tensor:
        apart = sum((params[name] - params[held]).square().sum() for name, held in names.items())
        own = {name: value for name, value in params.items() if name not in names.values()}
        return learner.loss(meta, own, x, y) + 0.5 * proximal * apart

    return learner._replace(start=start, loss=loss, proximal=proximal)
