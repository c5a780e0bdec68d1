"""Curves of several forms under one roof: where one initialisation has to serve them all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from metarun.data.regression import Family, RegressionSource
from metarun.data.sinusoid import sine


def multimodal(
    root: Path,
    *,
    family: Literal["mmaml2", "mmaml3", "mmaml5", "hsml4"],
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)],
    test_noise: bool,
    test_grid: bool,
) -> RegressionSource:
    """Give regression tasks of several modes, in turn: task i has mode i modulo their number.

    `mmaml2`, `mmaml3`, `mmaml5`: Vuorio et al., 2019, whose targets carry noise of 0.3 everywhere;
    `hsml4`: Yao et al., 2019, who add none and draw the mode at random. `test_noise` leaves it on
    test queries too, which adds noise**2 to every error. Nothing is read from `root`.
    """
    families = HSML if family == "hsml4" else MMAML[: int(family.removeprefix("mmaml"))]
    return RegressionSource(families, noise, test_noise, test_grid, torch.device("cpu"))


def line(x: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Return a straight line."""
    return slope * x + offset


def parabola(x: Tensor, width: Tensor, sign: Tensor, centre: Tensor, offset: Tensor) -> Tensor:
    """Return +-a (x - c)^2 + b, upside down where `sign` is negative."""
    return torch.sign(sign) * width * (x - centre) ** 2 + offset


def transition(x: Tensor, slope: Tensor, centre: Tensor, offset: Tensor) -> Tensor:
    """Return s tanh(x - c) + b."""
    return slope * torch.tanh(x - centre) + offset


def kink(x: Tensor, slope: Tensor, centre: Tensor, offset: Tensor) -> Tensor:
    """Return s |x - c| + b."""
    return slope * (x - centre).abs() + offset


def raised_sine(x: Tensor, amplitude: Tensor, frequency: Tensor, offset: Tensor) -> Tensor:
    """Return A sin(w x) + b: what the paper calls a phase is added outside the sine."""
    return amplitude * torch.sin(frequency * x) + offset


def polynomial(x: Tensor, *coefficients: Tensor) -> Tensor:
    """Return a polynomial, highest power first (Horner's scheme)."""
    y = torch.zeros_like(x)
    for coefficient in coefficients:
        y = y * x + coefficient
    return y


THREE = (-3.0, 3.0)
MMAML = (
    Family("sinusoid", sine, ((0.1, 5.0), (0.0, math.pi))),
    Family("linear", line, (THREE, THREE)),
    Family("quadratic", parabola, ((0.02, 0.15), (-1.0, 1.0), THREE, THREE)),
    Family("tanh", transition, (THREE, THREE, THREE)),
    Family("absolute", kink, (THREE, THREE, THREE)),
)
HSML = (
    Family("sinusoid", raised_sine, ((0.1, 5.0), (0.8, 1.2), (0.0, 2 * math.pi))),
    Family("linear", polynomial, (THREE, THREE)),
    Family("quadratic", polynomial, ((-0.2, 0.2), (-2.0, 2.0), THREE)),
    Family("cubic", polynomial, ((-0.1, 0.1), (-0.2, 0.2), (-2.0, 2.0), THREE)),
)
