"""What to do when a number stops being finite: find it, name it, and keep it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.algorithms.base import MetaAlgorithm
from metarun.errors import DivergedError
from metarun.gradients.metagradient import MetaGradient
from metarun.numerics.chunks import in_chunks
from metarun.problem import Meta
from metarun.settings.sections import Outer
from metarun.tasks import Tasks


def is_finite(found: MetaGradient, norm: Tensor) -> bool:
    """Tell whether every loss, the gradient's norm and the shift are; one look at the device."""
    return bool(finite(found, norm))


def finite(found: MetaGradient, norm: Tensor) -> Tensor:
    """Return the same as a tensor, without a look at it."""
    fine = torch.isfinite(found.losses).all() & torch.isfinite(norm)
    for value in (value for params in found.shift.values() for value in params.values()):
        fine = fine & torch.isfinite(value).all()
    return fine


def without_bad_tasks(
    algorithm: MetaAlgorithm, meta: Meta, tasks: Tasks, step: int, chunk: int
) -> tuple[MetaGradient | None, list[int]]:
    """Recompute over the tasks that are finite alone; return also the positions left out.

    `chunk` tasks at a time, which fitted into memory with the bad ones among them.

    Raises:
        MemoryExhaustedError: one task alone does not fit.
    """
    assert algorithm.meta_grad is not None
    good: list[int] = []
    for position, one in enumerate(tasks.chunks(1)):
        found, _ = in_chunks(algorithm.meta_grad, meta, one, step, 1)
        if torch.isfinite(found.losses).all() and first_bad(found.gradient) is None:
            good.append(position)
    bad = [position for position in range(len(tasks)) if position not in good]
    if not good:
        return None, bad
    kept = tasks[torch.tensor(good, device=tasks.mode.device)]
    return in_chunks(algorithm.meta_grad, meta, kept, step, chunk)[0], bad


def first_bad(tree: Meta) -> str | None:
    """Return the name of the first tensor that holds a number that is not finite."""
    for group, params in tree.items():
        for name, value in params.items():
            if not torch.isfinite(value).all():
                return f"{group}/{name}"
    return None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Where the first non-finite number of a meta-step arose."""

    step: int
    tasks: list[int]
    inner_step: int | None
    tensor: str

    def error(self, outer: Outer, algo: Mapping[str, Any]) -> DivergedError:
        """Say it in one line, with what the settings have and do not yet set against it."""
        advice = ["a smaller inner rate (algo.inner_lr)"] if "inner_lr" in algo else []
        if algo.get("transform") == "raw" and algo["rates"] != "none":
            advice.append("algo.transform=exp")
        advice += ["a smaller outer.lr"] if not advice else []
        advice += ["outer.clip=1"] if outer.clip is None else []
        if outer.on_divergence != "drop_tasks":
            advice.append("outer.on_divergence=drop_tasks")
        *most, last = advice
        either = f"{', '.join(most)} or {last}" if most else last
        where = "the query pass" if self.inner_step is None else f"inner step {self.inner_step}"
        return DivergedError(
            f"diverged at meta-step {self.step}: not finite in {where} of task "
            f"{', '.join(map(str, self.tasks[:5]))}, first in {self.tensor}; "
            f"{either} may help; where the inner loss stays finite, look for a square "
            "root or a norm at zero"
        )


def diagnose(
    algorithm: MetaAlgorithm, meta: Meta, tasks: Tasks, found: MetaGradient, step: int, steps: int
) -> Diagnosis:
    """Run the bad tasks' inner loops again and look where the first bad number arises."""
    bad = (~torch.isfinite(found.losses)).nonzero().flatten().tolist()
    for position in bad or range(len(tasks)) if algorithm.batches == "tasks" else []:
        one = tasks[position : position + 1]
        inner = algorithm.adapt(meta, one.support_x, one.support_y, steps)
        for inner_step, params in enumerate(inner):
            tensor = first_bad({"params": params})
            if tensor is not None:
                return Diagnosis(step, bad or [position], inner_step, tensor)
    tensor = first_bad(found.gradient) or "the query loss"
    return Diagnosis(step, bad or list(range(len(tasks))), None, f"the gradient of {tensor}")
