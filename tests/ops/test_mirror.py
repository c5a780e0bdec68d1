"""The mirror against real offline W&B runs, read back by W&B's own reader."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import kill, python
from PIL import Image

from metarun.tracking.rows import COMPARED
from metarun.tracking.start import LOG, read_label

pytestmark = pytest.mark.slow

TRAINER = Path(__file__).parents[1] / "trainer.py"
CANARY = "canary-value-of-a-secret"
SYNC = "import sys; from metarun.tracking import sync_main; sys.exit(sync_main(sys.argv[1:]))"
COMPARE = """
import sys
from pathlib import Path
from metarun.tracking import mirror_comparison, wandb
settings = wandb(project="p", entity=None, tags=[], mode="auto", timeout_s=5.0, log_images=True)
print(mirror_comparison(Path(sys.argv[1]), settings))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home without any key, and secrets that must not be seen again."""
    for name in [n for n in os.environ if n.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    for name in ("SOME_API_KEY", "A_TOKEN", "MY_SECRET", "DB_PASSWORD"):
        monkeypatch.setenv(name, f"{CANARY}-{name}")
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def train(folder: Path, *words: str) -> dict:
    """Record a run in a process of its own; return what it printed."""
    out, error = python(TRAINER, folder, *words).communicate(timeout=60)
    assert not error
    return json.loads(out)


def mirrored(folder: Path, times: int = 1) -> None:
    """Wait until the log says that the mirror has ended well, so many times."""
    deadline = time.monotonic() + 60
    log = folder / LOG
    while not log.exists() or log.read_text().count("mirrored ") < times:
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.1)


def sync(folder: Path) -> str:
    """Carry out `metarun sync`; return what it said."""
    process = python("-c", SYNC, folder)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, out + error
    return out


def logs(folder: Path) -> list[Path]:
    """Return the W&B logs of a run folder."""
    return sorted(folder.glob("wandb/*run-*/*.wandb"))


def inspect(log: Path, *words: str) -> str:
    """Read a log with W&B's own reader."""
    command = [
        str(Path(sys.executable).with_name("wandb")),
        "leet",
        "inspect",
        "--json",
        *words,
        str(log),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def history(log: Path) -> list[dict]:
    """Return the rows of a log in order."""
    lines = map(json.loads, inspect(log).splitlines())
    return [line["history"]["item"] for line in lines if line["type"] == "history"]


def no_canary_below(folder: Path) -> None:
    """Search every byte that was written."""
    for path in folder.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path


def test_a_run_of_a_sweep_arrives_whole(tmp_path, home):
    folder = tmp_path / "my sweep" / "maml-s0"
    folder.mkdir(parents=True)
    (folder.parent / "manifest.jsonl").touch()
    for name in ("adaptation.png", "training.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    cost = train(folder)
    assert "`metarun sync` sends it" in cost["notice"]
    assert "\n" not in cost["notice"]
    assert cost["start_s"] < 0.05
    mirrored(folder)
    (log,) = logs(folder)
    found = json.loads(inspect(log, "--summary"))
    assert found["config"] == {
        "algo": {"inner_lr": 0.1},
        "seed": 0,
        "versions": {"torch": "2.13"},
    }
    assert found["tags"] == ["one", "two"]
    assert (found["name"], found["project"]) == ("maml-s0", "p")
    assert (found["exit_code"], found["state"]) == (0, "finished")
    summary = found["summary"]
    assert summary["test/accuracy"] == 0.6
    assert summary["test/accuracy_ci95"] == 0.01
    assert summary["cost/flops_total"] == 1e9
    (run,) = [r["run"] for r in map(json.loads, inspect(log).splitlines()) if r["type"] == "run"]
    assert (run["run_group"], run["job_type"]) == ("my sweep", "train")
    *rows, last = history(log)
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert [row["train/loss"] for row in rows] == [1 / s for s in range(1, 31)]
    assert [row["step"] for row in rows if "validate/accuracy" in row] == [10, 20, 30]
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    stamps = [r["time"] for r in records if r["kind"] == "train"]
    assert [row["_timestamp"] for row in rows] == pytest.approx(stamps)
    assert last["test/adaptation._type"] == "table-file"
    assert last["test/adaptation.nrows"] == 3
    assert {last["adaptation._type"], last["training._type"]} == {"image-file"}
    assert list(home.rglob("*")) == []
    no_canary_below(tmp_path)


@pytest.mark.parametrize(("status", "code"), [("diverged", 4), ("preempted", 75)])
def test_a_run_that_ends_otherwise_says_so(tmp_path, home, status, code):
    process = python(TRAINER, tmp_path / "run", "--status", status, "--exit-code", str(code))
    process.communicate(timeout=60)
    mirrored(tmp_path / "run")
    (log,) = logs(tmp_path / "run")
    assert json.loads(inspect(log, "--summary"))["exit_code"] == code
    assert [row["step"] for row in history(log)] == list(range(1, 31))


def test_kills_of_trainer_and_mirror_leave_one_whole_log(tmp_path, home):
    folder = tmp_path / "run"
    for first, pause in ((1, 14), (11, 25)):
        process = python(TRAINER, folder, "--pause-at", str(pause), "--first", str(first))
        assert process.stdout.readline() == "paused\n"
        while not (started := list(folder.glob(f"wandb/*run-*-{read_label(folder)['id']}"))):
            time.sleep(0.05)
        assert len(started) == 1
        time.sleep(0.5)
        os.kill(mirror_of(process.pid), signal.SIGKILL)
        kill(process)
        shutil.rmtree(folder / "wandb" / "latest-run", ignore_errors=True)
        sync(folder)
        (log,) = logs(folder)
        assert [row["step"] for row in history(log)] == list(range(1, pause))
    train(folder, "--first", "21", "--tracking", "none")
    log.parent.rename(f"{log.parent}-1")  # as W&B calls the second of one second
    for _ in range(2):
        assert "mirrored run" in sync(folder)
        (log,) = logs(folder)
        *rows, last = history(log)
        assert [row["step"] for row in rows] == list(range(1, 31))
        assert "test/adaptation._type" in last


def mirror_of(trainer: int) -> int:
    """Return the process that the trainer has started."""
    children = Path(f"/proc/{trainer}/task/{trainer}/children").read_text().split()
    (mirror,) = [int(child) for child in children]
    return mirror


def test_the_mirror_of_a_killed_trainer_ends_by_itself(tmp_path, home):
    folder = tmp_path / "run"
    process = python(TRAINER, folder, "--pause-at", "12")
    assert process.stdout.readline() == "paused\n"
    kill(process)
    mirrored(folder)
    (log,) = logs(folder)
    found = json.loads(inspect(log, "--summary"))
    assert (found["exit_code"], found["state"]) == (1, "failed")
    train(folder, "--first", "11")
    mirrored(folder, times=2)
    (log,) = logs(folder)
    assert [row["step"] for row in history(log)[:-1]] == list(range(1, 31))


def test_a_run_that_was_never_tracked_can_be_sent_later(tmp_path, home):
    folder = tmp_path / "outputs" / "run"
    train(folder, "--tracking", "none")
    assert not (folder / "wandb").exists()
    sync(tmp_path / "outputs")
    (log,) = logs(folder)
    assert len(history(log)) == 31


def test_a_sweep_s_comparison_is_a_run_of_its_own(tmp_path, home):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    entries = [
        {"label": name, "mean": mean, "ci95": 0.01, "tasks": 600, "seeds": [0], "cost": {}}
        for name, mean in (("maml", 0.7), ("transfer", 0.6))
    ]
    section = {"dataset": "glyphs", "metric": "accuracy", "reference": "transfer"}
    comparison = {"sections": [section | {"entries": entries}], "pairs": []}
    (sweep / "comparison.json").write_text(json.dumps(comparison))
    (sweep / "comparison.html").write_text("<p>é</p>", encoding="utf-8")
    Image.new("RGB", (8, 8)).save(sweep / "curves.png")
    process = python("-c", COMPARE, sweep)
    assert not process.communicate(timeout=30)[1]
    mirrored(sweep)
    (log,) = logs(sweep)
    (run,) = [r["run"] for r in map(json.loads, inspect(log).splitlines()) if r["type"] == "run"]
    assert (run["run_group"], run["job_type"]) == ("sweep", "compare")
    (row,) = history(log)
    (sent,) = log.parent.rglob("comparison*.table.json")
    table = json.loads(sent.read_text())
    means = table["columns"].index("mean")
    assert (table["columns"], [line[means] for line in table["data"]]) == ([*COMPARED], [0.7, 0.6])
    assert row["report._type"] == "html-file"
    assert row["curves._type"] == "image-file"
    assert "nothing new" in sync(sweep)
    assert logs(sweep) == [log]


def test_an_agent_of_a_wandb_sweep_chooses_the_id(tmp_path, home, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    monkeypatch.setenv("WANDB_RUN_ID", "chosenbyagent")
    train(tmp_path / "run", "--steps", "3")
    mirrored(tmp_path / "run")
    assert read_label(tmp_path / "run")["id"] == "chosenbyagent"
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name)
    sync(tmp_path / "run")
    (log,) = logs(tmp_path / "run")
    assert log.name == "run-chosenbyagent.wandb"
    assert len(history(log)) == 4
