"""Multi-modal MAML: a task encoder modulates the network, then MAML's steps adapt it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from metarun.algorithms.base import Count, MetaAlgorithm, Pull, Rate, adapting, plain_start
from metarun.algorithms.parts.encoder import set_encoder
from metarun.errors import ConfigError
from metarun.gradients.estimators import Estimator, estimate, is_exact
from metarun.inner import Learner, gradient_descent, over_tasks, pulled
from metarun.models.layers import Norm
from metarun.models.net import Net
from metarun.problem import Meta, Params, Problem

FILM = "film"  # the entry of a task's parameters that holds scales, then shifts


def mmaml(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    estimator: Estimator,
    proximal: Pull,
    width: Count,
    inner_clip: Rate | None,
) -> MetaAlgorithm:
    """Learn a start, and an encoder of the support that modulates it to the task's mode.

    Vuorio et al., 2019, arXiv:1910.13616, algorithm 1 with FiLM: every hidden channel h becomes
    (1 + scale) h + shift before its activation; the modulation is held while the start adapts.
    Their recurrent encoder depends on the order of the support; ours is a set encoder of `width`.
    A modulated task can be steep: `inner_clip` bounds each number of the inner gradient, as their
    code does.

    Raises:
        ConfigError: running averages, which the modulation would change from task to task.
    """
    if problem.model.bn_mode == "running":
        raise ConfigError(
            "model.bn_mode=running: algo=mmaml modulates each task's channels, and averages over "
            "tasks do not fit them; use model.bn_mode=transductive or support, or model.norm"
        )
    units = channels(problem.model)
    modulated = Modulated(
        problem.model, problem.kind, problem.train_classes, problem.precision, units=units
    )
    encoder = set_encoder(problem, width, 2 * sum(count for _, count in units))

    def init(params: Params) -> Meta:
        return {"params": params, "encoder": encoder.init()}

    def start(meta: Meta, x: Tensor, y: Tensor) -> Params:
        lifted = over_tasks(encoder.encode, shared=1, count=len(x))
        return plain_start(meta, x, y) | {FILM: lifted(meta["encoder"], x, y)}

    def loss(meta: Meta, params: Params, x: Tensor, y: Tensor) -> Tensor:
        return modulated.loss(params, x, y)

    update = clipped_descent(inner_lr, inner_clip) if inner_clip else gradient_descent(inner_lr)
    learner = pulled(Learner(start, loss, update, problem.model.adapted), proximal)
    return MetaAlgorithm(
        init,
        adapting(learner),
        estimate(estimator, modulated, learner, steps),
        exact=is_exact(estimator),
        problem=modulated,
    )


def clipped_descent(
    inner_lr: float, largest: float
) -> Callable[[Meta, int, Params, Params], Params]:
    """Return gradient descent on gradients whose every number is cut to within +-`largest`."""

    def update(meta: Meta, step: int, params: Params, gradient: Params) -> Params:
        return {
            name: value - inner_lr * gradient[name].clamp(-largest, largest)
            for name, value in params.items()
        }

    return update


@dataclass(frozen=True)
class Modulated(Problem):
    """The same model with a modulation among its parameters, folded into its layers."""

    units: tuple[tuple[str, int], ...] = ()  # layers whose outputs are modulated, and channels

    def loss(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        return super().loss(folded(params, self.units), x, y)

    def features(self, params: Params, x: Tensor) -> Tensor:
        return super().features(folded(params, self.units), x)

    def predict(self, params: Params, support_x: Tensor, query_x: Tensor) -> Tensor:
        return super().predict(folded(params, self.units), support_x, query_x)


def channels(model: Net) -> tuple[tuple[str, int], ...]:
    """Return the body's layers right before an activation and how many channels each gives."""
    norms: list[tuple[str, int]] = []
    layers: list[tuple[str, int]] = []
    biased = {name for name, _ in model.named_parameters() if name.startswith("body.")}
    for name, module in model.named_modules():
        if isinstance(module, Norm) and module.kind != "none":
            norms.append((name, len(module.weight)))
        elif isinstance(module, nn.Linear | nn.Conv2d) and f"{name}.bias" in biased:
            layers.append((name, len(module.weight)))
    if not norms and not layers:
        raise ConfigError(
            "model.norm=none: algo=mmaml shifts channels, and this model has no biases to shift; "
            "use model.norm=batch or group"
        )
    return tuple(norms or layers)


def folded(params: Params, units: tuple[tuple[str, int], ...]) -> Params:
    """Return a model's own parameters with a modulation [2 * C] worked into weights and biases.

    (1 + a) (W x + b) + c is a layer with weights (1 + a) W and biases (1 + a) b + c.
    """
    plain = {name: value for name, value in params.items() if name != FILM}
    scales, shifts = params[FILM].chunk(2)
    first = 0
    for name, count in units:
        scale, shift = 1 + scales[first : first + count], shifts[first : first + count]
        weight, bias = plain[f"{name}.weight"], plain[f"{name}.bias"]
        plain[f"{name}.weight"] = weight * scale.view(-1, *(1,) * (weight.dim() - 1))
        plain[f"{name}.bias"] = bias * scale + shift
        first += count
    return plain
