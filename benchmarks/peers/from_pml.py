"""parallel-metalearn's MAML: task by task on convolutions, under vmap on perceptrons.

On convolutions its vmap is several times slower than its loop, and with torch's own batch
normalisation its second-order gradient would be wrong there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from metalearn.algorithms import MAML
from metalearn.inner_optimizers import InnerSGD
from metalearn.loss.base import BaseLoss
from metalearn.model_wrappers import MAML_Model
from torch import Tensor, nn

from benchmarks.contender import OUTER_LR, Contender
from benchmarks.nets import error, module
from benchmarks.works import Work
from metarun.tasks import Tasks

NAME, DISTRIBUTION = "parallel-metalearn", "parallel-metalearn"


class _Loose(nn.Module):
    """Its wrapper hands keywords to body and head."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, **_: object) -> Tensor:
        return self.inner(x)


class _Mean(BaseLoss):
    """The common loss, in its interface of loss and metric."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.error = error(work)

    def forward(self, out_dict, targets, model_states=None, **_):
        loss = self.error(out_dict["logits"], targets["labels"])
        return loss, loss.detach()


def build(work: Work, values: Sequence[Tensor], tasks: Tasks) -> Contender | None:
    if work.algorithm == "imaml":
        return None
    net = module(work, values)
    names = "ANIL" if work.algorithm == "anil" else None
    model = MAML_Model(backbone=_Loose(net.body), head=_Loose(net.head), fast_weights_names=names)
    params = list(net.parameters())
    adam = torch.optim.Adam(params, lr=OUTER_LR)
    inner = InnerSGD(
        model.get_fast_weights(),
        first_order=not work.second_order,
        inner_lr=work.inner_lr,
        max_inner_steps=work.steps,
        learn_lr=False,
    )
    backend = "vmap" if work.net == "mlp" else "sequential"
    algorithm = MAML(
        model=model,
        optimizer=adam,
        inner_optimizer=inner,
        support_loss_fn=_Mean(work),
        inner_steps=work.steps,
        device=tasks.support_x.device,
        backend=backend,
    )
    batch = (
        tasks.support_x,
        {"labels": tasks.support_y},
        tasks.query_x,
        {"labels": tasks.query_y},
    )

    def step() -> None:
        algorithm.step(iter([batch]))

    def gradient() -> list[Tensor]:
        algorithm.optimizer = torch.optim.SGD(params, lr=0.0)
        step()
        algorithm.optimizer = adam
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in params]

    return Contender(gradient, step, note=backend)
