"""Compile the C kernels at first use; where that cannot be, torch does the work."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.files import code_cache, is_own, waiting_lock


class Sources(NamedTuple):
    """What a library is built from."""

    compiled: tuple[str, ...]
    included: tuple[str, ...] = ()


LAYERS = Sources(
    ("norm.c", "conv.c", "first.c"),
    ("norm_body.h", "conv_body.h", "first_frame.h", "first_moments.h", "first_body.h"),
)
DRAWS = Sources(("draws.c",))
# No -ffast-math: a NaN must stay one. Sums keep the order in which they are written.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
BUILDING = "building-"  # as the folder of a build begins
FAILED = "the kernels could not be built"  # although there is a compiler
CPUINFO = Path("/proc/cpuinfo")
CPU_FIELDS = ("model name", "flags", "CPU implementer", "CPU part", "Features")  # x86, then ARM
_TYPES = {torch.float32: "float", torch.float64: "double"}


def why_not() -> str:
    """Return why there are no kernels on this machine; nothing where there are."""
    return _load(LAYERS)[1]


def library(sources: Sources) -> ctypes.CDLL | None:
    """Return a library, built if need be; None where it cannot be."""
    return _load(sources)[0]


@cache
def _load(sources: Sources) -> tuple[ctypes.CDLL | None, str]:
    compiler = _compiler()
    if compiler is None:
        return None, "there is no C compiler for the kernels"
    try:
        return _library(compiler, sources), ""
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{FAILED} ({_said(error)})"


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def call(
    name: str,
    arrays: Sequence[Tensor | int | None],
    shape: Sequence[int],
    *numbers: float,
) -> None:
    """Call a kernel for the type of its arrays: arrays and counts, a shape, further numbers."""
    kernels, why = _load(LAYERS)
    assert kernels is not None, why
    first = arrays[0]
    assert isinstance(first, Tensor)
    given = [
        ctypes.c_int64(a)
        if isinstance(a, int)
        else ctypes.c_void_p(None if a is None else a.data_ptr())
        for a in arrays
    ]
    size = (ctypes.c_int64 * len(shape))(*shape)
    rest = [ctypes.c_int(n) if isinstance(n, int) else ctypes.c_double(n) for n in numbers]
    failed = getattr(kernels, f"{name}_{_TYPES[first.dtype]}")(*given, size, *rest)
    if failed:
        raise torch.OutOfMemoryError(f"no memory for the scratch space of {name}")


def processor() -> str:
    """Return what tells processors apart, shortened: a cache may be shared by several machines."""
    try:
        lines = CPUINFO.read_text(errors="replace").splitlines()
        facts = {line for line in lines if line.startswith(CPU_FIELDS)}  # cores may be of two kinds
    except OSError:
        facts = {platform.processor()}
    text = "\n".join([platform.machine(), *sorted(facts)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _library(compiler: str, sources: Sources) -> ctypes.CDLL:
    """Return the library for these sources, this compiler and this processor; build it once."""
    here = Path(__file__).parent
    text = b"".join((here / name).read_bytes() for name in sources.compiled + sources.included)
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    key = hashlib.sha256(b"\0".join((text, version, repr(FLAGS).encode(), processor().encode())))
    path = code_cache() / "kernels" / f"{key.hexdigest()[:16]}.so"
    if found := _loaded(path):
        return found
    path.parent.mkdir(exist_ok=True)
    with waiting_lock(path.parent / ".lock") as alone:
        if alone:
            for left in path.parent.glob(f"{BUILDING}*"):  # by a process that was stopped here
                shutil.rmtree(left, ignore_errors=True)
        if found := _loaded(path):  # whom this one waited for has built it
            return found
        _build(compiler, [str(here / name) for name in sources.compiled], path)
        return ctypes.CDLL(str(path))


def _loaded(path: Path) -> ctypes.CDLL | None:
    if is_own(path) and _whole(path):
        with suppress(OSError):  # such as one of a machine with a newer C library
            return ctypes.CDLL(str(path))
    return None


def _build(compiler: str, sources: Sequence[str], path: Path) -> None:
    with TemporaryDirectory(prefix=BUILDING, dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [compiler, *FLAGS, "-o", str(built), *sources, "-lm"]
        subprocess.run(command, capture_output=True, check=True, timeout=120)
        built.chmod(0o700)  # whatever the umask: what others may write is not loaded
        with built.open("r+b") as file:
            file.write(hashlib.file_digest(file, "sha256").digest())  # behind what a loader reads
            file.flush()
            os.fsync(file.fileno())
        built.replace(path)  # whole or not at all, whoever else builds it now


def _whole(path: Path) -> bool:
    """Tell whether a library ends with its own digest: to load a part of one kills the process."""
    content = path.read_bytes()
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _said(error: OSError | subprocess.SubprocessError) -> str:
    """Return one line on a failure: the compiler's own, where it had something to say."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{error.cmd[0]} took more than {error.timeout:.0f} s"
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error).splitlines()[0]
    said = filter(str.strip, error.stderr.decode(errors="replace").splitlines())
    lines = [f"{error.cmd[0]} ended with status {error.returncode}", *said]
    # The last line may be a caret, or that there is no more to come.
    return next((line for line in lines if "error: " in line), lines[-1]).strip()
