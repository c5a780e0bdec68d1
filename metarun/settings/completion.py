"""What TAB offers that Hydra does not know: verbs, and after one the folders below the outputs."""

from __future__ import annotations

from metarun.paths import outputs_root
from metarun.settings.help import VERBS

FOLDER = ("DIR", "RUN")  # as the usage of a verb that takes one begins
FOLDERS = ("DIR...", "RUN...")
SETTINGS = "[key"


def completed(line: str) -> tuple[list[str], str | None]:
    """Return what may follow a typed line, and the line that Hydra has more for, if it has."""
    program, *words = line.split() or [""]
    if not words or line[-1].isspace():
        words.append("")
    verb, *arguments = words
    if not arguments:
        return [name for name in VERBS if name.startswith(verb)], line
    if verb not in VERBS:
        return [], line
    takes = VERBS[verb][0]
    if takes.startswith(SETTINGS):
        return [], " ".join([program, *arguments])
    if takes.startswith(FOLDER if len(arguments) == 1 else FOLDERS):
        return _folders(arguments[-1]), None
    return [], None


def _folders(typed: str) -> list[str]:
    above, slash, name = typed.rpartition("/")
    places = (outputs_root() / above).glob("*") if not typed.startswith("/") else ()
    names = sorted(place.name for place in places if place.is_dir())
    return [f"{above}{slash}{n}" for n in names if n.startswith(name) and n[0] != "."]
