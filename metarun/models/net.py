"""What a model is to the rest of metarun: a body that gives features, and a linear head."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from metarun.errors import ConfigError
from metarun.models.layers import BatchNormMode, Norm, NormKind

ADAPTER = "adapter_"  # how the names of an adapter's tensors begin, in the layer they adapt


class Net(nn.Module):
    """A body [B, *features] -> [B, width] and a head [B, width] -> [B, outputs].

    The module holds initial values and the architecture only; every use of it is functional,
    with the parameters given. `adapted` names what an inner loop may move.
    """

    def __init__(
        self,
        body: nn.Module,
        width: int,
        outputs: int,
        *,
        norm: NormKind,
        bn_mode: BatchNormMode,
        adapt_norm: bool,
    ) -> None:
        super().__init__()
        if norm != "batch" and bn_mode != "transductive":
            raise ConfigError(
                f"model.bn_mode={bn_mode}: does nothing with model.norm={norm}; set "
                "model.bn_mode=transductive, or model.norm=batch"
            )
        self.body = body
        self.head = nn.Linear(width, outputs)
        self.width, self.outputs = width, outputs
        self.bn_mode: BatchNormMode | None = bn_mode if norm == "batch" else None
        self.normalisation = f"batch, {bn_mode}" if norm == "batch" else norm
        frozen = set() if adapt_norm else set(norm_parameters(self))
        self.adapted = frozenset(name for name, _ in self.named_parameters() if name not in frozen)

    def forward(self, x: Tensor, reference: int | None = None) -> Tensor:
        return self.head(self.body(x, reference))


def norm_parameters(model: nn.Module) -> Iterable[str]:
    """Yield the names of every normalisation's scale and shift."""
    for name, module in model.named_modules():
        if isinstance(module, Norm):
            own = (leaf for leaf, _ in module.named_parameters() if leaf in ("weight", "bias"))
            yield from (f"{name}.{leaf}" for leaf in own)


def alone_in_norm(model: Net, features: tuple[int, ...]) -> bool:
    """Tell whether an input alone gives some batch normalisation one value, of variance 0.

    A perceptron's are such, and those of convolutions that leave a single pixel.
    """
    found: list[bool] = []

    def look(norm: Norm, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].numel() == norm.channels)

    norms = [m for m in model.modules() if isinstance(m, Norm) and m.kind == "batch"]
    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    with torch.no_grad():
        model(torch.zeros(1, *features).to(model.head.weight))
    for hook in hooks:
        hook.remove()
    return any(found)


def set_running(model: nn.Module, batches: Iterable[tuple[dict[str, Tensor], Tensor]]) -> None:
    """Store in each batch normalisation its averages over `batches` of (parameters, inputs).

    The averages are recomputed from training inputs whenever they are needed, so that no
    state runs beside the meta-parameters. See `use_running`.
    """
    norms = [m for m in model.modules() if isinstance(m, Norm) and m.kind == "batch"]
    use_running(model, False)
    for norm in norms:
        norm.observing = True
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in norms]
    with torch.no_grad():
        for params, x in batches:
            torch.func.functional_call(model, params, (x,))
            for record, norm in zip(seen, norms, strict=True):
                assert norm.observed is not None
                record.append(norm.observed)
    for norm, record in zip(norms, seen, strict=True):
        norm.observing, norm.observed = False, None
        norm.mean.copy_(torch.stack([mean for mean, _ in record]).mean(0))
        norm.variance.copy_(torch.stack([variance for _, variance in record]).mean(0))


def use_running(model: nn.Module, on: bool) -> None:
    """Switch every batch normalisation to its stored averages, or back to its batch."""
    for module in model.modules():
        if isinstance(module, Norm):
            module.frozen = on and module.kind == "batch"


def use_plain_attention() -> None:
    """Have torch compute attention by plain operations; the fused ones have no second derivative.

    The switches are named after CUDA and hold on every device.
    """
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
