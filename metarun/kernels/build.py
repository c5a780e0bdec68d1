"""Compile the C kernels at first use; where that cannot be, torch does the work."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from metarun.files import cache_root

COMPILED = ("norm.c", "conv.c", "first.c")
INCLUDED = ("norm_body.h", "conv_body.h", "first_frame.h", "first_moments.h", "first_body.h")
# No -ffast-math: a NaN must stay one. Sums keep the order in which they are written.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
CPUINFO = Path("/proc/cpuinfo")
CPU_FIELDS = ("model name", "flags", "CPU implementer", "CPU part", "Features")  # x86, then ARM
_TYPES = {torch.float32: "float", torch.float64: "double"}


def why_not() -> str:
    """Return why there are no kernels on this machine; nothing where there are."""
    return _load()[1]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None, "there is no C compiler for the kernels"
    try:
        return ctypes.CDLL(str(_compiled(compiler))), ""
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"the kernels could not be built ({str(error).splitlines()[0]})"


def call(
    name: str,
    arrays: Sequence[Tensor | int | None],
    shape: Sequence[int],
    *numbers: float,
) -> None:
    """Call a kernel for the type of its arrays: arrays and counts, a shape, further numbers."""
    kernels, why = _load()
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


def _compiled(compiler: str) -> Path:
    """Return the library for these sources, this compiler and this processor; build it once."""
    here = Path(__file__).parent
    text = b"".join((here / name).read_bytes() for name in COMPILED + INCLUDED)
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    key = hashlib.sha256(b"\0".join((text, version, repr(FLAGS).encode(), processor().encode())))
    path = cache_root() / "kernels" / f"{key.hexdigest()[:16]}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        sources = [str(here / name) for name in COMPILED]
        command = [compiler, *FLAGS, "-o", str(built), *sources, "-lm"]
        subprocess.run(command, capture_output=True, check=True, timeout=120)
        built.replace(path)  # whole or not at all, whoever else builds it now
    return path
