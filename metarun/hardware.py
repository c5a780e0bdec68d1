"""Where a run computes: device, precision, threads, and how many tasks at once."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from metarun import console
from metarun.errors import ConfigError
from metarun.kernels.build import FAILED, why_not
from metarun.numerics.chunks import out_of_memory
from metarun.numerics.parallel import Workers
from metarun.precision import Precision, tensor_float

Batching = Literal["auto", "loop", "vmap", "batched", "tune"]
Way = Literal["loop", "vmap", "batched"]
Compile = Literal["auto"] | bool

CACHED_NUMBERS = 256_000
MOST_AT_ONCE = 128
WORTH_A_THREAD = 4096  # numbers a task, below which Python's own work would fill the threads
KEPT_BY_ALLOCATOR = {-3: 1 << 25, -1: (1 << 31) - 1}  # M_MMAP_THRESHOLD at its most, M_TRIM_...


@dataclass(frozen=True, slots=True)
class Hardware:
    """A resolved choice; `describe` goes into every outcome."""

    device: torch.device
    dtype: torch.dtype
    batching: Batching  # as asked for
    chunk: int | None  # tasks at once, as asked for
    cores: int  # of the CPU, to be used by each process
    processes: int = 1  # that share out a meta-step's tasks; see `sharing`
    compile: Compile = False  # as asked for: one graph of the meta-step
    precision: Precision = "full"  # of the query's products
    way: Way = "vmap"  # how a batch of tasks is run; see `running`
    graph: bool = False  # whether the meta-step is to be one; see `running`
    reason: str = ""

    @property
    def applicable(self) -> tuple[Way, ...]:
        """Return the ways that a model may be run in, given whether it runs by kernels."""
        return ("loop", "vmap", "batched") if self.way == "batched" else ("loop", "vmap")

    def sharing(self, asked: Mapping[str, Any], batch: int, unshared: str | None) -> Hardware:
        """Decide how many processes share out a batch of tasks, and the cores of each.

        `asked` are the settings that this was resolved from; where they leave the number open,
        what is `unshared`, for that reason, is computed by one process.

        Raises:
            ConfigError: several are asked for, and the work cannot be shared.
        """
        processes = min(self.processes, batch)
        if processes > 1 and unshared:
            if asked.get("processes") is not None:
                raise ConfigError(
                    f"hardware.processes: {processes} cannot share this run's work: {unshared}; "
                    "use hardware.processes=1"
                )
            _warn(f"hardware.processes: {unshared}; running in one process")
            processes = 1
        cores, there = self.cores, len(os.sched_getaffinity(0))
        if asked.get("threads") is None:
            cores = max(1, cores // processes)
        elif processes > 1 and cores * processes > there:
            _warn(f"hardware.threads: {cores} in each of {processes} processes, on {there} cores")
        torch.set_num_threads(cores)
        return replace(self, processes=processes, cores=cores)

    def running(self, blocks: int, pays: bool = False) -> Hardware:
        """Decide the way for a model of which so many blocks have kernels; a rule, not a race.

        Whether a graph `pays` decides about one where all is left open.

        Raises:
            ConfigError: `batched` was asked for and there is nothing to run so.
        """
        left_open = pays and self.batching == "auto" and self.processes == 1
        found = replace(self, graph=left_open if self.compile == "auto" else self.compile)
        without = found._without_kernels(blocks)
        if self.batching == "batched" and without:
            raise ConfigError(f"hardware.batching=batched: {without}; use hardware.batching=auto")
        if self.batching in ("loop", "vmap"):
            way: Way = "loop" if self.batching == "loop" else "vmap"
            return replace(found, way=way, reason="asked for")
        if without:
            if without.startswith(FAILED):
                _warn(f"hardware.batching: {without}; running by vmap")
            return replace(found, way="vmap", reason=without)
        if self.device.type != "cpu" and self.batching == "auto":
            return replace(found, way="vmap", reason="batched was not measured on a GPU")
        return replace(found, way="batched", reason=f"kernels for {blocks} blocks")

    def _without_kernels(self, blocks: int) -> str:
        """Return why there are no kernels for this device and model, or nothing."""
        on_cpu = self.device.type == "cpu"
        if self.graph and on_cpu:  # whose tracer does not see what a kernel writes
            return "a compiled graph is of torch's own operations"
        if not blocks:
            return "the kernels are for conv4 with batch normalisation and (leaky) ReLU"
        return why_not() if on_cpu else ""  # elsewhere they are products of matrices by torch

    def workers(self) -> Workers:
        """Return threads that run chunks of tasks side by side, each on one core."""
        return Workers(self.cores if self.way != "loop" and self.device.type == "cpu" else 1)

    def tasks_at_once(self, numbers: int, batch: int) -> int:
        """Return how many of a batch's tasks run together, each with so many numbers as inputs.

        More tasks at once save calls, until what they compute leaves a CPU's cache: measured on
        Conv-4 and perceptrons, at some 256,000 numbers.
        """
        if self.way == "loop":
            return 1
        if self.chunk is not None:
            return self.chunk
        if self.device.type != "cpu":
            return MOST_AT_ONCE
        together = max(1, min(MOST_AT_ONCE, CACHED_NUMBERS // numbers))
        if numbers < WORTH_A_THREAD:
            return together
        return min(together, -(-batch // self.cores))

    def describe(self) -> dict[str, Any]:
        """Return what a reader needs to judge timings and repeat bits."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {
            "device": str(self.device),
            "name": name,
            "threads": self.cores,
            "processes": self.processes,
            "dtype": str(self.dtype).removeprefix("torch."),
            "batching": self.way,
            "precision": self.precision,
        }


