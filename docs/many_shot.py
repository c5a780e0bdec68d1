"""Write docs/many_shot.md: what a long inner loop does to the meta-gradient, from finished sweeps.

python docs/many_shot.py SWEEP...     # folders of experiment=many_shot

Rows of runs that the folders do not hold stay as they were.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from metarun.records import read

PAGE = Path(__file__).with_name("many_shot.md")
WORDS = """# Long inner loops

Sinusoids, a perceptron of 40-40, 4 tasks a meta-step, 50 meta-steps, tested on 200 tasks after at
most 50 steps; every number from a run of its own, two CPU cores, no GPU, one training seed. The
ratio is the length of the exact meta-gradient over that of the first-order one, task by task: the
95th percentile over a meta-step's tasks, and here its largest value over the training. An error is
the mean squared one, with 1.96 standard errors, at the step that validation chose. A ratio that
leaves a float's range is inf; "not finite" counts the meta-steps that were skipped for that;
"diverges" is a test error of nan or above a million, by some task whose adaptation runs away.

At a rate of 0.01 the exact meta-gradient is tame up to 50 steps, at most 11 times the first-order
one, and up to 620 times as long after 100 and 200. At 0.05 it is 1e4 to 3e8 times as long after 50
steps and 2e6 to beyond a float after more, and at 0.1 6e2 to 1e10 times after 20, though the loss
that is trained on is finite: outliers decide the meta-gradient, and clipping it
leaves a direction of theirs. Of the remedies at 0.1 and 50 steps iMAML, which searches for the
lengths of its steps, ends better than plain MAML with 5 steps, and truncation without the clip no
worse; first order has tame gradients, and a start that runs away at test.

Written by `python docs/many_shot.py SWEEP...`; the sweeps are

    metarun -m experiment=many_shot algo=maml algo.steps=1,5,10,20,50 task.shots=5,20,100,500 \\
      suggest.inner_lr=0.01,0.05,0.1 outer.clip=null
    metarun -m experiment=many_shot algo=maml algo.steps=100,200 task.shots=5,20,100,500 \\
      suggest.inner_lr=0.01,0.05,0.1 outer.clip=null
    metarun -m experiment=many_shot suggest.inner_lr=0.1

100 and 200 steps with other than 20 shots were run beside other programs, and their seconds are too
many.
"""
IMAGES = """
## Omniglot

5 ways, 5 queries a class, Conv-4 of 16 filters, batch normalisation transductive, the rest as
above; each run on one core, beside another.

At a rate of 0.1 a long loop is tame here, at most 2.2 times the first-order one: the rate times
the largest curvature (`curvature_start`, `curvature_end` in the records; descent is stable below
2) reaches 2.6, mean over a meta-step's tasks. 20 steps are as good as 50, whose first-order start
comes to 88.6 against 89.4. At five times the rate that product reaches 5 and the ratio 8 to 12;
at 2.0, the original MAML's rate with the loss as a mean, 19 and 59 (5 steps) to 512 (20), and the
start is worse. iMAML's 50 meta-steps of 4 tasks are too few for it. 100 and 200 steps, and the
rates 0.01 and 0.05, were not run on Omniglot.

    metarun -m experiment=many_shot dataset=omniglot model=conv4 model.filters=16 task.ways=5 \\
      task.shots=5,15 task.queries=5 task.test_queries=5 algo=maml algo.steps=1,5,10,20,50 \\
      suggest.inner_lr=0.1 outer.clip=null
    metarun -m experiment=many_shot dataset=omniglot model=conv4 model.filters=16 task.ways=5 \\
      task.shots=15 task.queries=5 task.test_queries=5 algo=truncated,fomaml,imaml algo.steps=50 \\
      suggest.inner_lr=0.1 outer.clip=null
    metarun -m experiment=many_shot dataset=omniglot model=conv4 model.filters=16 task.ways=5 \\
      task.shots=5 task.queries=5 task.test_queries=5 algo=maml algo.steps=5,20 \\
      suggest.inner_lr=0.5,2.0 outer.clip=null
"""
HUGE = 1e6  # an error, beyond which some test task's adaptation has run away
HEAD = ("rate", "shots", "method", "steps", "clip", "ratio", "not finite", "test {}", "seconds")
MEASURED = {"sinusoid": "error", "omniglot": "accuracy"}  # a table each


def row(run: Path) -> list[str]:
    """Return the data set of one run, what it was and what it gave."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    outcome = json.loads((run / "outcome.json").read_text())
    algo, clip = config["algo"], config["outer"]["clip"]
    method = algo["_target_"].rpartition(".")[2]
    estimator = algo.get("estimator")
    if method == "maml" and isinstance(estimator, dict):
        method = "imaml" if "solver" in estimator else "truncated"
    elif method == "maml" and estimator == "first_order":
        method = "fomaml"
    trained = [r for r in read(run) if r["kind"] == "train"]
    ratios = [float(r["gradient_ratio_p95"]) for r in trained if "gradient_ratio_p95" in r]
    worst = math.inf if any(not math.isfinite(r) for r in ratios) else max(ratios, default=math.nan)
    rate, shots = config["suggest"]["inner_lr"], config["task"]["shots"]
    skipped = trained[-1]["nonfinite"] if trained else 0
    said, seconds = "diverges", "-"
    if outcome["status"] == "done":
        test, seconds = outcome["test"], str(round(outcome["cost"]["train_seconds"]))
        (name,) = {"mse", "accuracy"} & test.keys()
        mean, ci95 = float(test[name]["mean"]), float(test[name]["ci95"])
        if name == "accuracy":
            said = f"{100 * mean:.1f} ± {100 * ci95:.1f}"
        elif mean < HUGE:
            said = f"{mean:.2f} ± {ci95:.2f}"
    elif outcome["status"] != "diverged":
        raise SystemExit(f"{run}: {outcome['status']}")
    first = (rate, shots, method, algo["steps"], clip or "-", f"{worst:.3g}", skipped)
    data = config["dataset"]["_target_"].rpartition(".")[2]
    return [data, *map(str, first), said, seconds]


def kept() -> Iterator[list[str]]:
    """Yield the rows that the page has, each after its data set."""
    data = "sinusoid"
    for line in PAGE.read_text().splitlines():
        if line == "## Omniglot":
            data = "omniglot"
        if line.startswith("| 0"):
            yield [data, *(cell.strip() for cell in line.strip("|").split("|"))]


def table(data: str, rows: list[list[str]]) -> str:
    """Return the rows of a data set below their head."""
    lines = [HEAD, ("---",) * len(HEAD), *(cells for name, *cells in rows if name == data)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).format(MEASURED[data]) + "\n"


def main(folders: list[str]) -> None:
    """Read the sweeps and write the tables."""
    runs = {path.parent for folder in folders for path in Path(folder).glob("*/outcome.json")}
    found = {tuple(one[:6]): one for one in [*kept(), *map(row, sorted(runs))]}
    rows = sorted(found.values(), key=lambda r: (float(r[1]), int(r[2]), r[3], int(r[4]), r[5]))
    PAGE.write_text(f"{WORDS}\n{table('sinusoid', rows)}{IMAGES}\n{table('omniglot', rows)}")


if __name__ == "__main__":
    main(sys.argv[1:])
