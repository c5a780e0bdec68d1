"""Kill runs, resume them, and count what came of it; prints one JSON object.

kills.py any FAMILY TRIALS SEED        kill -9, half of them inside a checkpoint write
kills.py control FAMILY TRIALS SEED    the same with a writer that writes in place
kills.py phases FAMILY TRIALS SEED     die in other phases: start, evaluation, append in turn
kills.py term FAMILY TRIALS SEED       SIGTERM, again and again, until the run is done
kills.py hand FAMILY TRIALS SEED       the same with Ctrl-C; both on a terminal
kills.py lazy FAMILY TRIALS SEED       control: SIGTERM to runs that write nothing when stopped
"""

from __future__ import annotations

import json
import os
import pty
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
from metarun.state import Vault

# How long a phase lasts on a fast machine, in seconds; a death after it would be in another.
PHASES = {
    "start": (victim.START, 0.02),
    "write": (victim.WRITE, 0.0008),
    "evaluation": (victim.EVALUATION, 0.002),
    "append": (victim.APPEND, 0.00005),
}
EARLIEST = 1e-6
STOPS = {
    "term": (signal.SIGTERM, 75),
    "lazy": (signal.SIGTERM, 75),
    "hand": (signal.SIGINT, 130),
}
STARTING_S = 0.03  # in which one stop of four is asked for
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor


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


def stopped(
    mode: str, made: Reference, folder: Path, rng: random.Random, counts: Counter[str]
) -> None:
    """Stop a run at any time and give its command again until it is done, as a cluster does."""
    number, expected = STOPS[mode]
    while True:
        child, screen = on_terminal(made, folder, mode == "lazy")
        early = rng.random() < 0.25
        time.sleep(rng.uniform(0, STARTING_S if early else 0.6 * made.seconds))
        asked = time.monotonic()
        os.kill(child, number)
        code, shown = watched(child, screen)
        folder.with_suffix(".log").open("a").write(shown)
        counts["tracebacks"] += "Traceback" in shown
        counts["lost cursors"] += shown.rfind(HIDE) > shown.rfind(SHOW)
        counts["bars"] += HIDE in shown
        if code == 0:
            break
        counts["stops"] += 1
        counts["right code"] += code == expected
        counts["in time"] += time.monotonic() - asked < 2
    counts["bitwise"] += victim.digest(folder) == made.digest
    trained = [r["step"] for r in read(folder) if r["kind"] == "train"]
    counts["steps repeated"] += len(trained) - len(set(trained))
    counts["temporaries"] += len(list(folder.rglob(".metarun-*")))


def on_terminal(made: Reference, folder: Path, lazy: bool) -> tuple[int, int]:
    """Start a run whose output is a terminal; return its process id and the terminal."""
    screen, its_side = pty.openpty()

    def first() -> None:
        for descriptor in (1, 2):
            os.dup2(its_side, descriptor)
        if lazy:
            save = Vault.save
            Vault.save = lambda self, state: save(self, state) if state.step % 6 == 0 else None

    child = victim.spawn(made.config, folder, first=first)
    os.close(its_side)
    return child, screen


def watched(child: int, screen: int) -> tuple[int, str]:
    """Read a terminal until its run has ended; return the exit code and what was shown."""
    shown = b""
    while True:
        try:
            shown += os.read(screen, 65536)
        except OSError:  # nobody writes to it any more
            break
    os.close(screen)
    return victim.exit_code(child), shown.decode(errors="replace")


def main() -> None:
    """Carry out the trials of one family."""
    mode, family, trials, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    os.environ["TERM"] = "xterm"  # of which a progress bar takes the cursor
    made = victim.reference(family)
    counts: Counter[str] = Counter()
    for number in range(trials):
        rng = random.Random(f"{mode} {family} {seed} {number}")
        folder = Path(os.environ["METARUN_OUTPUTS"], f"{family}-{number}")
        if mode in STOPS:
            stopped(mode, made, folder, rng, counts)
        else:
            trial(mode, phase_of(mode, number, rng), made, folder, rng, counts)
        if mode != "control" and counts["bitwise"] <= number:
            print(f"trial {number}:\n{folder.with_suffix('.log').read_text()}", file=sys.stderr)
            break
        shutil.rmtree(folder, ignore_errors=True)
    json.dump(counts, sys.stdout)


if __name__ == "__main__":
    main()
