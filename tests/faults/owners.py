"""Start a run twenty times at once, then kill its owner; prints one JSON object."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import victim

STARTS = 20


def main() -> None:
    """One trains, nineteen are told who it is; after its death the next one takes over."""
    made = victim.reference("maml")
    config = json.loads(json.dumps(made.config))
    config["budget"]["total"] = 1e9
    root = Path(os.environ["METARUN_OUTPUTS"])
    begun = time.monotonic() + 1
    folder = root / "shared"

    def barrier() -> None:
        time.sleep(max(0, begun - time.monotonic()))

    os.environ["METARUN_OUTPUTS"] = str(root)
    children = [victim.spawn(config, folder, first=barrier) for _ in range(STARTS)]
    codes: dict[int, int] = {}
    while len(codes) < STARTS - 1 and time.monotonic() < begun + 30:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    refused_s = time.monotonic() - begun
    (owner,) = set(children) - set(codes)
    log = folder.with_suffix(".log")
    told = log.read_text().count(f"in use by process {owner} on host {os.uname().nodename}")
    while not list(folder.glob("checkpoints/step-*")):
        time.sleep(0.01)
    os.kill(owner, signal.SIGKILL)
    victim.exit_code(owner)
    begun = time.monotonic()
    successor = victim.spawn(config, folder)
    while not (folder / ".lock").read_text().startswith(f"{successor} "):
        time.sleep(0.001)
    takeover_s = time.monotonic() - begun
    while "going on from" not in log.read_text():
        time.sleep(0.01)
    os.kill(successor, signal.SIGKILL)
    victim.exit_code(successor)
    found = {"codes": sorted(codes.values()), "told": told}
    json.dump(found | {"refused_s": refused_s, "takeover_s": takeover_s}, sys.stdout)


if __name__ == "__main__":
    main()