def hardware(
    *,
    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    ],
    dtype: Literal["float32", "float64"],
    precision: Precision,
    threads: Annotated[int, Field(ge=1)] | None,
    batching: Batching,
    chunk: Annotated[int, Field(ge=1)] | None,
    compile: Compile,
    processes: Annotated[int, Field(ge=1)] | None = 1,
) -> Hardware:
    """Resolve the choices on this machine.

    How tasks are run is decided when there is a model; see `Hardware.running` and `sharing`.

    Raises:
        ConfigError: the device is not there or cannot be used, or there are too few of its kind
            for so many processes.
    """
    there, why = sees_gpu() if device != "cpu" else (False, "")
    if device.startswith("cuda") and not there:
        raise ConfigError(
            f"hardware.device: {device} was asked for and torch {torch.__version__} sees no GPU"
            f"{why and f' ({why})'}; use hardware.device=cpu or auto"
        )
    if device == "auto":
        device = "cuda" if there else "cpu"
        if why and not there:
            _warn(f"hardware.device: torch sees no GPU ({why}); running on the CPU")
    found = torch.device(device)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"hardware.device: {device} was asked for and there are "
            f"{torch.cuda.device_count()} GPUs, counted from cuda:0"
        )
    processes = _processes(processes, found)
    refuse_unusable(found)
    _check_precision(precision, dtype, found)
    tensor_float("ieee")
    cores, there = threads or _cores(), len(os.sched_getaffinity(0))
    if threads and threads > there:
        _warn(f"hardware.threads: {threads} on {there} cores; more than these only wait in turn")
    torch.set_num_threads(cores)
    keep_freed_memory()
    return Hardware(
        device=found,
        dtype=torch.float32 if dtype == "float32" else torch.float64,
        batching=batching,
        chunk=chunk,
        cores=cores,
        compile=compile,
        precision=precision,
        processes=processes,
    )


def sees_gpu() -> tuple[bool, str]:
    """Tell whether torch sees a GPU, and what it says of one that it cannot use, in one line."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    return there, str(said[0].message).splitlines()[0] if said else ""


def refuse_unusable(device: torch.device) -> None:
    """Refuse a GPU that torch sees and cannot compute on: too new or too old, taken or broken.

    Raises:
        ConfigError: it cannot.
    """
    if device.type != "cuda":
        return
    try:
        _compute_on(device)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise ConfigError(
            f"hardware.device: {device} cannot be used by torch {torch.__version__}: "
            f"{str(error).splitlines()[0]}; use hardware.device=cpu, another GPU, or a torch that "
            "is built for it"
        ) from error


def _compute_on(device: torch.device) -> float:
    if str(device) != device.type:  # what is not told a device takes no part of another GPU
        torch.cuda.set_device(device)
    return torch.ones((), device=device).add(1).item()


def _processes(asked: int | None, device: torch.device) -> int:
    """Return how many processes there are to be: one a GPU, or as many as were asked for."""
    if device.type == "cpu":  # whose cores threads fill as well
        return asked or 1
    if str(device) != device.type:  # one of several is named
        if asked is not None and asked > 1:
            raise ConfigError(
                f"hardware.processes: {asked} need a GPU each, and hardware.device={device} is "
                "one; use hardware.device=cuda"
            )
        return 1
    there = torch.cuda.device_count()
    if asked is not None and asked > there:
        raise ConfigError(
            f"hardware.processes: {asked} need a GPU each, and there are {there}; use "
            f"hardware.processes={there} or null"
        )
    return asked or there


def _cores() -> int:
    """Return how many threads OpenMP is told to take, or else how many cores there are."""
    outermost = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    told = int(outermost) if outermost.isdecimal() else 0
    return told or len(os.sched_getaffinity(0))


@cache
def _warn(text: str) -> None:
    """Warn once a process, however many experiments it makes."""
    console.warn(text)


def _check_precision(precision: Precision, dtype: str, device: torch.device) -> None:
    if precision != "full" and dtype != "float32":
        raise ConfigError(
            f"hardware.precision: {precision} rounds what is float32, and hardware.dtype={dtype}; "
            "use hardware.precision=full"
        )
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(
            f"hardware.precision: tf32 is of NVIDIA GPUs, and the device is {device}; "
            "use hardware.precision=bf16 or full"
        )


def keep_freed_memory() -> None:
    """Have the C library keep large freed blocks for the next tensor instead of returning them.

    It is otherwise asked for fresh, zeroed pages at every large tensor, which costs a good part of
    a meta-step. Where the library is not glibc, nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in KEPT_BY_ALLOCATOR.items():
            mallopt(parameter, value)
