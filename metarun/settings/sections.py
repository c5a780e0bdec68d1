"""The sections of a configuration that are not groups; these signatures are their schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskShape:
    """How large a task is. Regression has one way; its shots are points."""

    ways: Count
    shots: Count
    queries: Count  # a class, in training and validation
    test_queries: Count  # a class, at test

    @property
    def rows(self) -> int:
        """Return how many inputs a task has, support and query."""
        return self.ways * (self.shots + self.queries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """The outer loop: how the meta-gradient moves what is meta-learned."""

    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"]
    lr: Rate
    batch: Count  # tasks a meta-step
    schedule: Literal["constant", "cosine", "linear"]
    lr_min: Annotated[float, Field(ge=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)]  # sgd and rmsprop
    eps: Rate  # adam, adamw, rmsprop
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Rate | None  # largest norm of the meta-gradient
    on_divergence: Literal["raise", "skip_step", "drop_tasks"]
    max_skips: Annotated[int, Field(ge=0)]  # in a row
    diagnose: bool  # record what the inner loop does to the meta-gradient; adds to the cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When training stops, for every method alike."""

    unit: Literal["meta_steps", "examples", "flops", "seconds"]
    total: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Fixed tasks of the validation split, which choose the checkpoint, the steps and the rates."""

    every: Count  # meta-steps
    tasks: Count
    steps: Count  # inner steps tried; the best is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """Held-out tasks, the same for every method and training seed."""

    tasks: Annotated[int, Field(ge=2)]
    steps: Count  # the adaptation curve runs from 0 to here
    seed: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """How much work a kill may cost, and how many files stay."""

    every: Count  # meta-steps
    keep: Annotated[int, Field(ge=1)]


SECTIONS = {
    "task": TaskShape,
    "outer": Outer,
    "budget": Budget,
    "validation": Validation,
    "test": Test,
    "checkpoints": Checkpoints,
}
GROUPS = ("algo", "dataset", "model", "hardware", "tracking", "launch", "search")
