"""Every option of every group composes, passes the checks and names a factory that exists."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from metarun.algorithms.parts.rates import Transform
from metarun.config import SUGGESTED, check, compose_job
from metarun.errors import ConfigError
from metarun.paths import run_name
from metarun.settings.compose import compose, parse, resolved
from metarun.settings.sections import Outer

CONF = Path(__file__).parents[2] / "conf"
NEEDS = {"folder": ["dataset.path=somewhere"]}
EXTRAS = {
    "slurm": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
    "optuna": "hydra_plugins.hydra_optuna_sweeper",
    "local": "hydra_plugins.hydra_joblib_launcher",
}
OPTIONS = [
    (group.name, option.stem)
    for group in sorted(CONF.iterdir())
    if group.is_dir() and group.name != "hydra"
    for option in sorted(group.glob("*.yaml"))
]


def missing_extra(option: str) -> bool:
    try:
        return option in EXTRAS and importlib.util.find_spec(EXTRAS[option]) is None
    except ModuleNotFoundError:
        return True


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids="=".join)
def test_option(group: str, option: str) -> None:
    words = [f"{group}={option}", *NEEDS.get(option, [])]
    if missing_extra(option):
        with pytest.raises(ConfigError, match=rf"pip install 'metarun\[{option}\]'"):
            compose(parse(words))
        return
    checked = check(resolved(compose(parse(words)).config))
    assert checked.choices[group] == option
    if group in checked.parts:
        assert checked.parts[group].name == option


@pytest.mark.parametrize("dataset", [o for g, o in OPTIONS if g == "dataset"])
@pytest.mark.parametrize("algo", [o for g, o in OPTIONS if g == "algo"])
def test_every_algorithm_goes_with_every_dataset(algo: str, dataset: str) -> None:
    check(compose_job([f"algo={algo}", f"dataset={dataset}", *NEEDS.get(dataset, [])]))


@pytest.mark.parametrize("debug", [o for g, o in OPTIONS if g == "debug"])
@pytest.mark.parametrize("algo", [o for g, o in OPTIONS if g == "algo"])
def test_debugging_goes_with_every_algorithm(algo: str, debug: str) -> None:
    check(compose_job([f"algo={algo}", f"debug={debug}"]))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [o for g, o in OPTIONS if g == "experiment"])
@pytest.mark.parametrize("algo", [o for g, o in OPTIONS if g == "algo"])
def test_every_algorithm_goes_with_every_experiment(algo: str, experiment: str) -> None:
    config = compose_job([f"algo={algo}", f"experiment={experiment}"])
    starts, batch = config["algo"].get("starts", 0), config["outer"]["batch"]
    if starts <= batch:  # of which the long inner loops have few
        check(config)


def test_the_command_line_wins_over_all() -> None:
    plain = compose_job(["dataset=omniglot", "debug=default", "outer.batch=9", "suggest.steps=4"])
    assert (plain["outer"]["batch"], plain["algo"]["steps"]) == (9, 4)
    assert plain["algo"]["inner_lr"] == plain["suggest"]["inner_lr"] == 2.0
    own = compose_job(["algo=reptile", "experiment=omniglot_5w1s", "outer.lr=0.5"])
    assert (own["outer"]["lr"], own["outer"]["schedule"]) == (0.5, "linear")


PLACES = [(group, option) for group, option in OPTIONS if group in ("dataset", "experiment")]


@pytest.mark.parametrize(("group", "option"), PLACES, ids=map("=".join, PLACES))
def test_an_outer_loop_that_an_algorithm_prescribes_is_its_own_everywhere(
    group: str, option: str
) -> None:
    """Wherever it is composed, Reptile interpolates and MAML++ anneals; others take advice."""

    words = [f"{group}={option}", *NEEDS.get(option, []), "suggest.outer_lr=0.3"]

    def outer(algo: str, schedule: str) -> tuple[str, float, str, float]:
        found = compose_job([f"algo={algo}", *words, f"suggest.outer_schedule={schedule}"])["outer"]
        return found["optimizer"], found["lr"], found["schedule"], found["lr_min"]

    assert outer("reptile", "cosine") == ("sgd", 1.0, "linear", 0.0)
    assert outer("mamlpp", "linear") == ("adam", 0.3, "cosine", 1e-5)
    assert outer("maml", "linear") == ("adam", 0.3, "linear", 0.0)


@pytest.mark.parametrize(
    ("place", "lr", "schedule"),
    [
        ("dataset=glyphs", 0.001, "constant"),
        ("dataset=omniglot", 0.001, "constant"),
        ("experiment=omniglot_5w1s", 0.002, "cosine"),
        ("experiment=omniglot_20w5s", 0.002, "cosine"),
        ("experiment=sinusoid", 0.001, "constant"),
        ("experiment=multimodal_regression", 0.002, "cosine"),
    ],
)
def test_what_is_suggested_for_the_outer_loop(place: str, lr: float, schedule: str) -> None:
    outer = compose_job([place])["outer"]
    assert (outer["optimizer"], outer["lr"], outer["schedule"]) == ("adam", lr, schedule)


def test_choices_are_recorded() -> None:
    plain = compose_job(["algo=fomaml", "dataset=sinusoid"])
    assert plain["choices"]["algo"] == "fomaml"
    assert plain["choices"]["model"] == "mlp"
    assert not [key for key in plain["choices"] if key.startswith("hydra")]
    assert run_name(plain).startswith("fomaml-sinusoid-")


@pytest.mark.parametrize(
    ("key", "value", "by", "users"),
    [
        ("lr_min", "1e-6", "schedule", {"linear", "cosine"}),
        ("momentum", "0.9", "optimizer", {"sgd", "rmsprop"}),
        ("eps", "0.1", "optimizer", {"adam", "adamw", "rmsprop"}),
        ("max_skips", "3", "on_divergence", {"skip_step", "drop_tasks"}),
    ],
)
def test_an_outer_setting_is_allowed_where_something_uses_it(
    key: str, value: str, by: str, users: set[str]
) -> None:
    """Its default is allowed everywhere."""
    for choice in get_args(get_type_hints(Outer)[by]):
        words = [f"outer.{by}={choice}"]
        check(compose_job(words))
        if choice in users:
            check(compose_job([*words, f"outer.{key}={value}"]))
        else:
            with pytest.raises(ConfigError, match=f"outer.{key}: .* does nothing with .*{choice}"):
                check(compose_job([*words, f"outer.{key}={value}"]))


def test_learned_rates_are_kept_as_the_data_suggest() -> None:
    assert get_args(SUGGESTED["transform"]) == get_args(Transform)
    for algo in ("metasgd", "mamlpp"):
        for place, transform in (("multimodal_regression", "exp"), ("sinusoid", "raw")):
            found = compose_job([f"experiment={place}", f"algo={algo}"])
            assert found["algo"]["transform"] == transform
