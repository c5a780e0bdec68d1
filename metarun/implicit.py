"""The implicit meta-gradient: differentiate the inner solution, not the path to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from metarun.estimators import MetaGrad, MetaGradient, MetaSum, pull_back, query_losses
from metarun.inner import Learner, adapt, leaves, meta_leaves, over_tasks
from metarun.problem import Meta, Problem
from metarun.tasks import Tasks

Vector = list[Tensor]  # one [T, ...] tensor a parameter


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
    product: Callable[[Vector], Vector], target: Vector, steps: int, tolerance: float
) -> tuple[Vector, Tensor]:
    """Solve product(x) = target for every task at once; return x and relative residuals [T].

    Hestenes and Stiefel, 1952, with each task's own step lengths. A task stops, keeping its
    last iterate, when its residual is below `tolerance` or a direction has no positive
    curvature; then the matrix is not positive definite and the method has nothing to say.
    """
    solution = [torch.zeros_like(t) for t in target]
    residual, direction = target, target
    size = norm = _dot(residual, residual)
    going = norm > 0
    for _ in range(steps):
        image = product(direction)
        curvature = _dot(direction, image)
        going = going & (curvature > 0) & (size > tolerance**2 * norm)
        if not bool(going.any()):
            break
        length = torch.where(going, size / torch.where(going, curvature, 1.0), 0.0)
        solution = _axpy(length, direction, solution)
        residual = _axpy(-length, image, residual)
        new_size = _dot(residual, residual)
        ratio = torch.where(going, new_size / torch.where(going, size, 1.0), 0.0)
        direction = _axpy(ratio, direction, residual)
        size = torch.where(going, new_size, size)
    return solution, (size / norm.clamp_min(torch.finfo(norm.dtype).tiny)).sqrt()


def implicit(
    problem: Problem,
    learner: Learner,
    steps: int,
    *,
    cg_steps: int,
    cg_tolerance: float,
    damping: float,
    proximal: float,
) -> MetaGrad:
    """Apply the implicit function theorem at the end of the inner loop.

    At a stationary point of the inner loss f(phi, meta), d phi / d meta is
    -(d2f/dphi2)^-1 d2f/dphi dmeta; the inverse is applied to the query gradient by conjugate
    gradient on Hessian-vector products from one kept graph, so memory does not grow with the
    steps. Rajeswaran et al., 2019, arXiv:1909.04630, equations 6 to 8; `damping` is added to
    the Hessian (their code's hidden 10 is our explicit 0). Two figures a task bound the error:
    `inner_residual`, the gradient left over relative to the proximal force that ought to cancel
    it, and `cg_residual`, relative to the query gradient.
    """

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        meta, support = meta_leaves(meta), (tasks.support_x, tasks.support_y)
        total = MetaSum(meta)
        params = leaves(deque(adapt(learner, meta, *support, steps), maxlen=1)[0])
        adapted = [value for name, value in params.items() if name in learner.adapted]
        held = {name: value for name, value in params.items() if name not in learner.adapted}
        with torch.enable_grad():
            losses = query_losses(problem, params, tasks)
            given = [*adapted, *held.values()]  # of which the query may not use every one
            direct = torch.autograd.grad(losses.sum(), given, materialize_grads=True)
            pull = list(direct[: len(adapted)])
            inner = over_tasks(learner.loss, shared=1, count=len(tasks))(meta, params, *support)
            gradient = torch.autograd.grad(inner.sum(), adapted, create_graph=True)

            def product(vector: Vector) -> Vector:
                image = torch.autograd.grad(gradient, adapted, vector, retain_graph=True)
                return [h + damping * v for h, v in zip(image, vector, strict=True)]

            solution, residual = conjugate_gradient(product, pull, cg_steps, cg_tolerance)
            scaled = [-part / len(tasks) for part in solution]
            mixed = pull_back(gradient, [*total.leaves, *held.values()], scaled)
            total.add(mixed[: len(total.leaves)])
            if held:  # they act directly, and through the solution
                first = learner.start(meta, *support)
                pulls = [
                    d / len(tasks) if i is None else d / len(tasks) + i
                    for d, i in zip(direct[len(adapted) :], mixed[len(total.leaves) :], strict=True)
                ]
                total.add(pull_back([first[name] for name in held], total.leaves, pulls))
        left = _norm([g.detach() for g in gradient])
        with torch.no_grad():
            begun = learner.start(meta, *support)
            moved = _norm([params[n] - begun[n] for n in params if n in learner.adapted])
        figures = {"inner_residual": left / (proximal * moved), "cg_residual": residual}
        return MetaGradient(total.gradient(), losses.detach(), figures)

    return meta_grad
