"""What a run has seen: nothing is tested on classes that its training or validation was of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from metarun import checkpoint
from metarun.config import Part, check
from metarun.data.folder import located
from metarun.data.mixture import KNOWN, class_names
from metarun.data.source import Source, Split
from metarun.errors import ConfigError, DataError, MetarunError
from metarun.settings import yamlfile

IMAGES = ("path", "sources")  # settings that name the user's images, which may change
CHANGED = "(images, or the version of pillow that reads them)"
MOST_RUNS = 5  # that a warning lists


def refuse_seen(
    whose: str, run: Path, trained: Part, dataset: Part, source: Source, root: Path
) -> None:
    """Refuse a test of what the best checkpoint of a run was trained or chosen on.

    `trained` is the data set of then, `dataset` that of now and `source` what it gives. Two that
    share no images are not looked into: those of training may be gone.

    Raises:
        ConfigError: some of its training or validation classes are among the test's.
        DataError: the images of then have changed or cannot be had, so that nobody can tell.
    """
    if not _places(trained, root) & _places(dataset, root):
        return
    alike = trained.factory is dataset.factory and trained.values == dataset.values
    try:
        before: Source = source if alike else trained.factory(root, **trained.values)
    except (ConfigError, DataError) as error:
        raise DataError(f"{whose}: what it was trained on cannot be told; {error}") from error
    changed = [split for split in _changed(run, before.fingerprint) if split != "test"]
    if changed and _is_own(trained):
        raise DataError(
            f"{whose}: its data set has changed since, in {', '.join(changed)} {CHANGED}, and the "
            "test may hold what was trained on; put back what was there, train again, or name "
            "other data (dataset)"
        )
    seen = class_names(before, "train") | class_names(before, "validation")
    if again := sorted(class_names(source, "test") & seen):
        raise ConfigError(
            f"dataset: of this test split's classes, {len(again)} ({again[0][1]!r} first) are of "
            f"the training or validation of {whose}; split the data as there"
        )


def notice_of_change(runs: Iterable[Path], root: Path) -> str | None:
    """Return a line where the user's images are no longer what some of the finished runs saw.

    Images that are gone are not taken for others, and nothing is said of them.
    """
    now: dict[str, Mapping[Split, str]] = {}
    found: list[str] = []
    for run in runs:
        with suppress(MetarunError):
            dataset = check(yamlfile.of_run(run)).parts["dataset"]
            if not _is_own(dataset):
                continue
            if (data := repr(dataset)) not in now:
                now[data] = dataset.factory(root, **dataset.values).fingerprint
            if _changed(run, now[data]):
                found.append(run.name)
    if not found:
        return None
    more = f" and {len(found) - MOST_RUNS} more" if len(found) > MOST_RUNS else ""
    return (
        f"dataset: has changed since {', '.join(found[:MOST_RUNS])}{more} ended {CHANGED}, and the "
        "result is of the data of then; another name (name=NAME) runs it on that of now"
    )


def _changed(run: Path, now: Mapping[Split, str]) -> list[Split]:
    """Return the splits that differ from those of a run's best checkpoint, as far as it tells."""
    known = checkpoint.load(checkpoint.best(run))[1].get("data") or {}
    return [split for split, own in now.items() if known.get(split, own) != own]


def _is_own(dataset: Part) -> bool:
    return bool(_named(dataset) - set(KNOWN))


def _named(dataset: Part) -> set[str]:
    """Return the words by which settings name images: those of metarun's own, and folders."""
    found = (dataset.values.get(key, []) for key in IMAGES)
    return {str(word) for some in found for word in (some if isinstance(some, list) else [some])}


def _places(dataset: Part, root: Path) -> set[str]:
    """Return where a data set's images are from, as far as its settings tell."""
    found = {w if w in KNOWN else str(located(root, w) or w) for w in _named(dataset)}
    return found or {dataset.factory.__name__}
