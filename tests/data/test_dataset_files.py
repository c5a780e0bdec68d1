"""The YAML file of each data set says everything that its factory asks, and suits it."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import OmegaConf

FILES = sorted((Path(__file__).parents[2] / "conf" / "dataset").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_keys_are_the_factorys_and_the_defaults_suit_it(
    file: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache))
    assert file.read_text().startswith("# @package _global_\n")
    loaded = OmegaConf.to_container(OmegaConf.load(file))
    keys = dict(loaded["dataset"])
    module, _, name = keys.pop("_target_").rpartition(".")
    assert module.rpartition(".")[2] == name == file.stem
    factory = getattr(import_module(module), name)
    asked = inspect.signature(factory).parameters.values()
    assert [p.name for p in asked if p.kind is p.KEYWORD_ONLY] == list(keys)
    assert all(p.default is p.empty for p in asked)
    always = {"inner_lr", "steps", "long_inner_lr", "long_steps", "outer_lr"}
    assert always <= set(loaded["suggest"]) <= always | {"first_order_lr"}
    assert loaded["validation"]["steps"] <= loaded["test"]["steps"]
    if "path" in keys or name in ("omniglot", "mixture"):
        return
    source = factory(Path(), **keys)
    task = loaded["task"]
    for queries in (task["queries"], task["test_queries"]):
        source.check(ways=task["ways"], shots=task["shots"], queries=queries)
    assert loaded["outer"]["batch"] % len(source.modes) == 0
