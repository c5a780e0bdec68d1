"""SimpleShot: pre-train, then the nearest class mean; nothing is fine-tuned."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from metarun.algorithms.base import MetaAlgorithm, Rate
from metarun.algorithms.parts.heads import (
    Reshaped,
    body_of,
    class_means,
    nearest_mean,
    only_classes,
    reshaped,
    solved,
    starting_with,
    with_head,
)
from metarun.algorithms.transfer import pretraining
from metarun.problem import Meta, Params, Problem

Part = Annotated[float, Field(ge=0, le=1)]


def centroid(
    problem: Problem,
    *,
    centre_grid: Annotated[list[Part], Field(min_length=1)],
    unit_grid: Annotated[list[Part], Field(min_length=1)],
    mean_rate: Annotated[Rate, Field(le=1)],
) -> MetaAlgorithm:
    """Pre-train on all meta-training classes; a query goes to the nearest class mean.

    Wang et al., 2019, arXiv:1911.04623, section 3: Euclidean distance between features as they are
    (UN), of unit length (L2N, the cosine), or less the mean of the training features and of unit
    length (CL2N). `centre` is how much of that mean is subtracted, `unit` the power of the length
    that is divided out; validation tasks choose both. The mean is a running one of pre-training.
    """
    ways = only_classes(problem, "centroid")
    tuned = {"centre": tuple(centre_grid), "unit": tuple(unit_grid)}
    base = nn.Linear(problem.model.width, problem.train_classes)
    problem = with_head(problem, Reshaped(problem.model.width, ways))
    trained = pretraining(problem, base, tuned, mean_rate=mean_rate)

    def init(params: Params) -> Meta:
        return trained.init(body_of(params))

    def head(meta: Meta, x: Tensor, y: Tensor) -> Params:
        shift = meta["rates"]["centre"] * meta["mean"]["features"]
        power = meta["rates"]["unit"]
        features = reshaped(problem.features(meta["params"], x), shift, power)
        of_means = nearest_mean(class_means(features, y, ways))
        return of_means | {"head.shift": shift, "head.power": power}

    return MetaAlgorithm(
        init,
        solved(starting_with(head)),
        trained.meta_grad,
        batches="examples",
        tuned=tuned,
        problem=problem,
    )
