"""An algorithm that does to its process what it is told, for sweeps with failing jobs."""

from __future__ import annotations

import os
import signal
import time
from typing import Literal

from metarun.algorithms.base import MetaAlgorithm
from metarun.algorithms.maml import maml
from metarun.problem import Problem


def odd(
    problem: Problem,
    *,
    how: Literal["a", "b", "c", "d", "e", "f", "g", "bug", "diverge", "kill", "stop", "wait"],
) -> MetaAlgorithm:
    """Be MAML, or fail in the named way while the run is being built."""
    if how == "bug":
        raise RuntimeError("as asked for")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
    if how == "wait":
        time.sleep(60)
    rate = 1e30 if how == "diverge" else 0.001 * (1 + "abcdefg".find(how))
    return maml(problem, inner_lr=rate, steps=1, estimator="first_order")
