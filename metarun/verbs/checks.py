"""What a meta-learning algorithm must keep to on any model and data, checked by numbers.

The meta-gradient against finite differences, and what must hold whatever the method: no state,
no leak between tasks, nothing of the query in what is adapted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.assemble import Experiment
from metarun.errors import MetarunError
from metarun.evaluate import counted
from metarun.gradients.estimators import has_noise
from metarun.gradients.metagradient import query_losses
from metarun.inner import leaves, over_tasks
from metarun.numerics.chunks import in_chunks
from metarun.numerics.trees import TINY, apart, finite_difference, random_like
from metarun.problem import Meta, Params
from metarun.tasks import Tasks
from metarun.verbs.relabel import relabelled
from metarun.verbs.rows import SAME, Row, equal_row, exact_row, same_gradient

TASKS = 3  # enough to tell a loop from a batch
EXACT_WAYS = ("adjoint", "recompute", "unrolled")
REFUSALS = (MetarunError, ValueError, TypeError, IndexError, RuntimeError)


class Subject(NamedTuple):
    """What is checked, and the same with some of the algorithm's settings changed."""

    experiment: Experiment
    settings: Mapping[str, Any]  # of the algorithm
    variant: Callable[[Mapping[str, Any]], Experiment]


def checks(subject: Subject) -> Iterator[Row]:
    """Yield every check that applies to the experiment's algorithm."""
    experiment = subject.experiment
    meta = experiment.initial()
    yield adaptation(experiment, meta)
    yield adapted_alone(experiment, meta)
    if experiment.problem.model.bn_mode != "running":  # has its averages at test only
        yield normalisation(experiment, meta)
    yield symmetric_hessian(experiment, meta)
    if (meta_grad := experiment.algorithm.meta_grad) is None:
        yield Row("gradient", "ok", "the algorithm trains nothing")
        return
    tasks = few(experiment)
    whole = meta_grad(meta, tasks, 0)
    again = apart(meta_grad(meta, tasks, 0).gradient, whole.gradient)
    yield equal_row("repeated", again, 0.0)
    if len(tasks) > 1:
        one_by_one, _ = in_chunks(meta_grad, meta, tasks, 0, 1)
        found = apart(one_by_one.gradient, whole.gradient)
        yield same_gradient("loop = vmap", found, meta_grad, meta, tasks)
    yield true_gradient(experiment, meta, tasks)
    if "estimator" in subject.settings:
        yield _guarded("estimators agree", estimators_agree, subject, tasks)
        yield _guarded("first order", first_order, subject, tasks)
        if "steps" in subject.settings:
            yield _guarded("no steps", no_steps, subject, tasks)
    if experiment.algorithm.batches == "tasks":
        if experiment.problem.kind == "classification":
            yield label_permutation(subject, meta, tasks)
        yield no_leakage(subject, meta, tasks)


def few(experiment: Experiment) -> Tasks:
    """Return a small training batch."""
    return replace(experiment, outer=replace(experiment.outer, batch=TASKS)).batch(0)


def adaptation(experiment: Experiment, meta: Meta) -> Row:
    """Adapt twice and compare bits."""
    tasks = experiment.tasks("validation", 0, 2)
    one, other = (_adapted(experiment, meta, tasks) for _ in range(2))
    same = all(torch.equal(one[name], other[name]) for name in one)
    detail = "from the support alone; " + ("repeats bitwise" if same else "does not repeat")
    return Row("adaptation", "ok" if same else "fail", detail)


def adapted_alone(experiment: Experiment, meta: Meta) -> Row:
    """Adapt tasks together and each alone: a task must not see the others."""
    tasks = experiment.tasks("validation", 0, 2)
    together = _adapted(experiment, meta, tasks)
    alone = [_adapted(experiment, meta, one) for one in tasks.chunks(1)]
    joined = {name: torch.cat([params[name] for params in alone]) for name in together}
    return equal_row("adapted alone", apart({"": joined}, {"": together}))


def normalisation(experiment: Experiment, meta: Meta) -> Row:
    """Find out whether a query's prediction depends on the other queries, as the mode says."""
    task = experiment.tasks("validation", 0, 1)
    alone = {name: value[0] for name, value in _adapted(experiment, meta, task).items()}
    support, query = task.support_x[0], task.query_x[0]
    other = torch.cat([query[:1], 0.5 * query[1:] + 0.3])
    with torch.no_grad():
        outputs = [experiment.problem.predict(alone, support, x)[0] for x in (query, other)]
    depends = not torch.allclose(*outputs, rtol=SAME, atol=SAME)
    said = experiment.normalisation()
    expected = said == "batch, transductive" and len(query) > 1
    detail = f"{said}: a prediction {'depends' if depends else 'does not depend'} on other queries"
    return Row("normalisation", "ok" if depends == expected else "fail", detail)


