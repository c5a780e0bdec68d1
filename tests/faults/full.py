"""Fill the disk at every write of a run, then free it; prints one JSON object of counts."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import victim

from metarun import checkpoint
from metarun.files import TEMPORARY


def full_from(call: str, count: int) -> None:
    """Let the n-th call, and every later one, fail as on a full disk."""
    left, really = [count], getattr(os, call)

    def failing(*args, **named):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        return really(*args, **named)

    setattr(os, call, failing)


def main() -> None:
    """Try every point at which the disk can become full, for two system calls."""
    made = victim.reference("maml", "budget.total=8", "validation.every=4")
    counts: Counter[str] = Counter()
    for call in ("write", "fsync"):
        code, count = 5, 0
        while code != 0:
            folder = Path(os.environ["METARUN_OUTPUTS"], f"{call}-{count}")
            log = folder.with_suffix(".log")
            first = lambda call=call, count=count: full_from(call, count)  # noqa: E731
            code = victim.exit_code(victim.spawn(made.config, folder, first=first))
            if code != 0:
                lines = [t for t in log.read_text().splitlines() if t.startswith("metarun: ")]
                said = len(lines) == 1 and all(
                    words in lines[0]
                    for words in ("No space left", str(folder), "needed: less than", "free: ")
                )
                counts["points"] += 1
                counts["code 5"] += code == 5
                counts["said so"] += said and "Traceback" not in log.read_text()
                counts["temporaries"] += len(list(folder.rglob(TEMPORARY)))
                found = checkpoint.newest(folder / "checkpoints")  # raises when damaged
                counts["kept one"] += found is not None
                code_again = victim.exit_code(victim.spawn(made.config, folder))
                counts["bitwise"] += code_again == 0 and victim.digest(folder) == made.digest
            if counts["bitwise"] < counts["points"]:
                print(f"{call} {count}, exit code {code}:\n{log.read_text()}", file=sys.stderr)
                break
            shutil.rmtree(folder)
            count += 1
    json.dump(counts, sys.stdout)


if __name__ == "__main__":
    main()
