"""A helper: a process that computes its share of every meta-step's tasks, and nothing else.

What it reads and answers is told in crew.py, which starts it.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from metarun.assemble import assemble
from metarun.config import check
from metarun.data.fetch import data_root
from metarun.engine.ahead import Ahead
from metarun.engine.board import Board, as_groups
from metarun.engine.tuning import run_by
from metarun.errors import MetarunError
from metarun.gradients.metagradient import MetaGradient
from metarun.hardware import Way
from metarun.numerics.chunks import in_chunks, map_meta, memory_told
from metarun.numerics.parallel import Workers
from metarun.problem import Meta
from metarun.tasks import Tasks


def main(link: int, told: int, answers: int) -> None:
    """Be a helper: make ready what the first words describe, then answer until the run ends.

    A failure is the last answer: an error that the user can act on, or else a traceback.
    """
    words, meta, board = Connection(link), Board(told), Board(answers)
    with suppress(EOFError, OSError):  # the run has ended
        try:
            with memory_told():
                share = Share(**words.recv())
                words.send(None)
                while True:
                    step, chunk, layout = words.recv()
                    found, fitted = share.meta_gradient(meta.read(layout), step, chunk)
                    words.send((fitted, board.write(as_groups(found))))
        except MetarunError as error:
            words.send(error)
        except (EOFError, ConnectionError):
            return
        except Exception:
            words.send(traceback.format_exc())


class Share:
    """Always the same part of a meta-step's tasks, and what is computed from it."""

    def __init__(
        self, config: Mapping[str, Any], way: Way, chunk: int, workers: int, share: slice
    ) -> None:
        experiment = assemble(check(config), data_root())
        self.experiment = replace(run_by(experiment, way, chunk), workers=Workers(workers))
        self.share, self.ahead = share, Ahead(experiment)

    def meta_gradient(self, meta: Meta, step: int, chunk: int) -> tuple[MetaGradient, int]:
        """Compute the share's mean meta-gradient; return the chunk that fitted as well."""
        meta_grad = self.experiment.algorithm.meta_grad
        assert meta_grad is not None
        there = map_meta(lambda value: value.to(self.experiment.hardware.device), meta)
        workers = self.experiment.workers
        return in_chunks(meta_grad, there, self._tasks(step), step, chunk, workers)

    def _tasks(self, step: int) -> Tasks:
        """Return the share's tasks: cut out where many meta-steps' are drawn, or drawn alone."""
        if self.ahead.steps > 1:
            return self.ahead.batch(step)[self.share]
        first = step * self.experiment.outer.batch
        count = self.share.stop - self.share.start
        return self.experiment.tasks("train", first + self.share.start, count)
