"""Sinusoids of random amplitude and phase: the regression problem of the first MAML paper."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from metarun.data.regression import Family, RegressionSource


def sinusoid(root: Path, *, test_grid: bool) -> RegressionSource:
    """Give regression tasks y = A sin(x - p), A in [0.1, 5], p in [0, pi], x in [-5, 5].

    Finn et al., 2017, section 5.1. With `test_grid` test queries lie evenly over the whole range,
    as in Zintgraf et al., 2019, rather than at random. Nothing is read from `root`.
    """
    family = Family("sinusoid", sine, ((0.1, 5.0), (0.0, math.pi)))
    return RegressionSource((family,), 0.0, False, test_grid, torch.device("cpu"))


def sine(x: Tensor, amplitude: Tensor, phase: Tensor) -> Tensor:
    """Return A sin(x - p)."""
    return (x - phase).sin_().mul_(amplitude)
