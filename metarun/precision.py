"""In which precision a pass computes its products; everything else stays in the run's own.

The pass over the query is most of a meta-step's work and is differentiated once, so that what it
rounds is no more than noise on the meta-gradient. An inner step's gradient is differentiated
itself, and an evaluation is what is reported: both stay in full precision.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import torch

from metarun.errors import ConfigError

Precision = Literal["full", "tf32", "bf16"]


@contextmanager
def products(precision: Precision, device: str) -> Generator[None]:
    """Compute products of matrices and convolutions, forward and back, in this precision."""
    if precision == "bf16":
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            yield
    elif precision == "tf32":
        tensor_float("tf32")
        try:
            yield
        finally:
            tensor_float("ieee")
    else:
        yield


def refuse_rounding(precision: Precision, who: str) -> None:
    """Refuse reduced precision for one who would not use it, rather than report what is not so.

    Raises:
        ConfigError: a precision other than full.
    """
    if precision != "full":
        raise ConfigError(
            f"hardware.precision: {who} has no pass of the query alone that {precision} could "
            "round; use hardware.precision=full"
        )


def tensor_float(precision: Literal["ieee", "tf32"]) -> None:
    """Set what an NVIDIA GPU makes of float32: torch's own default is tf32 for convolutions.

    By both of torch's interfaces: parts of it still ask the older one, which raises an error where
    the newer one says something else.
    """
    allowed = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # pyright: ignore[reportAttributeAccessIssue]
