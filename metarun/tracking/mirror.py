"""The process that copies records to W&B: the only code of metarun that imports wandb.

It keeps no state that matters. Online it asks the server which step comes next; offline it writes
the whole log anew. So it may die at any time and be started again, and every row arrives once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import wandb

from metarun.errors import InUseError, MetarunError
from metarun.files import folder_lock, write_atomic
from metarun.records import NAME, RESTARTS, Record, merged, parse
from metarun.tracking.rows import LIVE, Table, adaptation, comparison_table, rows, summary
from metarun.tracking.start import LABEL, read_label

LOCK = ".tracking.lock"
POLL_S = 0.5
IDLE_S = 10.0  # without a record, once the trainer is gone
RETRY_S = 30.0
OUTCOME_S = 10.0  # between the end record and the files that follow it
FINISH_S = 600  # to send what is left, before the server is given up
IMAGES = ("training.png", "adaptation.png")

Alive = Callable[[], bool]
Medium = Callable[[], Any]


def main(argv: list[str]) -> int:
    """Mirror one folder; whatever happens is a line in its log and an exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", required=True, choices=("online", "offline"))
    parser.add_argument("--records", type=int)  # bytes that were there before the trainer began
    parser.add_argument("--comparison", action="store_true")
    parser.add_argument("--parent", type=int)  # the trainer
    told = parser.parse_args(argv)
    os.nice(10)

    def alive() -> bool:
        return told.parent is not None and os.getppid() == told.parent

    try:
        with _turn(told.folder, alive):
            if told.comparison:
                _mirror_comparison(told.folder, told.mode, alive)
            else:
                _mirror_run(told.folder, told.mode, told.records, alive)
    except (MetarunError, ConnectionError, wandb.Error) as error:
        print(f"{error}; `metarun sync {told.folder}` does it later", flush=True)
        return error.exit_code if isinstance(error, MetarunError) else 1
    return 0


def _mirror_run(folder: Path, mode: str, after: int | None, alive: Alive) -> None:
    latest: dict[str, Record] = {}
    records = _noting(follow(folder / NAME, after, alive), latest)
    opening = list(_until_start(records))
    if "start" not in latest:
        print("no start record, so there is nothing to mirror", flush=True)
        return
    start = latest["start"]
    config = {**start["config"], **{k: start[k] for k in ("versions", "hardware") if k in start}}
    group = folder.parent.name if (folder.parent / "manifest.jsonl").exists() else None
    run = _connect(folder, mode, config, group, "train", alive)
    for kind in LIVE:
        run.define_metric(f"{kind}/*", step_metric="step")
    for row in rows(chain(opening, records), run.starting_step):
        run.log(row.figures | {"_timestamp": row.time}, step=row.step)
    end = latest.get("end", {"status": "failed", "exit_code": 1})
    outcome = _outcome(folder, end["status"], alive)
    run.summary.update(summary(latest.get("test"), outcome) | {"status": end["status"]})
    if end["status"] == "preempted":
        run.mark_preempting()
    last = max((latest[kind]["step"] for kind in LIVE if kind in latest), default=-1)
    if end["status"] == "done" and last + 1 >= run.starting_step:  # else they were sent before
        table = adaptation(latest.get("test"), outcome)
        tables = {"test/adaptation": partial(_table, table)} if table.lines else {}
        _log_media(run, last + 1, tables | _images(folder, [folder / name for name in IMAGES]))
    _finish(run, folder, end["exit_code"])


def follow(path: Path, after: int | None, alive: Alive) -> Iterator[Record]:
    """Yield the records that are there, then those that come, until an `end` among the latter.

    The first `after` bytes are history and merged; None takes all as history and ends with it.
    Once the trainer is gone, silence ends it too.
    """
    history = path.read_bytes()[:after] if path.exists() else b""
    yield from merged(parse(history))
    if after is None:
        return
    position, heard = history.rfind(b"\n") + 1, time.monotonic()
    while alive() or time.monotonic() - heard < IDLE_S:
        fresh = _tail(path, position)
        for record in parse(fresh):
            yield record
            if record["kind"] == "end":
                return
        if fresh:
            position, heard = position + len(fresh), time.monotonic()
        else:
            time.sleep(POLL_S)


