"""Conv-4, the network of nearly every few-shot paper."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from metarun.errors import ConfigError
from metarun.models.layers import Activation, BatchNormMode, ConvBlock, NormKind
from metarun.models.net import Net


class Blocks(nn.Module):
    """Convolution blocks in a row, then the average over space or all of it."""

    def __init__(self, blocks: list[ConvBlock], spatial: Literal["mean", "flatten"]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.spatial = spatial

    def forward(self, x: Tensor, reference: int | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, reference)
        return x.mean((2, 3)) if self.spatial == "mean" else x.flatten(1)


def conv4(
    features: tuple[int, ...],
    outputs: int,
    *,
    filters: Annotated[int, Field(ge=1)],
    downsample: Literal["stride", "max_pool"],
    spatial: Literal["mean", "flatten"],
    norm: NormKind,
    bn_mode: BatchNormMode,
    adapt_norm: bool,
    activation: Activation,
) -> Net:
    """Build four blocks of 3x3 convolution, normalisation, activation and halving.

    Vinyals et al., 2016; as in Finn et al., 2017: 64 filters, stride and spatial mean for
    Omniglot, 32 filters, max-pool and flatten for miniImageNet.

    Raises:
        ConfigError: the inputs are not images, or too small to be halved four times.
    """
    if len(features) != 3:
        raise ConfigError(
            f"model: conv4 takes images [C, H, W], and this data set gives {list(features)}; "
            "use model=mlp"
        )
    channels, *size = features
    if downsample == "max_pool" and min(size) < 16:
        raise ConfigError(
            f"model.downsample: max_pool halves four times and needs 16 x 16 pixels, not {size}; "
            "use model.downsample=stride"
        )
    blocks: list[ConvBlock] = []
    for _ in range(4):
        blocks.append(
            ConvBlock(channels, filters, downsample=downsample, norm=norm, activation=activation)
        )
        channels = filters
        size = [side // 2 if downsample == "max_pool" else (side + 1) // 2 for side in size]
    width = filters if spatial == "mean" else filters * size[0] * size[1]
    body = Blocks(blocks, spatial)
    return Net(body, width, outputs, norm=norm, bn_mode=bn_mode, adapt_norm=adapt_norm)
