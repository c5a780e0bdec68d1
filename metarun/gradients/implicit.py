"""The implicit meta-gradient: differentiate the inner solution, not the path to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from metarun.gradients.metagradient import (
    MetaGrad,
    MetaGradient,
    MetaSum,
    pull_back,
    query_gradients,
)
from metarun.inner import Learner, adapt, leaves, meta_leaves, over_tasks
from metarun.problem import Meta, Problem
from metarun.tasks import Tasks

Vector = list[Tensor]  # one [T, ...] tensor a parameter
Product = Callable[[Vector], Vector]  # of a matrix with a vector, for every task


def _dot(a: Vector, b: Vector) -> Tensor:
    """Return each task's inner product, [T]."""
    products = [(x * y).flatten(1).sum(1) for x, y in zip(a, b, strict=True)]
    return torch.stack(products).sum(0)


def _norm(a: Vector) -> Tensor:
    return _dot(a, a).sqrt()


def _axpy(scale: Tensor, x: Vector, y: Vector) -> Vector:
    """Return y + scale * x, the scale being [T]."""
    return [b + scale.view(-1, *(1,) * (a.dim() - 1)) * a for a, b in zip(x, y, strict=True)]


def conjugate_gradient(
    product: Product, target: Vector, steps: int, tolerance: float, centre: float
) -> tuple[Vector, Tensor]:
    """Solve product(x) = target for every task at once; return x and relative residuals [T].

    Hestenes and Stiefel, 1952, with each task's own step lengths. A task stops when its residual
    is below `tolerance`, or when a direction has no positive curvature. Then, or when its residual
    ends above the target itself, its matrix is not positive definite, and steps along almost flat
    directions have thrown the iterate far off: it takes the one of least residual among all and
    target / `centre`, which is first order.
    """
    solution = [torch.zeros_like(t) for t in target]
    residual, direction = target, target
    size = norm = _dot(residual, residual)
    going = norm > 0
    sound = torch.ones_like(going)
    best, least = solution, torch.full_like(norm, torch.inf)
    for step in range(steps):
        image = product(direction)
        curvature = _dot(direction, image)
        if step == 0:
            best = [part / centre for part in target]
            away = [t - part / centre for t, part in zip(target, image, strict=True)]
            least = _dot(away, away)
        wanted = going & (size > tolerance**2 * norm)
        going = wanted & (curvature > 0)
        sound = sound & (going | ~wanted)
        if not bool(going.any()):
            break
        length = torch.where(going, size / torch.where(going, curvature, 1.0), 0.0)
        solution = _axpy(length, direction, solution)
        residual = _axpy(-length, image, residual)
        new_size = _dot(residual, residual)
        ratio = torch.where(going, new_size / torch.where(going, size, 1.0), 0.0)
        direction = _axpy(ratio, direction, residual)
        size = torch.where(going, new_size, size)
        nearer = going & (size < least)
        best, least = _chosen(nearer, solution, best), torch.where(nearer, size, least)
    sound = sound & (size <= norm)
    solution, size = _chosen(sound, solution, best), torch.where(sound, size, least)
    return solution, (size / norm.clamp_min(torch.finfo(norm.dtype).tiny)).sqrt()


def _chosen(which: Tensor, these: Vector, others: Vector) -> Vector:
    """Return for each task the vector of these or of the others; `which` is [T]."""
    pairs = zip(these, others, strict=True)
    return [torch.where(which.view(-1, *(1,) * (a.dim() - 1)), a, b) for a, b in pairs]


def neumann(
    product: Product, target: Vector, terms: int, tolerance: float, centre: float
) -> tuple[Vector, Tensor]:
    """Solve product(x) = target by the series in (1 - matrix / centre); return residuals too.

    x is the sum of terms 0 to `terms`, or to where a task's residual is below `tolerance`; it
    converges where all eigenvalues lie between 0 and twice `centre`, and grows without bound
    elsewhere, which the relative residuals [T] then show. Lorraine et al., 2020,
    arXiv:1911.02590, equation 5 and algorithm 3.
    """
    size = _norm(target)
    solution = [part / centre for part in target]
    left = _minus(target, product(solution))
    for _ in range(terms):
        going = _norm(left) > tolerance * size
        if not bool(going.any()):
            break
        solution = _axpy(going.to(size) / centre, left, solution)
        left = _minus(target, product(solution))
    return solution, _norm(left) / size.clamp_min(torch.finfo(size.dtype).tiny)


def _minus(a: Vector, b: Vector) -> Vector:
    return [x - y for x, y in zip(a, b, strict=True)]


def implicit(
    problem: Problem,
    learner: Learner,
    steps: int,
    *,
    solver: Literal["cg", "neumann"],
    iterations: int,
    tolerance: float,
    damping: float,
) -> MetaGrad:
    """Apply the implicit function theorem at the end of the inner loop.

    At a stationary point of the inner loss f(phi, meta), d phi / d meta is
    -(d2f/dphi2)^-1 d2f/dphi dmeta; the inverse is applied to the query gradient by conjugate
    gradient, or by the Neumann series about the learner's proximal strength, on Hessian-vector
    products from one kept graph, so memory does not grow with the steps. Rajeswaran et al., 2019,
    arXiv:1909.04630, equations 6 to 8; `damping` is added to the Hessian (their code's hidden 10
    is our explicit 0). Two figures a task bound the error: `inner_residual`, the gradient left
    over relative to the proximal force that ought to cancel it, and `solver_residual`, relative
    to the query gradient; above 1 the solver has diverged.
    """
    centre = learner.proximal + damping
    solve = conjugate_gradient if solver == "cg" else neumann

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        meta, support = meta_leaves(meta), (tasks.support_x, tasks.support_y)
        total = MetaSum(meta)
        params = leaves(deque(adapt(learner, meta, *support, steps), maxlen=1)[0])
        adapted = [value for name, value in params.items() if name in learner.adapted]
        held = {name: value for name, value in params.items() if name not in learner.adapted}
        with torch.enable_grad():
            losses, direct = query_gradients(problem, params, tasks)
            pull = [direct[name] for name in params if name in learner.adapted]
            inner = over_tasks(learner.loss, shared=1, count=len(tasks))(meta, params, *support)
            gradient = torch.autograd.grad(inner.sum(), adapted, create_graph=True)

            def product(vector: Vector) -> Vector:
                image = torch.autograd.grad(gradient, adapted, vector, retain_graph=True)
                return [h + damping * v for h, v in zip(image, vector, strict=True)]

            solution, residual = solve(product, pull, iterations, tolerance, centre)
            scaled = [-part for part in solution]
            mixed = pull_back(gradient, [*total.leaves, *held.values()], scaled)
            total.add(mixed[: len(total.leaves)])
            if held:  # they act directly, and through the solution
                first = learner.start(meta, *support)
                pulls = [
                    direct[name] if indirect is None else direct[name] + indirect
                    for name, indirect in zip(held, mixed[len(total.leaves) :], strict=True)
                ]
                total.add(pull_back([first[name] for name in held], total.leaves, pulls))
        left = _norm([g.detach() for g in gradient])
        with torch.no_grad():
            begun = learner.start(meta, *support)
            moved = _norm([params[n] - begun[n] for n in params if n in learner.adapted])
        figures = {"inner_residual": left / (learner.proximal * moved), "solver_residual": residual}
        return MetaGradient(total.gradient(), losses.detach(), figures)

    return meta_grad
