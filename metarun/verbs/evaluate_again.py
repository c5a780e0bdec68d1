"""`metarun evaluate RUN [overrides]`: test a finished run again, elsewhere or for longer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metarun import console, manifest
from metarun.assemble import assemble
from metarun.config import check, compose_job
from metarun.data.fetch import data_root
from metarun.engine.cost import flops_per_adaptation
from metarun.errors import ConfigError
from metarun.files import prepare_folder, write_atomic
from metarun.nearest import unknown
from metarun.outcome import outcome_file, score_file, task_list, versions
from metarun.paths import config_digest, find_folder, flat, named_folder
from metarun.records import masked
from metarun.report.clusters import families
from metarun.run import DONE
from metarun.seen import refuse_seen
from metarun.settings import yamlfile
from metarun.settings.compose import parse
from metarun.settings.help import usage
from metarun.settings.sections import GROUPS
from metarun.signals import say_stopping, stop_requests
from metarun.state import Vault
from metarun.train import summary
from metarun.weights import given, refuse_begun

ELSEWHERE = ("dataset", "task", "test", "hardware", "choices")  # what an evaluation may change


def main(argv: list[str]) -> int:
    """Evaluate a run's best checkpoint; write the folder evaluations/<digest> beside it.

    `metarun compare` reads that folder as it reads a run's.

    Raises:
        ConfigError: no such run, an override that changes what was trained, other shapes, or a
            split that tests classes of the run's training.
        DataError: the run's data set has changed, so that it may test what was trained on.
        CheckpointError: the run has no usable checkpoint.
        DivergedError: some task's score is not finite.
    """
    command = parse(argv)
    run, *words = command.overrides or [""]
    if not run or ("=" in run and named_folder(run) is None):
        raise ConfigError("evaluate: name a run folder first, as in metarun evaluate outputs/NAME")
    if command.sweep or command.shows:
        raise ConfigError(
            f"evaluate: tests once, without -m, --cfg and the like; {usage('evaluate')}"
        )
    folder = find_folder("evaluate", run)
    if not yamlfile.is_run(folder):
        raise ConfigError(f"evaluate: {folder} is not a run folder; a run folder holds config.yaml")
    trained = yamlfile.of_run(folder)
    finished = manifest.outcome(folder)
    if finished is None or finished["status"] != DONE:
        raise ConfigError(f"evaluate: {folder} is not finished; metarun resume {folder} goes on")
    config = with_overrides(trained, words, command.flags)
    for group in config:
        if group not in ELSEWHERE and config[group] != trained[group]:
            raise ConfigError(
                f"{group}: cannot be changed after training; evaluate takes dataset, task, test "
                "and hardware settings"
            )
    # What training began with may be gone, and stands for nothing here.
    alone = {**config, "weights": None, "hardware": {**config["hardware"], "processes": 1}}
    chosen, tested = finished.get("chosen", {}).get("steps"), config["test"]["steps"]
    if isinstance(tested, int) and tested > 0:
        if chosen is not None and tested < chosen:
            raise ConfigError(
                f"test.steps: {tested} is fewer than the {chosen} inner steps that validation "
                f"chose; must be at least {chosen}"
            )
        shorter = min(tested, config["validation"]["steps"])  # which has done its work
        alone["validation"] = {**config["validation"], "steps": shorter}
    experiment = assemble(check(alone), data_root())
    meta, here = Vault(folder, trained, experiment).best(), experiment.initial()
    for name, value in meta["params"].items():
        if here["params"][name].shape != value.shape:
            shapes = f"{[*here['params'][name].shape]}, there {[*value.shape]}"
            raise ConfigError(_other_shapes(f"{name} {shapes}", trained, config, folder))
    now = experiment.parts["dataset"], experiment.source, data_root()
    before = check({**alone, "dataset": trained["dataset"]}).parts["dataset"]
    refuse_seen(str(folder), folder, before, *now)
    if trained.get("weights") and trained["dataset"] != config["dataset"]:
        refuse_begun(given(trained["weights"]), *now)  # which may have seen what the run has not
    prepare_folder(folder)
    with stop_requests(say_stopping, then="begins again") as stop:
        test = experiment.test
        scores = experiment.evaluate(meta, "test", test.tasks, test.steps, stop)
    steps = test.steps if chosen is None else int(chosen)
    scores.refuse_infinite("test", steps)
    found = {
        **finished,
        "dataset": config["choices"]["dataset"],
        "shape": {
            "ways": experiment.task.ways,
            "shots": experiment.task.shots,
            "test_queries": experiment.task.test_queries,
        },
        "test": summary(scores, steps),
        "task_list": task_list(experiment),
        "cost": finished["cost"]
        | {"flops_per_adaptation": flops_per_adaptation(experiment, meta, steps)},
        "clusters": families(scores, experiment.source.modes, steps),
        "versions": versions(),
        "hardware": experiment.hardware.describe() | {"chunk": scores.at_once},
        "trained": {key: finished.get(key) for key in ("versions", "hardware")},
        "overrides": words,
    }
    place = folder / "evaluations" / config_digest(config)[:8]
    prepare_folder(place)
    write_atomic(place / "config.yaml", OmegaConf.to_yaml(masked(config)).encode())
    write_atomic(place / "scores.npz", score_file(scores))
    write_atomic(place / "outcome.json", outcome_file(found))
    console.outcome(found)
    console.say(f"written: {place}")
    return 0


def with_overrides(
    config: dict[str, Any], overrides: list[str], flags: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the configuration with `key=value` and `group=option` words applied to it.

    Options are looked for where `flags` say, too: `--config-dir`.

    Raises:
        ConfigError: a word is not of that form, or names a setting that does not exist.
    """
    changed = OmegaConf.create(config)
    # As on a command line, the order does not matter: a group comes before its settings.
    for word in sorted(overrides, key=lambda word: word.partition("=")[0] not in GROUPS):
        key, equals, value = word.partition("=")
        if not equals or key[:1] in "+~":
            raise ConfigError(f"{word}: not an override; write key=value")
        if key in GROUPS:  # with its settings: some have no default
            own = [other for other in overrides if other.startswith(f"{key}.")]
            changed[key] = compose_job([*flags, word, *own])[key]
            changed["choices"][key] = value
        elif OmegaConf.select(changed, key, default=changed) is changed:
            raise ConfigError(_no_such_setting(key, changed))
        else:
            changed.merge_with_dotlist([word])
    return OmegaConf.to_container(changed)  # pyright: ignore[reportReturnType]


def _other_shapes(what: str, trained: dict[str, Any], config: dict[str, Any], folder: Path) -> str:
    """Say which settings gave the model other inputs or outputs, and what they were in training."""
    there, here = ({"dataset": c["choices"]["dataset"]} | flat(c) for c in (trained, config))
    same = there["dataset"] == here["dataset"]
    keys = ["dataset", "task.ways", *(k for k in here if same and k.startswith("dataset."))]
    changed = [key for key in keys if here[key] != there[key]]
    said, kept = (" ".join(f"{key}={c[key]}" for key in changed) for c in (here, there))
    return f"{said}: other shapes ({what}) than {folder} was trained with; must be {kept}"


def _no_such_setting(key: str, config: DictConfig) -> str:
    place, _, name = key.rpartition(".")
    known = OmegaConf.select(config, place) if place else None
    if isinstance(known, DictConfig):
        return unknown(place, name, place, [str(k) for k in known if k != "_target_"])
    settable = [group for group in ELSEWHERE if group != "choices"]
    return unknown("", key.partition(".")[0], "evaluate", settable)