def _tail(path: Path, position: int) -> bytes:
    """Return the whole lines from a position on."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            data = file.read()
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def _noting(records: Iterable[Record], latest: dict[str, Record]) -> Iterator[Record]:
    """Pass records on, and remember the latest of each kind that still counts."""
    for record in records:
        if record["kind"] in RESTARTS:
            latest.pop("test", None)
            latest.pop("end", None)
        latest[record["kind"]] = record
        yield record


def _until_start(records: Iterator[Record]) -> Iterator[Record]:
    for record in records:
        yield record
        if record["kind"] == "start":
            return


def _connect(
    folder: Path, mode: str, config: dict[str, Any], group: str | None, job: str, alive: Alive
) -> wandb.Run:
    """Open the folder's W&B run; as long as the trainer lives, a dead server is asked again."""
    label = read_label(folder)
    asked = label["settings"]
    in_sweep = "WANDB_SWEEP_ID" in os.environ  # then the agent chooses the id
    while True:
        try:
            run = wandb.init(
                project=asked["project"],
                entity=asked["entity"],
                tags=asked["tags"],
                id=None if in_sweep else label["id"],
                resume="allow",
                name=folder.name,
                group=group,
                job_type=job,
                config=config,
                dir=str(folder),
                mode=cast(Literal["online", "offline"], mode),
                settings=wandb.Settings(
                    init_timeout=asked["timeout_s"],
                    silent=True,
                    console="off",
                    disable_git=True,  # else uncommitted changes are sent as a patch
                    x_disable_stats=not alive(),
                ),
            )
        except Exception as error:  # wandb raises many kinds, none of which may end the mirror
            print(_line(error), flush=True)
            wandb.teardown()
            if not alive():
                raise ConnectionError("W&B could not be reached") from error
            time.sleep(RETRY_S)
        else:
            _note(folder, id=run.id, mode=mode, url=None if run.offline else run.url)
            return run


def _note(folder: Path, **facts: Any) -> None:
    label = read_label(folder) | facts
    write_atomic(folder / LABEL, json.dumps(label, indent=1).encode())


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())


def _outcome(folder: Path, status: str, alive: Alive) -> dict[str, Any]:
    """Return the outcome that belongs to an end record; the trainer may still be drawing it up."""
    path, deadline = folder / "outcome.json", time.monotonic() + OUTCOME_S
    while True:
        outcome = json.loads(path.read_bytes()) if path.exists() else {}
        fits = outcome.get("status") == status
        drawn = all((folder / name).exists() for name in IMAGES)
        if (fits and drawn) or not alive() or time.monotonic() > deadline:
            return outcome if fits else {}
        time.sleep(POLL_S)


def _mirror_comparison(folder: Path, mode: str, alive: Alive) -> None:
    content = (folder / "comparison.json").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if read_label(folder).get("sent") == [mode, digest]:
        print(f"nothing new in {folder.name}", flush=True)
        return
    run = _connect(folder, mode, {}, folder.name, "compare", alive)
    table = comparison_table(json.loads(content))
    media: dict[str, Medium] = {"comparison": partial(_table, table)}
    if (page := folder / "comparison.html").exists():
        media["report"] = lambda: wandb.Html(page.read_text(encoding="utf-8"), inject=False)
    _log_media(run, run.starting_step, media | _images(folder, sorted(folder.glob("*.png"))))
    _finish(run, folder, 0)
    _note(folder, sent=[mode, digest])


def _log_media(run: wandb.Run, step: int, media: Mapping[str, Medium]) -> None:
    """Log all as one row; one that W&B refuses costs none of the others."""
    for name, make in media.items():
        try:
            run.log({name: make()}, step=step)
        except Exception as error:  # wandb raises many kinds
            print(f"{name} was not sent: {_line(error)}", flush=True)


def _images(folder: Path, paths: Iterable[Path]) -> dict[str, Medium]:
    if not read_label(folder)["settings"]["log_images"]:
        return {}
    return {path.stem: partial(wandb.Image, str(path)) for path in paths if path.exists()}


def _table(table: Table) -> wandb.Table:
    return wandb.Table(columns=[*table.columns], data=[[*line] for line in table.lines])


def _finish(run: wandb.Run, folder: Path, exit_code: int) -> None:
    """End the run, and drop earlier local logs of it, all of which has now been written again."""
    current = Path(run.dir).parent
    signal.alarm(FINISH_S)
    run.finish(exit_code=exit_code)
    signal.alarm(0)
    for log in folder.glob(f"wandb/*run-*-{run.id}*"):  # W&B adds "-1" where two begin in a second
        if log.resolve() != current.resolve():
            shutil.rmtree(log, ignore_errors=True)
    print(f"mirrored {folder.name}: {current if run.offline else run.url}", flush=True)


@contextmanager
def _turn(folder: Path, alive: Alive) -> Generator[None]:
    """Wait for an earlier mirror of the folder to end; two at once would send rows twice."""
    while True:
        try:
            with folder_lock(folder, LOCK):
                yield
                return
        except InUseError:
            if not alive():
                raise
        time.sleep(POLL_S)
