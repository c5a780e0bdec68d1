"""What a reader needs to judge the figures: versions, the kind of machine, the allocator."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import metarun
from benchmarks.peers import installed, version_of
from metarun.hardware import KEPT_BY_ALLOCATOR

FAMILIES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")


def describe(threads: int, device: torch.device) -> dict[str, Any]:
    """Return versions and settings; no name of a machine."""
    peers, missing = installed()
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "metarun": version("metarun") if _is_installed() else "from its sources",
            **{name: version_of(module) for name, module in peers.items() if name != "plain loop"},
        },
        "missing_peers": missing,
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "architecture": platform.machine(),
            "system": platform.system(),
            "cores": len(os.sched_getaffinity(0)),
            "vendor": _cpu("vendor_id"),
            "flags": [flag for flag in FAMILIES if flag in (_cpu("flags") or "").split()],
            "mkl_and_onednn": [
                torch.backends.mkl.is_available(),
                torch.backends.mkldnn.is_available(),
            ],
        },
        "threads": threads,
        "float32": torch.backends.cudnn.conv.fp32_precision if device.type == "cuda" else None,
        "allocator": {
            "library": " ".join(platform.libc_ver()),
            "mallopt": {str(key): value for key, value in KEPT_BY_ALLOCATOR.items()},
            "environment": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
        },
        "openmp": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "KMP_"))},
    }


def _is_installed() -> bool:
    try:
        version("metarun")
    except Exception:
        return False
    return bool(metarun.__file__)


def _cpu(key: str) -> str | None:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return None
    lines = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), None)
