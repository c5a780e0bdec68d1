"""Which tests may be skipped: a test that never runs anywhere holds nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
NAMED_DATA = os.environ.get("METARUN_DATA", "")
LISTED = {  # what they need that a Linux machine with the data may well lack
    "test_words_are_the_same_on_every_device": "a GPU",
    "test_a_real_file_system_that_is_full_or_read_only": "leave to mount",
    "test_what_belongs_to_another_is_not_loaded": "to be root",
    "test_a_link_of_another_user_is_not_followed": "to be root",
}


@cache
def shared_data() -> Path | None:
    """Return the root that holds the real Omniglot, where there is one."""
    for root in (REPOSITORY / NAMED_DATA if NAMED_DATA else None, REPOSITORY / "../shared/data"):
        if root and (root / "omniglot/images_background.zip").is_file():
            return root
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a skipped test fail, on Linux with the data at hand, unless it is listed."""
    report = yield
    unlisted = report.skipped and item.name.partition("[")[0] not in LISTED
    if unlisted and sys.platform == "linux" and shared_data():
        report.outcome = "failed"
        report.longrepr = f"not among those that may be skipped (tests/skips.py): {report.longrepr}"
    return report