def symmetric_hessian(experiment: Experiment, meta: Meta) -> Row:
    """Compare u'Hw with w'Hu, H being of the support loss: derivatives of derivatives are right."""
    problem, tasks = experiment.problem, experiment.tasks("validation", 0, 2)
    support = (tasks.support_x, tasks.support_y)
    params = leaves(next(experiment.algorithm.adapt(meta, *support, 0)))
    inputs = [params[name] for name in sorted(problem.model.adapted & params.keys())]
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        losses = over_tasks(problem.loss, shared=0, count=len(tasks))(params, *support)
        slopes = torch.autograd.grad(losses.sum(), inputs, create_graph=True)
        u, w = ([random_like(value, generator) for value in inputs] for _ in range(2))
        images = [
            torch.autograd.grad(slopes, inputs, vector, retain_graph=True, materialize_grads=True)
            for vector in (u, w)
        ]
    crossed = abs(_dot(images[0], w) - _dot(images[1], u))
    size = (_dot(images[0], images[0]) * _dot(w, w)) ** 0.5
    return equal_row("Hessian symmetric", crossed / max(size, TINY))


def true_gradient(experiment: Experiment, meta: Meta, tasks: Tasks) -> Row:
    """Compare the meta-gradient with finite differences of the losses it comes with."""
    assert experiment.algorithm.meta_grad is not None
    meta_grad = experiment.algorithm.meta_grad
    if not experiment.algorithm.exact:
        error = finite_difference(meta_grad, meta, tasks)
        detail = f"an approximation, as it says: relative error {error:.1e}"
        return Row("finite differences", "ok", detail)
    return exact_row("finite differences", meta_grad, meta, tasks, "said to be exact")


def estimators_agree(subject: Subject, tasks: Tasks) -> Row:
    """Compare the exact ways to compute the meta-gradient."""
    steps = {"steps": 3} if "steps" in subject.settings else {}  # one step leaves them one way
    found = [_gradient(subject.variant({"estimator": way, **steps}), tasks) for way in EXACT_WAYS]
    worst = max(apart(other, found[0]) for other in found[1:])
    return equal_row("estimators agree", worst, before=f"{' = '.join(EXACT_WAYS)}; ")


def first_order(subject: Subject, tasks: Tasks) -> Row:
    """Compare `first_order` with the exact gradient, and with what it says of itself."""
    other = subject.variant({"estimator": "first_order"})
    exact = _gradient(subject.variant({"estimator": EXACT_WAYS[0]}), tasks)
    difference = apart(_gradient(other, tasks), exact)
    if difference <= SAME:
        return Row("first order", "warn", "is the exact gradient: nothing was left out")
    if other.algorithm.exact:
        detail = f"said to be exact, and {difference:.1e} away from it"
        return Row("first order", "fail", detail)
    return Row("first order", "ok", f"an approximation, as it says: {difference:.1e} away")


def no_steps(subject: Subject, tasks: Tasks) -> Row:
    """Without inner steps, even first order is exact, and its loss is the one of the test."""
    other = subject.variant({"steps": 0, "estimator": "first_order"})
    assert other.algorithm.meta_grad is not None
    meta = other.initial()
    losses = other.algorithm.meta_grad(meta, tasks, 0).losses
    params = next(other.algorithm.adapt(meta, tasks.support_x, tasks.support_y, 0))
    with torch.no_grad():
        tested = query_losses(other.problem, params, tasks)
    difference = float((losses - tested).abs().max() / tested.abs().max().clamp_min(TINY))
    if not difference <= SAME and not of_some_start(other, meta, tasks, losses, 0):
        return Row("no steps", "fail", f"loss in training and at test differ by {difference:.1e}")
    if not subject.variant({"steps": 0, "estimator": EXACT_WAYS[0]}).algorithm.exact:
        return Row("no steps", "skip", "no estimator makes its gradient exact, as it says")
    demand = "must be the plain gradient of the query loss"
    return exact_row("no steps", other.algorithm.meta_grad, meta, tasks, demand)


