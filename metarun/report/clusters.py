"""What a choice of starts has to do with the true families; T tasks, M starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from metarun.evaluate import Scores
from metarun.report import statistics


def agreement(scores: Scores) -> dict[str, float]:
    """Return how many starts are in use, purity, NMI and ARI; nothing where none is chosen.

    Purity rises with the number of starts; the other two do not. There is nothing to agree with
    where all tasks are of one family.
    """
    if scores.assignment is None:
        return {}
    assigned, truth = scores.assignment.numpy(), scores.mode.numpy()
    used = {"effective": statistics.effective_clusters(scores.assignment.bincount().numpy())}
    if len(scores.mode.unique()) == 1:
        return used
    return used | {
        "purity": statistics.purity(truth, assigned),
        "nmi": statistics.nmi(truth, assigned),
        "ari": statistics.ari(truth, assigned),
    }


def families(scores: Scores, modes: Sequence[str], step: int) -> dict[str, Any] | None:
    """Return a run's result by family and, where starts are chosen, all about the choice.

    `confusion` counts the tasks of each family (rows) in each start (columns).
    """
    per_mode = {
        name: {
            "mean": float(rows.mean()),
            "ci95": statistics.mean_ci(rows.numpy()).ci95,
            "tasks": len(rows),
        }
        for index, name in enumerate(modes)
        if len(rows := scores.values[scores.mode == index, step])
    }
    found: dict[str, Any] = {"modes": list(modes), "per_mode": per_mode}
    if scores.assignment is None:
        return found if len(modes) > 1 else None
    starts = int(scores.assignment.max()) + 1
    if scores.by_start is not None:
        starts = scores.by_start.shape[1]
        found |= regret(scores, step)
    confusion = torch.zeros(len(modes), starts, dtype=torch.long)
    pairs = (scores.mode, scores.assignment)
    confusion.index_put_(pairs, torch.ones_like(scores.mode), accumulate=True)
    usage = confusion.sum(0).double() / len(scores.mode)
    return found | {
        "usage": usage.tolist(),
        **agreement(scores),
        "confusion": confusion.tolist(),
    }


def regret(scores: Scores, step: int) -> dict[str, float]:
    """Return how much worse the chosen start is than the one that the query would choose.

    The query's choice is no method, only a bound: `best_start` is its score, `any_start` that of
    a choice at random. For a mixture the chosen start is the one that counts most. A start from
    which a task diverges is infinitely bad for it.
    """
    assert scores.by_start is not None
    assert scores.assignment is not None
    table = scores.by_start[:, :, step]  # [T, M]
    table = table.masked_fill(table.isnan(), float("inf"))  # an accuracy is always a number
    best = table.amin(1) if scores.metric == "mse" else table.amax(1)
    own = table.gather(1, scores.assignment[:, None])[:, 0]
    return {
        "regret": float((own - best).abs().mean()),
        "best_start": float(best.mean()),
        "any_start": float(table.mean()),
    }
