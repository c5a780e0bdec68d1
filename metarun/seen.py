"""What a run has seen: nothing is tested on classes that its training or validation was of."""

from __future__ import annotations

from pathlib import Path

from metarun import checkpoint
from metarun.config import Part
from metarun.data.folder import located
from metarun.data.mixture import KNOWN, class_names
from metarun.data.source import Source
from metarun.errors import ConfigError, DataError

IMAGES = ("path", "sources")  # settings that name the user's images, which may change


def refuse_seen(
    whose: str, best: Path, trained: Part, dataset: Part, source: Source, root: Path
) -> None:
    """Refuse a test of what the checkpoint `best` was trained or chosen on.

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
    known = checkpoint.load(best)[1].get("data") or {}
    own = [(split, before.fingerprint.get(split)) for split in ("train", "validation")]
    changed = [split for split, digest in own if known.get(split, digest) != digest]
    if changed and any(key in trained.values for key in IMAGES):
        raise DataError(
            f"{whose}: its data set has changed since, in {', '.join(changed)} (images, or the "
            "version of pillow that reads them), and the test may hold what was trained on; put "
            "back what was there, train again, or name other data (dataset)"
        )
    seen = class_names(before, "train") | class_names(before, "validation")
    if again := sorted(class_names(source, "test") & seen):
        raise ConfigError(
            f"dataset: of this test split's classes, {len(again)} ({again[0][1]!r} first) are of "
            f"the training or validation of {whose}; split the data as there"
        )


def _places(dataset: Part, root: Path) -> set[str]:
    """Return where a data set's images are from, as far as its settings tell."""
    found: set[str] = set()
    for key in IMAGES:
        named = dataset.values.get(key, [])
        words = map(str, named if isinstance(named, list) else [named])
        found |= {w if w in KNOWN else str(located(root, w) or w) for w in words}
    return found or {dataset.factory.__name__}
