"""Where torch's compiler keeps what it builds: in the user's own cache, and whole.

Torch does not see that a library was cut short, with its job or its machine: whatever run finds it
fails to compile, or is killed by reading it. So a build leaves a mark while it lasts. Where there
is one that nobody holds, all is built anew.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from metarun.files import code_cache

FOLDER = "TORCHINDUCTOR_CACHE_DIR"  # the variable that names it
MARK = ".building-"


@contextmanager
def building() -> Generator[None]:
    """Choose the folder, unless the user named another, and mark it while something is built."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    own = code_cache() / "inductor"
    # Torch names a folder on its import, below /tmp, where whoever comes first could put code.
    if os.environ.get(FOLDER) not in (None, default_cache_dir(), str(own)):
        yield
        return
    os.environ[FOLDER] = str(own)
    with suppress(OSError):
        _discard_cut_short(own)
    with _marked(own):
        yield


def _discard_cut_short(own: Path) -> None:
    marks = list(own.glob(f"{MARK}*"))
    if marks and not any(map(_is_held, marks)):
        aside = own.with_name(f"{own.name}-{secrets.token_hex(4)}")
        own.rename(aside)  # at once: others may look for their libraries now
        shutil.rmtree(aside, ignore_errors=True)


def _is_held(mark: Path) -> bool:
    """Tell whether who made a mark still builds; where that cannot be known, so it is taken."""
    with mark.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@contextmanager
def _marked(own: Path) -> Generator[None]:
    mark, file = own / f".new-{secrets.token_hex(4)}", None
    try:
        with suppress(OSError):  # no locks here, or no room: as torch alone would do
            own.mkdir(exist_ok=True)
            file = mark.open("xb")
            fcntl.flock(file, fcntl.LOCK_EX)
            mark = mark.rename(own / f"{MARK}{secrets.token_hex(4)}")  # to be seen when it is held
        yield
    finally:
        with suppress(OSError):
            mark.unlink()
        if file:
            file.close()
