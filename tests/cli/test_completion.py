"""What TAB offers: verbs, folders below the outputs, and Hydra's options."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metarun import cli

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("metarun algo=mam", {"algo=maml", "algo=mamlpp"}),
        ("metarun com", {"compare"}),
        ("metarun -m com", set()),
        ("metarun resume S", {"S"}),
        ("metarun resume S x", set()),
        ("metarun sync S S/a", {"S/a"}),
        ("metarun verify algo=mam", {"algo=maml", "algo=mamlpp"}),
        ("metarun doctor ", set()),
        ("metarun nope ", set()),
        ("", {*cli.VERBS}),
    ],
)
def test_completion_knows_what_there_is_and_writes_no_complaint_into_the_prompt(
    line: str, offered: set[str], tmp_path: Path
) -> None:
    (tmp_path / "S" / "a").mkdir(parents=True)
    typed = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "METARUN_OUTPUTS": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-m", "metarun", "-sc", "query=bash"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | typed,
        check=False,
    )
    assert {word for word in ended.stdout.split() if not word.endswith((".", "="))} == offered
    assert (ended.returncode, ended.stderr) == (0, "")
