"""Signatures as schemas: which values pass, what is said of those that do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import ConfigDict, Field

from metarun.errors import ConfigError
from metarun.nearest import did_you_mean, shown
from metarun.settings.schema import check_signature, checked, converted, describe, parameters

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Device = Annotated[str, Field(pattern=r"^(cpu|cuda)$")]


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, Count, 3),
        (1, Rate, 1.0),
        (0.5, Rate, 0.5),
        (None, Rate | None, None),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, 0.5], list[Rate], [1.0, 0.5]),
        ("adam", Literal["adam", "sgd"], "adam"),
        ("auto", Count | Literal["auto"], "auto"),
        (True, bool, True),
        ("a/b", Path, Path("a/b")),
        ({"a": 1}, dict[str, int], {"a": 1}),
        ("anything", Any, "anything"),
    ],
)
def test_accepts(value: Any, annotation: Any, expected: Any) -> None:
    found = converted("key", value, annotation)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "said"),
    [
        ("0.1", Rate, 'key: "0.1" is not allowed; must be a number above 0'),
        (True, Count, "key: true is not allowed; must be a whole number of at least 1"),
        (True, Rate, "key: true is not allowed; must be a number above 0"),
        (1.0, Count, "key: 1.0 is not allowed; must be a whole number of at least 1"),
        ("0..3", Count, "(several are a sweep: -m 'key=range(0,4)'); must be a whole number of"),
        ("3-0", Count, 'key: "3-0" is not allowed; must be a whole number of at least 1'),
        ("0-3", Rate, 'key: "0-3" is not allowed; must be a number above 0'),
        (1.5, int, "key: 1.5 is not allowed; must be a whole number"),
        (float("inf"), Rate, "key: Infinity is not allowed; must be a number above 0"),
        (float("nan"), Rate, "key: NaN is not allowed; must be a number above 0"),
        (10**400, Rate, "is not allowed; must be a number above 0"),
        (1, bool, "key: 1 is not allowed; must be true or false"),
        (1, str, "key: 1 is not allowed; must be text"),
        (None, Count, "key: null is not allowed; must be a whole number of at least 1"),
        ([0], list[Rate], "key: [0] is not allowed; must be a list, each a number above 0"),
        ([], Annotated[list[Rate], Field(min_length=1)], "a list of at least 1, each a number abo"),
        ("adm", Literal["adam", "sgd"], "(did you mean adam?); must be one of adam, sgd"),
        ("gpu", Device, "must be text like (cpu|cuda)"),
        (0, Count | Literal["auto"], "must be a whole number of at least 1 or auto"),
        (2, Annotated[float, Field(ge=0, lt=1)], "must be a number of at least 0 and below 1"),
        ({"a": "b"}, dict[str, int], "must be a mapping, each value a whole number"),
        ("x\ny" * 100, int, 'key: "x\\nyx\\ny'),
    ],
)
def test_refuses(value: Any, annotation: Any, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        converted("key", value, annotation)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200


def factory(root: Path, /, runtime: int, *, rate: Rate, steps: Count = 3) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Section:
    rate: Rate
    name: str | None


@dataclass(frozen=True, kw_only=True)
class Other:
    __pydantic_config__ = ConfigDict(extra="forbid")
    pairs: Count


class Maker:
    def __init__(self, runtime: int, *, rate: Rate) -> None: ...


def test_only_keywords_are_settings() -> None:
    assert list(parameters(factory)) == ["rate", "steps"]
    assert [p.required for p in parameters(factory).values()] == [True, False]
    assert list(parameters(Section)) == ["rate", "name"]
    assert describe(parameters(Section)["name"].annotation) == "text or null"
    assert describe(parameters(Maker)["rate"].annotation) == "a number above 0"


def test_sections_of_settings() -> None:
    taken = parameters(factory)
    assert checked("algo", "algo=x", {"rate": 1}, taken) == {"rate": 1.0}
    with pytest.raises(ConfigError, match=r"^algo.rat: no such setting \(did you mean rate\?\); "):
        checked("algo", "algo=x", {"rat": 1}, taken)
    with pytest.raises(ConfigError, match=r"^algo.rate: missing; algo=x needs it, a number above"):
        checked("algo", "algo=x", {}, taken)
    with pytest.raises(ConfigError, match="algo=x takes no settings"):
        checked("algo", "algo=x", {"rate": 1}, {})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"rate": 0, "name": "x"}, r"^key.rate: 0 is not allowed; must be a number above 0$"),
        ({"pairs": "two"}, r"^key.pairs: \"two\" is not allowed; must be a whole number of at lea"),
        ({"rate": 1}, r"^key.name: missing; key needs it, text or null$"),
        ({"pairs": 1, "pears": 1}, r"^key.pears: no such setting \(did you mean pairs\?\); key ta"),
        ({"else": 1}, r"^key: {.*} is not allowed; must be one of a, b or {rate: "),
        ({}, r"^key: {} is not allowed; must be one of a, b or {rate: "),
    ],
)
def test_a_mistake_within_a_mapping_is_named_by_its_own_key(value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        converted("key", value, Literal["a", "b"] | Section | Other)


def test_nearest() -> None:
    assert did_you_mean("MAML", ["maml", "anil"]) == " (did you mean maml?)"
    assert did_you_mean("zzz", ["maml", "anil"]) == ""
    assert len(shown("y" * 1000)) < 70


def by_keyword(problem: Any, *, lr: float, rest: list[str]) -> None: ...
def by_position(problem: Any, lr: float, *, steps: int) -> None: ...
def by_any_name(problem: Any, *, lr: float, **more: Any) -> None: ...
def of_nothing(*, lr: float) -> None: ...
def misspelt(problem: Any, *, lr: Raet) -> None: ...  # noqa: F821 # pyright: ignore
def of_a_type(problem: Any, *, lr: CanaryError) -> None: ...


class CanaryError:
    """What no setting can be."""


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (by_position, r"^key takes lr otherwise .*; write each .*\(problem, \*, setting: float\)$"),
        (by_any_name, r"^key takes \*\*more otherwise than by keyword only; write each setting"),
        (of_nothing, r"^key takes 0 arguments by position; must take problem, and each"),
        (misspelt, r"annotation .* checked by: name 'Raet' is not defined; use int, float"),
        (of_a_type, r"schema for <class '.*CanaryError'>; use int, float"),
    ],
)
def test_a_factory_of_ones_own_is_called_as_the_others(factory: Any, said: str) -> None:
    check_signature("key", by_keyword, ("problem",))
    with pytest.raises(ConfigError, match=said):
        check_signature("key", factory, ("problem",))
