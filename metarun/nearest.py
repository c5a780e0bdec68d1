"""Words for a user who mistyped: what was meant, what there is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

LONGEST_VALUE = 60  # characters of a refused value that are repeated to the user


def unknown(where: str, name: str, owner: str, known: Iterable[str]) -> str:
    """Say that a setting does not exist, which is nearest and which there are."""
    names = [str(k) for k in known]
    key = f"{where}.{name}" if where else name
    takes = f"{owner} takes {', '.join(names) if names else 'no settings'}"
    return f"{key}: no such setting{did_you_mean(name, names)}; {takes}"


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the nearest option, or nothing when none is near."""
    near = get_close_matches(word.lower(), list(options), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def shown(value: Any) -> str:
    """Return a value as it would stand in YAML, on one line and not too long of it."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
