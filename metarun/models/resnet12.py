"""ResNet-12, the deeper network of the few-shot papers since 2018."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.errors import ConfigError
from metarun.models.layers import ACTIVATIONS, Activation, BatchNormMode, Norm, NormKind
from metarun.models.net import Net


class Residual(nn.Module):
    """Three 3x3 convolutions beside a 1x1 shortcut, then activation and 2x2 max-pool."""

    def __init__(self, channels: int, filters: int, norm: NormKind, activation: Activation) -> None:
        super().__init__()
        widths = [channels, filters, filters]
        self.convs = nn.ModuleList(
            nn.Conv2d(width, filters, 3, padding=1, bias=False) for width in widths
        )
        self.norms = nn.ModuleList(Norm(filters, norm) for _ in widths)
        self.shortcut = nn.Conv2d(channels, filters, 1, bias=False)
        self.shortcut_norm = Norm(filters, norm)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, reference: int | None = None) -> Tensor:
        h = x
        for position, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            h = norm(conv(h), reference)
            if position < 2:
                h = self.activation(h)
        h = self.activation(h + self.shortcut_norm(self.shortcut(x), reference))
        return F.max_pool2d(h, 2)


class Stages(nn.Module):
    """Residual blocks in a row, then the average over space."""

    def __init__(self, blocks: list[Residual]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, reference: int | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, reference)
        return x.mean((2, 3))


def resnet12(
    features: tuple[int, ...],
    outputs: int,
    *,
    widths: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)],
    norm: NormKind,
    bn_mode: BatchNormMode,
    adapt_norm: bool,
    activation: Activation,
) -> Net:
    """Build residual blocks of the given widths, each halving the image.

    Lee et al., 2019 (MetaOptNet): widths 64, 160, 320, 640; without its DropBlock, whose
    random mask would have to be replayed in the second-order pass.

    Raises:
        ConfigError: the inputs are not images, or too small to be halved so often.
    """
    if len(features) != 3 or min(features[1:]) < 2 ** len(widths):
        raise ConfigError(
            f"model.widths: {len(widths)} blocks halve an image of at least {2 ** len(widths)} "
            f"pixels a side, and this data set gives {list(features)}"
        )
    channels = [features[0], *widths]
    blocks = [
        Residual(inner, outer, norm, activation)
        for inner, outer in zip(channels, widths, strict=False)
    ]
    return Net(
        Stages(blocks), widths[-1], outputs, norm=norm, bn_mode=bn_mode, adapt_norm=adapt_norm
    )