def label_permutation(subject: Subject, meta: Meta, tasks: Tasks) -> Row:
    """Rename the classes, and the head's rows with them: loss and gradient stay."""
    experiment = subject.experiment
    if has_noise(subject.settings.get("estimator")):
        detail = "a task's labels seed the estimator's noise: renamed, it is other noise"
        return Row("label permutation", "skip", detail)
    meta_grad, ways = experiment.algorithm.meta_grad, experiment.task.ways
    assert meta_grad is not None
    order = torch.arange(ways, device=tasks.query_y.device).roll(-1)  # class c becomes c + 1
    model: Params = {n: v.data for n, v in experiment.problem.model.named_parameters()}
    other = replace(tasks, support_y=order[tasks.support_y], query_y=order[tasks.query_y])
    before = meta_grad(meta, tasks, 0)
    after = meta_grad(relabelled(meta, model, ways), other, 0)
    losses = float((after.losses - before.losses).norm() / before.losses.norm().clamp_min(TINY))
    expected = relabelled(before.gradient, model, ways)
    found = max(losses, apart(after.gradient, expected))
    return same_gradient("label permutation", found, meta_grad, meta, tasks)


def no_leakage(subject: Subject, meta: Meta, tasks: Tasks) -> Row:
    """Change the labels of some queries, of others, and of both.

    Where the adapted parameters, or the start that was chosen, do not depend on query labels, each
    label acts on its own query's term alone: what both change is the sum of what each does.
    """
    experiment, steps = subject.experiment, subject.settings.get("steps", 0)
    meta_grad = experiment.algorithm.meta_grad
    assert meta_grad is not None
    rows = torch.arange(tasks.query_y.shape[1], device=tasks.query_y.device)

    def changed(*residues: int) -> Tasks:
        those = torch.stack([rows % 2 == residue for residue in (2, *residues)]).any(0)
        y = tasks.query_y
        other = (y + 1) % experiment.task.ways if not y.is_floating_point() else y + 1
        return replace(tasks, query_y=y.where(~those.view(1, -1, *(1,) * (y.dim() - 2)), other))

    each = [changed(0, 1), changed(0), changed(1), changed()]
    both, even, odd, none = losses = [meta_grad(meta, one, 0).losses for one in each]
    left = (both - even - odd + none).abs() / (both.abs() + even.abs() + odd.abs() + none.abs())
    if float(left.max()) <= SAME:
        return Row("no leakage", "ok", "query labels do not reach the adapted parameters")
    found = zip(each, losses, strict=True)
    if all(of_some_start(experiment, meta, one, loss, steps) for one, loss in found):
        detail = "in training, query labels reach the choice of a start, and nothing else"
        return Row("no leakage", "warn", detail)
    if not experiment.algorithm.exact and draws_no_line(experiment, meta, tasks):
        detail = "training takes a task's support and query as one: no query is held out of it"
        return Row("no leakage", "skip", detail)
    return Row("no leakage", "fail", "query labels reach the adapted parameters")


def draws_no_line(experiment: Experiment, meta: Meta, tasks: Tasks) -> bool:
    """Tell whether a query's row may as well be the support's, to the bit."""
    assert experiment.algorithm.meta_grad is not None
    moved = replace(
        tasks,
        support_x=torch.cat([tasks.support_x, tasks.query_x[:, :1]], 1),
        support_y=torch.cat([tasks.support_y, tasks.query_y[:, :1]], 1),
        query_x=tasks.query_x[:, 1:],
        query_y=tasks.query_y[:, 1:],
    )
    losses = [experiment.algorithm.meta_grad(meta, some, 0).losses for some in (tasks, moved)]
    return torch.equal(*losses)


def of_some_start(
    experiment: Experiment, meta: Meta, tasks: Tasks, losses: Tensor, steps: int
) -> bool:
    """Tell whether every loss is the one at test, of one of several starts, whichever it is."""
    if experiment.algorithm.each is None:
        return False
    paths = experiment.algorithm.each(meta, tasks.support_x, tasks.support_y, steps)
    with torch.no_grad():
        tested = torch.stack(
            [query_losses(experiment.problem, list(path)[-1], tasks) for path in paths]
        )
    return bool(((tested - losses).abs() <= SAME * losses.abs()).any(0).all())


def _adapted(experiment: Experiment, meta: Meta, tasks: Tasks) -> Params:
    adapted = experiment.algorithm.adapt(meta, tasks.support_x, tasks.support_y, 1)
    return list(counted(adapted, 1))[-1]


def _gradient(experiment: Experiment, tasks: Tasks) -> Meta:
    assert experiment.algorithm.meta_grad is not None
    return experiment.algorithm.meta_grad(experiment.initial(), tasks, 0).gradient


def _dot(a: Any, b: Any) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def _guarded(name: str, of: Callable[[Subject, Tasks], Row], subject: Subject, tasks: Tasks) -> Row:
    """Say so where the algorithm does not take the settings that a check needs."""
    try:
        return of(subject, tasks)
    except REFUSALS as error:
        return Row(name, "warn", f"not checked: {' '.join(str(error).split())}")
