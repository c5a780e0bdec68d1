"""A process that records as training does, for tests of what follows its records.

Prints one JSON object: what the tracker cost to start and to end, how long a step takes that
nothing else on the machine disturbs, and how long one in a hundred takes at least, but for its
waiting for a processor that others have.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from metarun.files import write_atomic
from metarun.records import Records, read
from metarun.tracking import start_mirror, wandb

ACCURACY = {"ci95": 0.01, "tasks": 600, "by_step": [0.2, 0.5, 0.6], "ci95_by_step": [0.1, 0.1, 0.1]}


def work(rounds: int) -> int:
    """Compute a fixed amount, as a training step does."""
    return sum(number * number for number in range(rounds))


def queued() -> float:
    """Return for how many seconds this process has waited for a processor."""
    return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9


def in_process(folder: Path, timeout_s: float):
    """Control: a tracker of the usual kind, inside the training process."""
    import wandb as library

    settings = library.Settings(init_timeout=timeout_s, silent=True, console="off")
    try:
        return library.init(project="p", dir=str(folder), mode="online", settings=settings)
    except library.Error:
        return None  # the kindest variant: many a script ends here


def main() -> None:
    """Record `--steps` steps and, unless told otherwise, a test and an end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=50_000)
    parser.add_argument(
        "--tracking",
        choices=("mirror", "none", "in_process", "heavy", "halting"),
        default="mirror",
    )
    parser.add_argument("--status", default="done")
    parser.add_argument("--exit-code", type=int, default=0)
    parser.add_argument("--timeout-s", type=float, default=5.0)
    parser.add_argument("--pause-at", type=int, default=0)
    told = parser.parse_args()
    folder: Path = told.folder
    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb(
        project="p",
        entity=None,
        tags=["one", "two"],
        mode="auto",
        timeout_s=told.timeout_s,
        log_images=True,
    )
    begun, notice, run = time.perf_counter(), None, None
    if told.tracking == "mirror":
        notice = start_mirror(folder, settings)
    elif told.tracking == "in_process":
        run = in_process(folder, told.timeout_s)
    start_s = time.perf_counter() - begun
    steps: list[float] = []
    own: list[float] = []
    with Records(folder) as records:
        facts = {"config": {"algo": {"inner_lr": 0.1}, "seed": 0}, "versions": {"torch": "2.13"}}
        records.write("resumed" if read(folder) else "start", told.first - 1, facts)
        for step in range(told.first, told.steps + 1):
            begun, before = time.perf_counter(), queued()
            work(told.rounds)
            if told.tracking == "heavy":  # control: a tracker that takes a part of each step
                work(told.rounds // 4)
            if told.tracking == "halting" and step % 30 == 0:  # control: one that halts at times
                work(told.rounds)
            records.write("train", step, {"loss": 1 / step, "grad_norm": float("nan")})
            if step % 10 == 0:
                records.write("validate", step, {"accuracy": ACCURACY | {"mean": step / 100}})
                records.sync()
            steps.append(time.perf_counter() - begun)
            own.append(steps[-1] - (queued() - before))
            if step == told.pause_at:
                print("paused", flush=True)
                time.sleep(60)
        begun = time.perf_counter()
        if told.status == "done":
            records.write("test", told.steps, {"accuracy": ACCURACY | {"mean": 0.6}})
        records.write("end", told.steps, {"status": told.status, "exit_code": told.exit_code})
        records.sync()
    outcome = {"status": told.status, "cost": {"flops_total": 1e9}}
    write_atomic(folder / "outcome.json", json.dumps(outcome).encode())
    if run is not None:
        run.finish()
    p99_s = sorted(own)[int(0.99 * len(own))]
    cost = {"start_s": start_s, "step_s": min(steps), "p99_s": p99_s, "notice": notice}
    print(json.dumps(cost | {"end_s": time.perf_counter() - begun}))
    sys.exit(told.exit_code)


if __name__ == "__main__":
    main()
