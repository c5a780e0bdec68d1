"""Ways to compute the meta-gradient, each for any learner.

A learner says what is adapted; an estimator says how the query's gradient finds its way back
through the inner loop. All take T tasks at once and return means over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from metarun.errors import ConfigError
from metarun.gradients.adjoint import adjoint, unrolled
from metarun.gradients.evolution import evolution
from metarun.gradients.implicit import implicit
from metarun.gradients.metagradient import MetaGrad
from metarun.inner import Learner
from metarun.precision import refuse_rounding
from metarun.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncated:
    """Differentiate the last few inner steps only; the earlier ones count as first order."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    last: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evolution:
    """Differentiate nothing: compare the query loss at pairs of perturbed meta-parameters."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    pairs: Annotated[int, Field(ge=1)]  # a task
    sigma: Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Implicit:
    """Differentiate the solution of a proximal inner problem, whatever the path to it."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    solver: Literal["cg", "neumann"]
    iterations: Annotated[int, Field(ge=0)]  # of conjugate gradient; terms after the series' first
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-6  # a relative residual
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0  # added to the Hessian


Exact = Literal["adjoint", "recompute", "unrolled"]
Estimator = Exact | Literal["first_order"] | Truncated | Evolution | Implicit
KEPT = 5  # steps whose graphs the adjoint keeps: typical loops whole, long ones in parts
SETS = 8  # parameter sets that `recompute` keeps: 64 steps are run 3.4 times for it, not twice


def estimate(
    estimator: Estimator,
    problem: Problem,
    learner: Learner,
    steps: int,
    weights: Sequence[float] | None = None,
) -> MetaGrad:
    """Return the meta-gradient of adapt-then-query by the chosen estimator.

    The first three are exact and equal: `adjoint` keeps the graphs of a few steps, `recompute` of
    one, and few parameter sets; `unrolled` builds one graph of all. `first_order` is FOMAML,
    {last: T} truncation, {pairs: n, sigma: s} evolution strategies, {solver: cg or neumann,
    iterations: n} implicit differentiation. `weights` [K] ask the query after every step, which
    the last two cannot.

    Raises:
        ConfigError: what `check_estimator` refuses, such weights, a search to be led back through.
    """
    check_estimator(estimator, steps, problem, learner.proximal)
    if weights is not None and isinstance(estimator, Evolution | Implicit):
        raise ConfigError(
            "algo.estimator: evolution strategies and implicit gradients ask the query at the end "
            "of the inner loop alone, and losses of every step are wanted; use adjoint, or "
            "algo.multi_step_until=0"
        )
    if learner.path is not None and not isinstance(estimator, Evolution | Implicit):
        raise ConfigError(
            "algo.inner_optimizer=lbfgs: its steps are searched for, and no gradient leads back "
            "through a search; use algo.estimator={solver: cg, iterations: 5} and algo.proximal, "
            "or algo.inner_optimizer=sgd"
        )
    match estimator:
        case "unrolled":
            return unrolled(problem, learner, steps, weights)
        case Evolution(pairs=pairs, sigma=sigma):
            return evolution(problem, learner, steps, pairs=pairs, sigma=sigma)
        case Implicit():
            return implicit(
                problem,
                learner,
                steps,
                solver=estimator.solver,
                iterations=estimator.iterations,
                tolerance=estimator.tolerance,
                damping=estimator.damping,
            )
        case "adjoint" | "recompute":
            last = steps
        case "first_order":
            last = 0
        case Truncated():
            last = estimator.last
    kept, sets = (1, SETS) if estimator == "recompute" else (KEPT, steps)
    return adjoint(problem, learner, steps, last=last, kept=kept, sets=sets, weights=weights)


def check_estimator(
    estimator: Estimator, steps: int, problem: Problem, proximal: float = 0.0
) -> None:
    """Refuse what `estimate` would; for families that build theirs inside each meta-step."""
    if isinstance(estimator, Truncated) and estimator.last > steps:
        raise ConfigError(
            f"algo.estimator: {{last: {estimator.last}}} is more than algo.steps={steps}; "
            f"must be at most {steps}, and adjoint goes through them all"
        )
    if isinstance(estimator, Implicit) and not proximal > 0:
        raise ConfigError(
            "algo.estimator: an implicit gradient is of a solution that is pulled to its start; "
            "set algo.proximal above 0 (2.0 is iMAML's), or use adjoint"
        )
    if isinstance(estimator, Implicit) and (estimator.solver, estimator.iterations) == ("cg", 0):
        raise ConfigError(
            "algo.estimator: {solver: cg, iterations: 0} solves nothing, and its gradient is zero; "
            "use 1 or more iterations, or first_order"
        )
    if estimator == "unrolled":
        refuse_rounding(problem.precision, "algo.estimator=unrolled")
    if isinstance(estimator, Evolution):
        refuse_rounding(problem.precision, "evolution strategies, algo.estimator={pairs, sigma},")


def refuse_implicit(estimator: Estimator, learned: str) -> None:
    """Refuse an implicit gradient for what acts on the way to the inner solution alone.

    Raises:
        ConfigError: there is something learned that it would leave as it is.
    """
    if isinstance(estimator, Implicit):
        raise ConfigError(
            f"algo.estimator: an implicit gradient knows the inner solution and not the way to it, "
            f"so that {learned} would never be learned; use adjoint"
        )


def is_exact(estimator: Estimator) -> bool:
    """Tell whether an estimator gives the gradient of the query loss after adaptation."""
    return estimator in ("adjoint", "recompute", "unrolled")


def has_noise(estimator: Estimator | None) -> bool:
    """Tell whether an estimator draws, by a task's own numbers."""
    return isinstance(estimator, Evolution)
