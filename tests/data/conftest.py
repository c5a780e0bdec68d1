"""Caches of a test's own, and the few data sets that are worth building once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from skips import shared_data

from metarun.data.glyphs import glyphs
from metarun.data.images import ImageSource


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of the test alone; no data set is anywhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("METARUN_DATA", raising=False)
    return tmp_path / "cache" / "metarun"


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for all test processes of this run."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-cache"


@pytest.fixture(scope="session")
def glyph_source(shared_cache: Path) -> ImageSource:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache))
        return glyphs(Path(), rotations="none")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The root that holds the real Omniglot; skips the test where there is none."""
    if root := shared_data():
        return root
    pytest.skip("real Omniglot is neither in METARUN_DATA nor in ../shared/data")
