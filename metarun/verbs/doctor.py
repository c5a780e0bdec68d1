"""`metarun doctor`: what is installed, which devices and data there are, what a run would lack."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from metarun import console
from metarun.data.fetch import data_root
from metarun.errors import ConfigError, StorageError
from metarun.files import cache_root, prepare_folder
from metarun.paths import conf_dir, outputs_root
from metarun.report.words import counted

State = Literal["ok", "warn", "fail"]
PACKAGES = (
    "torch",
    "hydra-core",
    "omegaconf",
    "pydantic",
    "wandb",
    "rich",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "pillow",
    "safetensors",
    "pooch",
)
EXTRAS = {
    "hydra-joblib-launcher": "launch=local",
    "hydra-submitit-launcher": "launch=slurm",
    "hydra-ray-launcher": "launch=ray",
    "hydra-optuna-sweeper": "search=optuna",
}
LICENCES = {
    "omniglot": "MIT (Lake, Salakhutdinov and Tenenbaum, 2015)",
    "glyphs": "DejaVu fonts licence (Bitstream Vera and Arev), shipped with matplotlib",
}


class Row(NamedTuple):
    """One thing looked at."""

    name: str
    state: State
    detail: str


def main(argv: list[str]) -> int:
    """Print what a run would find here; return 0, or 1 when one could not start."""
    if argv:
        raise ConfigError(f"doctor: takes no words, and was given {argv[0]}")
    tables = {
        "Installed": installed(),
        "Devices": devices(),
        "Data": datasets(),
        "Places": places(),
    }
    for caption, rows in tables.items():
        console.say(console.check_table(caption, rows))
    return int(any(row.state == "fail" for rows in tables.values() for row in rows))


def installed() -> list[Row]:
    """Look at Python, the packages that are needed and those that would add something."""
    version = platform.python_version()
    rows = [Row("python", "ok" if sys.version_info >= (3, 11) else "fail", version)]
    for name in PACKAGES:
        found = _version(name)
        rows.append(Row(name, "ok" if found else "fail", found or "missing; install metarun again"))
    for name, use in EXTRAS.items():
        found = _version(name)
        rows.append(Row(name, "ok" if found else "warn", found or f"not installed; for {use}"))
    return rows


def devices() -> list[Row]:
    """Look at processors, what makes the most of them, and GPUs."""
    import torch

    from metarun.hardware import refuse_unusable, sees_gpu
    from metarun.kernels.build import why_not

    threads, why = counted(torch.get_num_threads(), "thread"), why_not()
    rows = [
        Row("cpu", "ok", f"{counted(os.cpu_count(), 'core')}, {threads}"),
        Row("kernels", "warn" if why else "ok", f"{why}; vmap instead" if why else "built"),
    ]
    there, why = sees_gpu()
    if not there:
        said = f"torch {torch.__version__} sees no GPU{why and f': {why}'}"
        return [*rows, Row("cuda", "warn", said)]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        name = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
        found = Row(f"cuda:{index}", "ok", name)
        try:
            refuse_unusable(torch.device("cuda", index))
        except (ConfigError, RuntimeError) as error:
            found = found._replace(state="warn", detail=f"{name}; {str(error).splitlines()[0]}")
        rows.append(found)
    return rows


def datasets() -> list[Row]:
    """Look at every data set, its licence and, where it has any, its files."""
    from metarun.data import omniglot

    rows = [Row("glyphs", "ok", f"rendered here; {LICENCES['glyphs']}")]
    rows += [Row(name, "ok", "generated") for name in ("sinusoid", "multimodal")]
    rows.append(Row("mixture", "ok", "glyphs, omniglot and folders, as each is found"))
    rows.append(Row("folder", "ok", "your own images, at dataset.path"))
    folder = data_root() / "omniglot"
    for part in omniglot.PARTS:
        archive = folder / f"{part.name}.zip"
        if archive.is_file():
            known = hashlib.md5(archive.read_bytes()).hexdigest() == part.md5
            source = "as published" if known else "not the published file; judged by what it holds"
            rows.append(Row("omniglot", "ok", f"{archive.name}: {source}; {LICENCES['omniglot']}"))
        elif (folder / part.name).is_dir():
            rows.append(Row("omniglot", "ok", f"{part.name}, unpacked; {LICENCES['omniglot']}"))
        else:
            missing = f"{archive.name} is not in {folder}; downloaded when first used"
            rows.append(Row("omniglot", "warn", missing))
    return rows


def places() -> list[Row]:
    """Look at the folders that are read and written."""
    rows = [Row("configuration", "ok", str(conf_dir())), Row("data", "ok", str(data_root()))]
    rows.append(_writable("cache", cache_root(), "XDG_CACHE_HOME"))
    rows.append(_writable("outputs", outputs_root(), "METARUN_OUTPUTS"))
    return rows


def _writable(name: str, folder: Path, variable: str) -> Row:
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        prepare_folder(folder)
    except StorageError as error:
        refused = getattr(error.__cause__, "strerror", None) or "cannot be written"
        return Row(name, "fail", f"{folder}: {refused}; set {variable} to another folder")
    free = shutil.disk_usage(folder).free / 2**30
    for place in made:
        place.rmdir()
    return Row(name, "ok", f"{folder}, {free:.0f} GiB free")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
