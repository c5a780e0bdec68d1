"""One run, from a checked configuration to its outcome; stopped anywhere, it goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metarun import console, manifest, tracking
from metarun.assemble import Experiment, assemble
from metarun.config import Checked, check
from metarun.data.fetch import data_root
from metarun.data.mixture import notices
from metarun.engine.batching import settle
from metarun.engine.cost import flops_of_training
from metarun.engine.crew import crew
from metarun.errors import ConfigError, DivergedError, MetarunError
from metarun.evaluate import SMALLER, Scores
from metarun.files import folder_lock, prepare_folder, write_atomic
from metarun.numerics.chunks import memory_told
from metarun.outcome import outcome, outcome_file, score_file, versions
from metarun.paths import config_digest, refuse_other_run
from metarun.records import Records, masked, merged, read
from metarun.report import plots
from metarun.report.statistics import collapsed
from metarun.report.words import several
from metarun.seen import notice_of_change
from metarun.settings import yamlfile
from metarun.signals import Stop, nothing_to_save, say_stopping, stop_requests
from metarun.state import State, Vault
from metarun.train import train, validated
from metarun.weights import random_head

DONE = "done"
TASKS_A_START = 10  # of a test, below which chance may leave starts out


def run_job(config: dict[str, Any], folder: Path) -> int:
    """Run, or go on with, or report as complete, the run of a configuration; return the exit code.

    Every failure that the user can act on is one line on standard error.
    """
    try:
        checked = check(config)
        with stop_requests(say_stopping) as stop:
            return _run(config, checked, folder, stop)
    except MetarunError as error:
        console.error(str(error))
        return error.exit_code


def _run(config: dict[str, Any], checked: Checked, folder: Path, stop: Stop) -> int:
    finished = manifest.outcome(folder)
    if finished is not None and finished["status"] == DONE:
        refuse_other_run(folder, yamlfile.of_run(folder), masked(config))
        console.say(f"already complete: {folder}")
        console.outcome(finished)
        with nothing_to_save():  # after the answer: it may have to read all images
            notice = notice_of_change([folder], data_root())
        if notice:
            console.warn(notice)
        return 0
    if (folder / manifest.NAME).exists():
        raise ConfigError(f"name: {folder} holds a sweep; choose another name")
    # Nobody looks at the flag while data and kernels are made ready, and there is nothing yet.
    with nothing_to_save(), memory_told():
        experiment = assemble(checked, data_root())
    stop.check()
    prepare_folder(folder)
    with folder_lock(folder):
        if (folder / "config.yaml").exists():
            refuse_other_run(folder, yamlfile.of_run(folder), masked(config))
        write_atomic(folder / "config.yaml", OmegaConf.to_yaml(masked(config)).encode())
        with Records(folder) as records:
            run = _Run(experiment, config, folder, records, stop)
            try:
                with memory_told():
                    return run.through(checked)
            except MetarunError as error:
                run.ended(error)
                raise


class _Run:
    """A run in progress: where training's words go, and the order of its parts."""

    def __init__(
        self,
        experiment: Experiment,
        config: Mapping[str, Any],
        folder: Path,
        records: Records,
        stop: Stop,
    ) -> None:
        self.experiment, self.config, self.folder = experiment, config, folder
        self.records, self.stop = records, stop
        self.vault = Vault(folder, config, experiment)
        self.state: State | None = None  # training moves it on in place
        self.show: console.Show | None = None
        self.last: dict[str, float] = {}

    def through(self, checked: Checked) -> int:
        """Train, choose on validation, test, and write the outcome."""
        experiment = self.experiment
        state, begun = self.vault.restore(), bool(read(self.folder))
        self.state = state
        self.records.write("resumed" if begun else "start", state.step, self._start())
        notice = tracking.start_mirror(self.folder, checked.tracking)
        if notice:
            console.say(notice)
        for line in notices(experiment.source):
            console.warn(f"dataset: {line}")
        if experiment.given and (left := random_head(experiment.given, experiment.problem.model)):
            said = f"not in {experiment.given.word}, or of another shape; random values instead"
            console.warn(f"weights: {' and '.join(left)}: {said}")
        _tell_short_test(experiment)
        first = experiment.initial()  # not where it stands: a run that goes on settles alike
        with nothing_to_save():  # tracing and building take long, and nobody looks at the flag
            experiment, batching = settle(experiment, first, state.chunk)
        if batching.short:
            state.chunk = batching.chunk
        self.stop.check()
        self.experiment = experiment
        self.records.write("batching", state.step, batching.describe())
        flops = flops_of_training(experiment, first)
        with (
            crew(experiment, self.config) as helpers,
            console.progress(self.folder.name, 1.0, "budget") as self.show,
        ):
            state = train(experiment, state, self, self.stop, flops, helpers)
        _tell_lost(state)
        _tell_warm_up(experiment, state)
        meta = self.vault.best() if experiment.algorithm.meta_grad else state.meta
        chosen, meta = validated(experiment, meta, self.stop, state.chunk)
        chosen.refuse_infinite()
        test = experiment.test
        scores = experiment.evaluate(meta, "test", test.tasks, test.steps, self.stop, state.chunk)
        state.meta = meta
        self.vault.save_best(state, {"steps": chosen.steps, **chosen.rates})
        found = outcome(experiment, self.config, self.folder.name, state, chosen, scores, flops)
        _tell_collapse(experiment, state, found["clusters"] or {})
        self.records.write("test", state.step, found["test"] | {"clusters": found["clusters"]})
        scores.refuse_infinite("test", chosen.steps)
        self._publish(found, scores)
        console.outcome(found)
        return 0

    def ended(self, error: MetarunError) -> None:
        """Write down how a run ended that did not end well, as far as storage allows."""
        figures = {"status": error.status, "exit_code": error.exit_code, "reason": str(error)}
        try:
            self.records.write("end", self.state.step if self.state else 0, figures)
            self.records.sync()
            choices = {key: self.config["choices"][key] for key in ("algo", "dataset", "model")}
            found = {**figures, "name": self.folder.name, **choices, "seed": self.experiment.seed}
            write_atomic(self.folder / "outcome.json", outcome_file(found))
        except MetarunError:
            return  # the first failure is the one to report

    def record(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Append to the records."""
        self.records.write(kind, step, figures)
        if kind == "validate":
            metric = next(iter(figures))
            self.last[f"validation {metric}"] = figures[metric]["mean"]

    def progress(self, done: float, figures: dict[str, float]) -> None:
        """Show how far training is."""
        if self.show is not None:
            shown = {"loss": figures["loss"], "tasks/s": figures["tasks_per_second"]}
            self.show(min(done, 1.0), shown | self.last)

    def save(self, state: State) -> None:
        """Write a checkpoint to go on from, records first."""
        self.records.sync()
        self.vault.save(state)

    def save_best(self, state: State) -> None:
        """Keep these meta-parameters as the best on validation."""
        self.vault.save_best(state)

    def _start(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "config_digest": config_digest(self.config),
            "versions": versions(),
            "hardware": self.experiment.hardware.describe()
            | {"chunk": self.experiment.tasks_at_once()},
        }

    def _publish(self, found: dict[str, Any], scores: Scores) -> None:
        write_atomic(self.folder / "scores.npz", score_file(scores))
        curve = found["test"][scores.metric]
        plots.adaptation(
            curve["by_step"],
            curve["ci95_by_step"],
            scores.metric,
            f"{found['algo']} on {found['dataset']}",
            self.folder / "adaptation.png",
        )
        plots.training(merged(read(self.folder)), scores.metric, self.folder / "training.png")
        end = {"status": DONE, "exit_code": 0}
        self.records.write("end", found["cost"]["meta_steps"], end)
        self.records.sync()
        write_atomic(self.folder / "outcome.json", outcome_file(found))


def _tell_short_test(experiment: Experiment) -> None:
    """Say that a test looks at fewer inner steps than training takes: the method is handicapped."""
    trained, tested = experiment.inner_steps or 0, experiment.test.steps
    if experiment.algorithm.batches == "tasks" and trained > tested:
        console.warn(
            f"algo.steps: training takes {trained} inner steps, and the test looks no further than "
            f"test.steps={tested}; validation.steps={trained} test.steps={trained} would"
        )


def _tell_warm_up(experiment: Experiment, state: State) -> None:
    """Say that training ended before several starts went their own ways."""
    warm_up = experiment.algorithm.warm_up
    if state.step < warm_up:
        console.warn(
            f"algo.warm_up: training ended at meta-step {state.step:,} of the {warm_up:,} before "
            "the starts are on their own; give fewer, or a larger budget"
        )


def _tell_collapse(experiment: Experiment, state: State, clusters: Mapping[str, Any]) -> None:
    """Say that several starts were trained, and nearly all tasks go to one."""
    usage = clusters.get("usage", [])
    many = experiment.test.tasks >= TASKS_A_START * len(usage)
    if many and collapsed(usage) and state.step >= experiment.algorithm.warm_up:
        values = experiment.parts["algo"].values
        keys = ["balance", "restart", *["balance_loss"] * (values.get("weights") == "gate")]
        there = several([f"algo.{key}" for key in keys if key in values])
        advice = f"; where they are of several modes, more of {there} may help" if there else ""
        console.warn(
            f"algo.starts: the test tasks use {clusters['effective']:.1f} of {len(usage)} starts"
            f"{advice}"
        )


def _tell_lost(state: State) -> None:
    """Say what training left out because it was not finite; all of it is no training."""
    if 0 < state.step == state.skipped:
        raise DivergedError(
            f"diverged: not one of {state.step} meta-steps was finite, so all were skipped; "
            f"{SMALLER}"
        )
    if state.skipped or state.dropped:
        console.warn(
            f"not finite in training: {state.skipped} of {state.step} meta-steps skipped, "
            f"{state.dropped} tasks dropped"
        )
