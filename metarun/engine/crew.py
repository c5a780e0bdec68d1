"""One run on several processes: the tasks of each meta-step are shared out, and the shares summed.

The run's own process stays what it is: it alone writes, validates and moves the meta-parameters.
Its helpers (helper.py) hold the same experiment, each on a GPU of its own where there are some.
Told the meta-parameters and the number of a meta-step, each draws its share of the tasks and
answers with their mean meta-gradient. Numbers go through memory that two processes map, words
through a socket, on GPUs as on CPUs: so what is tested is what runs, and no death is waited for.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from metarun.assemble import Experiment
from metarun.engine.board import Board, as_found, memory
from metarun.errors import LostError, MetarunError
from metarun.gradients.metagradient import MetaGradient
from metarun.numerics.chunks import in_chunks, joined, map_meta
from metarun.problem import Meta
from metarun.signals import REQUESTS, nothing_to_save
from metarun.tasks import Tasks

LAUNCH = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from metarun.lifeline import die_with_parent; die_with_parent(int(sys.argv[2])); "
    "from metarun.engine.helper import main; main(*map(int, sys.argv[3:]))"
)
ENDING_S = 10.0  # for a process whose socket is closed already


class Crew:
    """The run's own process and its helpers, who compute one meta-gradient together."""

    def __init__(self, experiment: Experiment, told: Board, helpers: list[Helper]) -> None:
        self.experiment, self.told, self.helpers = experiment, told, helpers

    def meta_gradient(
        self, meta: Meta, tasks: Tasks, step: int, chunk: int
    ) -> tuple[MetaGradient, int]:
        """Do as `in_chunks` does, with the tasks shared out; sums go in the tasks' order.

        Raises:
            MemoryExhaustedError: one task alone does not fit, in any of the processes.
            LostError: a helper died.
        """
        meta_grad, workers = self.experiment.algorithm.meta_grad, self.experiment.workers
        assert meta_grad is not None
        layout = self.told.write(meta)
        for helper in self.helpers:
            helper.tell((step, chunk, layout))
        own = tasks[share_of(0, len(self.helpers) + 1, len(tasks))]
        found = [in_chunks(meta_grad, meta, own, step, chunk, workers)]
        found += [helper.share(tasks.mode.device) for helper in self.helpers]
        halved = [size for part, size in found if size < min(chunk, len(part.losses))]
        return joined((part for part, _ in found), len(tasks)), min([chunk, len(tasks), *halved])


@contextmanager
def crew(experiment: Experiment, config: Mapping[str, Any]) -> Generator[Crew | None]:
    """Start the helpers that the hardware asks for, if any; they end with the block.

    The experiment was assembled from the resolved configuration, and how it runs is settled.

    Raises:
        MetarunError: what a helper says when it cannot be made ready; LostError: it died.
    """
    count = experiment.hardware.processes
    if count == 1:
        yield None
        return
    with ExitStack() as ends:
        with nothing_to_save():  # nobody looks at the flag in these seconds
            told = Board(ends.enter_context(memory()))
            helpers = [
                ends.enter_context(_started(number, experiment, config, told))
                for number in range(1, count)
            ]
            for helper in helpers:
                helper.answer()  # that it is ready
        yield Crew(experiment, told, helpers)


def share_of(number: int, count: int, tasks: int) -> slice:
    """Return which of so many tasks a process computes; shares differ by one task at most."""
    return slice(tasks * number // count, tasks * (number + 1) // count)


class Helper(NamedTuple):
    """A helper, as the run's process sees it."""

    name: str
    process: subprocess.Popen[bytes]
    link: Connection
    board: Board  # of its answers
    said: IO[bytes]  # its standard error

    def tell(self, words: object) -> None:
        """Send it words."""
        try:
            self.link.send(words)
        except OSError as error:
            raise self._lost() from error

    def answer(self) -> Any:
        """Wait for its words; what failed there fails here."""
        try:
            found = self.link.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if isinstance(found, MetarunError):
            raise type(found)(f"in {self.name}: {found}")
        if isinstance(found, str):
            raise RuntimeError(f"in {self.name}:\n{found}")
        return found

    def share(self, device: torch.device) -> tuple[MetaGradient, int]:
        """Wait for its share of a meta-gradient, and the chunk that fitted."""
        fitted, layout = self.answer()
        return as_found(map_meta(lambda value: value.to(device), self.board.read(layout))), fitted

    def _lost(self) -> LostError:
        code = self.process.wait(ENDING_S)
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += ", as the kernel does where memory is short"
        self.said.seek(0)
        *_, last = ["", *self.said.read().decode(errors="replace").split("\n")[:-1]]
        return LostError(
            f"hardware.processes: {self.name} {how}{last and f' ({last})'}; the same command goes "
            "on from the last checkpoint"
        )


@contextmanager
def _started(
    number: int, experiment: Experiment, config: Mapping[str, Any], told: Board
) -> Generator[Helper]:
    """Start a helper, which need not be ready yet; the end kills it, for it has nothing to lose."""
    hardware, count = experiment.hardware, experiment.hardware.processes
    device = f"cuda:{number}" if hardware.device.type == "cuda" else "cpu"
    own = {"device": device, "threads": hardware.cores, "processes": 1, "compile": False}
    order = {
        "config": {**config, "hardware": {**config["hardware"], **own}},
        "way": hardware.way,
        "chunk": experiment.tasks_at_once(),
        "workers": experiment.workers.count,
        "share": share_of(number, count, experiment.outer.batch),
    }
    with ExitStack() as ends:
        said = ends.enter_context(tempfile.TemporaryFile())
        board = Board(ends.enter_context(memory()))
        here, there = socket.socketpair()
        link = ends.enter_context(Connection(here.detach()))
        with there:
            given = (there.fileno(), told.descriptor, board.descriptor)
            words = map(str, (Path(__file__).parents[2], os.getpid(), *given))
            # A mask is inherited: requests to stop are for the run, which ends its helpers.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
            try:
                process = subprocess.Popen(
                    [sys.executable, "-c", LAUNCH, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    pass_fds=given,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        ends.enter_context(process)
        ends.callback(process.kill)
        name = f"process {number + 1} of {count} ({device})"
        helper = Helper(name, process, link, board, said)
        helper.tell(order)
        yield helper
