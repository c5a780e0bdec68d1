"""A Slurm cluster of one node: `python cluster.py COMMAND ...` is sbatch, srun or sacct.

Jobs of an array run one after another. $CLUSTER is the folder of what Slurm would remember.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct")


def install(folder: Path) -> dict[str, str]:
    """Make the commands in a folder; return the environment that finds them."""
    (folder / "bin").mkdir(parents=True)
    for command in COMMANDS:
        path = folder / "bin" / command
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {command} "$@"\n')
        path.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CLUSTER": str(folder)}


def sbatch(state: Path, words: list[str]) -> None:
    script = Path(words[-1]).read_text()
    if "partition=nosuch" in script:
        sys.exit("sbatch: error: invalid partition specified: nosuch")
    (state / "script").write_text(script)
    subprocess.Popen(
        [sys.executable, __file__, "run_array"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    print("Submitted batch job 7")


def run_array(state: Path, _: list[str]) -> None:
    found = re.search(r"--array=0-(\d+)", (state / "script").read_text())
    assert found is not None
    for number in range(int(found[1]) + 1):
        job = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(number)}
        one = {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": f"{70 + number}"}
        place = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
        environment = os.environ | job | one | place
        code = subprocess.call(["bash", str(state / "script")], env=environment)
        (state / f"7_{number}").write_text("FAILED" if code else "COMPLETED")


def srun(_: Path, words: list[str]) -> None:
    while words[0].startswith("--"):
        del words[: 1 if words[0] == "--unbuffered" else 2]
    os.execvp(words[0], words)


def sacct(state: Path, _: list[str]) -> None:
    print("JobID|State|NodeList")
    for path in state.glob("7_*"):
        print(f"{path.name}|{path.read_text()}|here")


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(os.environ["CLUSTER"]), sys.argv[2:])
