"""One task's losses and predictions, as pure functions of a model's parameters.

Letters in shapes: S support rows, R query rows, D outputs.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from threading import current_thread, local, main_thread
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from metarun.models.net import Net
from metarun.precision import Precision

Params = dict[str, Tensor]  # named tensors of a model; a name with a space is no parameter of it
Meta = dict[str, Params]  # what is meta-learned: groups of named tensors


@dataclass(frozen=True)
class Problem:
    """A model and a loss; all that an algorithm knows of the experiment.

    The loss is the mean over the set in both loops, so that rates do not depend on its size.
    """

    model: Net
    kind: Literal["classification", "regression"]
    train_classes: int = 0  # of the training split; what a pre-trained head tells apart
    precision: Precision = "full"  # of passes that nothing differentiates again; see `products`
    _copies: local = field(default_factory=local, init=False, repr=False, compare=False)

    @property
    def _net(self) -> Net:
        """This thread's model: a functional call lends the module its parameters for a moment."""
        if current_thread() is main_thread():
            return self.model
        if not hasattr(self._copies, "net"):
            self._copies.net = deepcopy(self.model)
        return self._copies.net

    def initial(self) -> Params:
        """Return copies of the model's own parameters."""
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}

    def error(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits [B, N], or the mean squared error of [B, D]."""
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        if self.kind == "classification":
            return F.cross_entropy(outputs, y)
        return (outputs - y).square().mean()

    def loss(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss on one set, normalised by its own statistics."""
        return self.error(self._outputs(params, x), y)

    def _outputs(self, params: Params, *inputs: Tensor | int) -> Tensor:
        own = {name: value for name, value in params.items() if " " not in name}
        return functional_call(self._net, own, inputs)

    def features(self, params: Params, x: Tensor) -> Tensor:
        """Return what the head sees, [B, width]."""
        body = {name[5:]: value for name, value in params.items() if name.startswith("body.")}
        return functional_call(self._net.body, body, (x,))

    def head_loss(self, params: Params, features: Tensor, y: Tensor) -> Tensor:
        """Return the loss of the head on features [B, width] that the body gave."""
        head = {name[5:]: value for name, value in params.items() if name.startswith("head.")}
        return self.error(functional_call(self._net.head, head, (features,)), y)

    def predict(self, params: Params, support_x: Tensor, query_x: Tensor) -> Tensor:
        """Return the query's outputs [R, D] under the model's normalisation mode."""
        mode, shots = self.model.bn_mode, support_x.shape[0]
        if mode == "support":
            both = torch.cat([support_x, query_x])
            return self._outputs(params, both, shots)[shots:]
        if mode == "one_by_one":

            def alone(x: Tensor) -> Tensor:
                return self._outputs(params, torch.cat([support_x, x[None]]))[-1]

            return torch.vmap(alone)(query_x)
        return self._outputs(params, query_x)

    def query_loss(
        self, params: Params, support_x: Tensor, query_x: Tensor, query_y: Tensor
    ) -> Tensor:
        """Return the loss on the query set, a scalar."""
        return self.error(self.predict(params, support_x, query_x), query_y)
