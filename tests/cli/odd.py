"""An algorithm that does to its process what it is told, for sweeps with failing jobs."""

from __future__ import annotations

import os
import signal
import time
from typing import Literal

from metarun.algorithms.base import MetaAlgorithm, adapting, plain_learner, shared_params
from metarun.errors import ConfigError
from metarun.gradients.estimators import estimate
from metarun.inner import gradient_descent
from metarun.problem import Problem


def odd(
    problem: Problem,
    *,
    how: Literal[
        *("a", "b", "c", "d", "e", "f", "g"),
        *("bug", "refuse", "diverge", "kill", "stop", "wait"),
    ],
) -> MetaAlgorithm:
    """Be first-order MAML, or fail in the named way while the run is being built."""
    if how == "bug":
        raise RuntimeError("as asked for")
    if how == "refuse":  # as what needs the data or the model to be seen
        raise ConfigError("algo.how=refuse: as asked for")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
    if how == "wait":
        time.sleep(60)
    rate = 1e30 if how == "diverge" else 0.001 * (1 + "abcdefg".find(how))
    learner = plain_learner(problem, gradient_descent(rate))
    meta_grad = estimate("first_order", problem, learner, 1)
    return MetaAlgorithm(shared_params, adapting(learner), meta_grad, exact=False)
