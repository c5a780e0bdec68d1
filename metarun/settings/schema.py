"""A factory's keyword-only parameters are the schema of its settings; values are checked here."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from metarun.errors import ConfigError
from metarun.nearest import did_you_mean, shown, unknown

WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
}
_KINDS = {
    "only positional": inspect.Parameter.POSITIONAL_ONLY,
    "positional": inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "rest": inspect.Parameter.VAR_POSITIONAL,
    "others": inspect.Parameter.VAR_KEYWORD,
}
BOUNDS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}


class Parameter(NamedTuple):
    """One setting that a factory takes."""

    annotation: Any
    required: bool


def parameters(factory: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the keyword-only parameters of a function or class, in the order it declares them."""
    of_init = inspect.isclass(factory) and not is_dataclass(factory)
    hints = get_type_hints(factory.__init__ if of_init else factory, include_extras=True)
    return {
        name: Parameter(hints.get(name, Any), parameter.default is parameter.empty)
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def check_signature(where: str, factory: Callable[..., Any], given: tuple[str, ...]) -> None:
    """Refuse a factory that metarun cannot call with `given` by position and settings by keyword.

    Raises:
        ConfigError: it takes other arguments, or an annotation is no type that can be checked.
    """
    taken = inspect.signature(factory).parameters.values()
    kinds = {name: [p for p in taken if p.kind is kind] for name, kind in _KINDS.items()}
    named = [*kinds["only positional"], *kinds["positional"]]
    if len(named) < len(given) and not kinds["rest"]:
        raise ConfigError(
            f"{where} takes {len(named)} arguments by position; must take {', '.join(given)}, and "
            "each setting after a * in its signature"
        )
    loose = [p.name for p in named[len(given) :]] + [f"**{p.name}" for p in kinds["others"]]
    if loose:
        raise ConfigError(
            f"{where} takes {', '.join(loose)} otherwise than by keyword only; write each setting "
            f"after a *, as in ({', '.join((*given, '*', 'setting: float'))})"
        )
    try:
        for parameter in parameters(factory).values():
            TypeAdapter[Any](parameter.annotation)
    except (NameError, PydanticUserError) as error:
        raise ConfigError(
            f"{where} has an annotation that no setting can be checked by: "
            f"{str(error).partition('. ')[0]}; use int, float, bool, str, Literal, lists of these, "
            "Annotated with pydantic's Field, or no annotation"
        ) from None


def checked(
    where: str, owner: str, values: Mapping[str, Any], taken: Mapping[str, Parameter]
) -> dict[str, Any]:
    """Return the values in the types that the parameters have.

    `where` is the key that holds the values and `owner` what takes them ("algo=maml").

    Raises:
        ConfigError: a setting is unknown, missing, of another type or out of range.
    """
    for name in values:
        if name not in taken:
            raise ConfigError(unknown(where, str(name), owner, taken))
    for name, parameter in taken.items():
        if parameter.required and name not in values:
            needed = describe(parameter.annotation)
            raise ConfigError(f"{where}.{name}: missing; {owner} needs it, {needed}")
    return {n: converted(f"{where}.{n}", v, taken[n].annotation) for n, v in values.items()}


def converted(key: str, value: Any, annotation: Any) -> Any:
    """Return a value as its annotation has it; whole numbers pass for real ones, nothing else does.

    Raises:
        ConfigError: it is of another type, or out of range.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        return adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError:
        _refuse_within(key, value, annotation)
        near = did_you_mean(str(value), [str(choice) for choice in _choices(annotation)])
        near = near or _range(key, value, annotation)
        raise ConfigError(
            f"{key}: {shown(value)} is not allowed{near}; must be {describe(annotation)}"
        ) from None


def _range(key: str, value: Any, annotation: Any) -> str:
    """Tell who writes 0..3 for a whole number how a sweep goes over several."""
    found = re.fullmatch(r"(\d+)(?:\.\.|-|:)(\d+)", str(value))
    if found is None or not describe(annotation).startswith(WORDS[int]):
        return ""
    first, last = int(found[1]), int(found[2])
    return f" (several are a sweep: -m '{key}=range({first},{last + 1})')" if first < last else ""


def _refuse_within(key: str, value: Any, annotation: Any) -> None:
    """Raise ConfigError for a mistake within a mapping whose keys tell what it is meant for."""
    if not isinstance(value, Mapping):
        return
    for meant in (annotation, *get_args(annotation)):
        if is_dataclass(meant) and isinstance(meant, type):
            taken = parameters(meant)
            if value and next(iter(value)) in taken:
                checked(key, key, value, taken)


def describe(annotation: Any) -> str:
    """Say in words which values an annotation allows."""
    if annotation is None or annotation is type(None):
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _with_bounds(describe(arguments[0]), arguments[1:])
    if origin is Literal:
        named = [str(a) for a in arguments]
        return named[0] if len(named) == 1 else f"one of {', '.join(named)}"
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin in (list, tuple):
        return f"a list, each {describe(arguments[0])}"
    if origin is dict:
        return f"a mapping, each value {describe(arguments[1])}"
    if hasattr(annotation, "__dataclass_fields__"):
        within = parameters(annotation).items()
        return "{" + ", ".join(f"{name}: {describe(p.annotation)}" for name, p in within) + "}"
    return WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _with_bounds(text: str, constraints: Iterable[Any]) -> str:
    found = [c for field in constraints for c in getattr(field, "metadata", [field])]
    for words in (getattr(field, "description", None) for field in constraints):
        if words:
            return words
    for constraint in found:
        if pattern := getattr(constraint, "pattern", None):
            return f"{text} like {pattern.removeprefix('^').removesuffix('$')}"
    for constraint in found:
        if least := getattr(constraint, "min_length", None):
            return text.replace("a list", f"a list of at least {least}", 1)
    bounds = [
        f"{words} {getattr(constraint, name)}"
        for name, words in BOUNDS.items()
        for constraint in found
        if hasattr(constraint, name)
    ]
    return " ".join([text, " and ".join(bounds)]).strip()


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _choices(part)]
