"""Kill runs, resume them, and count what came of it; prints one JSON object.

kills.py any FAMILY TRIALS SEED        kill -9, half of them inside a checkpoint write
kills.py control FAMILY TRIALS SEED    the same with a writer that writes in place
kills.py phases FAMILY TRIALS SEED     die in other phases: start, evaluation, append in turn
kills.py term FAMILY TRIALS SEED       SIGTERM, again and again, until the run is done
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import victim
from victim import Ambush, Reference

from metarun import checkpoint
from metarun.errors import CheckpointError
from metarun.records import read

# How long a phase lasts on a fast machine, in seconds; a death after it would be in another.
PHASES = {
    "start": (victim.START, 0.02),
    "write": (victim.WRITE, 0.0008),
    "evaluation": (victim.EVALUATION, 0.002),
    "append": (victim.APPEND, 0.00005),
}
EARLIEST = 1e-6


def lie_in_wait(phase: str, made: Reference, rng: random.Random) -> Ambush:
    """Choose a moment inside a phase."""
    number, longest = PHASES[phase]
    entry = rng.randint(1, max(1, made.entries[number]))
    return Ambush(number, entry, EARLIEST * (longest / EARLIEST) ** rng.random())


def inspect(folder: Path, counts: Counter[str]) -> None:
    """Look at what a kill left, as the next process would."""
    best = folder / "checkpoints" / "best.safetensors"
    try:
        found = checkpoint.newest(folder / "checkpoints")
        counts["unreadable"] += found is not None and found.notice is not None
        if best.exists():
            checkpoint.load(best)
    except CheckpointError:
        counts["unreadable"] += 1
        return
    reached = max([0, *(r["step"] for r in read(folder) if r["kind"] == "train")])
    kept = found.meta["state"]["step"] if found else 0
    counts["lost too much"] += reached - kept > victim.EVERY


def phase_of(mode: str, number: int, rng: random.Random) -> str | None:
    """Return where a trial's run is to die; None for anywhere."""
    if mode == "phases":
        return ("start", "evaluation", "append")[number % 3]
    return "write" if mode == "control" or rng.random() < 0.5 else None


def trial(
    mode: str,
    phase: str | None,
    made: Reference,
    folder: Path,
    rng: random.Random,
    counts: Counter[str],
) -> None:
    """Kill a run once, look, and resume it."""

    def broken() -> None:
        checkpoint.write_atomic = victim.in_place

    ambush = lie_in_wait(phase, made, rng) if phase else None
    child = victim.spawn(made.config, folder, ambush, broken if mode == "control" else lambda: None)
    if phase is None:
        time.sleep(rng.uniform(0, 0.7 * made.seconds))
        os.kill(child, signal.SIGKILL)
    counts["killed"] += victim.exit_code(child) in (-signal.SIGKILL, -signal.SIGALRM)
    counts["inside a write"] += victim.SHARED[0] == victim.WRITE
    counts["in the phase"] += phase is not None and victim.SHARED[0] == PHASES[phase][0]
    inspect(folder, counts)
    if mode != "control":
        code = victim.exit_code(victim.spawn(made.config, folder))
        counts["bitwise"] += code == 0 and victim.digest(folder) == made.digest


def term(made: Reference, folder: Path, rng: random.Random, counts: Counter[str]) -> None:
    """Preempt a run until it is done, as a cluster does."""
    while True:
        child = victim.spawn(made.config, folder)
        while victim.SHARED[0] == victim.START:  # until the first record
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.6 * made.seconds))
        asked = time.monotonic()
        os.kill(child, signal.SIGTERM)
        code = victim.exit_code(child)
        if code == 0:
            break
        counts["preempted"] += 1
        counts["code 75"] += code == 75
        counts["in time"] += time.monotonic() - asked < 2
    counts["bitwise"] += victim.digest(folder) == made.digest
    trained = [r["step"] for r in read(folder) if r["kind"] == "train"]
    counts["steps repeated"] += len(trained) - len(set(trained))
    counts["temporaries"] += len(list(folder.rglob(".metarun-*")))


def main() -> None:
    """Carry out the trials of one family."""
    mode, family, trials, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    made = victim.reference(family)
    counts: Counter[str] = Counter()
    for number in range(trials):
        rng = random.Random(f"{mode} {family} {seed} {number}")
        folder = Path(os.environ["METARUN_OUTPUTS"], f"{family}-{number}")
        if mode == "term":
            term(made, folder, rng, counts)
        else:
            trial(mode, phase_of(mode, number, rng), made, folder, rng, counts)
        if mode != "control" and counts["bitwise"] <= number:
            print(f"trial {number}:\n{folder.with_suffix('.log').read_text()}", file=sys.stderr)
            break
        shutil.rmtree(folder, ignore_errors=True)
    json.dump(counts, sys.stdout)


if __name__ == "__main__":
    main()
