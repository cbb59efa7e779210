"""The table of penalties that have a prox. A row here is a row of both tables, and inherits the laws of each.

The references are NumPy in float64, over a batch of points along the first axis.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxreg import penalties, prox


def over_weights(function):
    return lambda points: np.sum(function(np.abs(points)).reshape(len(points), -1), axis=1)


def mcp_reference(size, lam, gamma):
    return np.where(size <= gamma * lam, lam * size - size**2 / (2 * gamma), gamma * lam**2 / 2)


def scad_reference(size, lam, a):
    parabola = (2 * a * lam * size - size**2 - lam**2) / (2 * (a - 1))
    flat = lam**2 * (a + 1) / 2
    return np.where(size <= lam, lam * size, np.where(size <= a * lam, parabola, flat))


def huber_reference(size, delta):
    return np.where(size <= delta, size**2 / (2 * delta), size - delta / 2)


def groups_reference(axes, size_weighted=False):
    """Norms over `axes` of each point, added up."""

    def reference(points):
        weight = np.sqrt(np.prod([points.shape[axis + 1] for axis in axes])) if size_weighted else 1.0
        scale = np.max(np.abs(points), initial=1e-300)
        squares = np.sum((points / scale) ** 2, axis=tuple(axis + 1 for axis in axes))
        return weight * scale * np.sum(np.sqrt(squares).reshape(len(points), -1), axis=1)

    return reference


def singular_reference(order, sizes, reduce):
    """Norms of the singular values of each point, its axes put in order and seen as matrices."""

    def reference(points):
        moved = np.transpose(points, (0, *(axis + 1 for axis in order)))
        matrices = moved.reshape(len(points), *sizes(points.shape[1:]))
        if 0 in matrices.shape[-2:]:
            return np.zeros(len(points))
        return np.sum(reduce(np.linalg.svd(matrices, compute_uv=False), axis=-1), axis=1)

    return reference


def target_of(shape):
    return np.cos(np.arange(np.prod(shape, dtype=int)) * 1.3).reshape(shape).astype(np.float32)


def fisher_of(shape):
    return (0.2 + np.sin(np.arange(np.prod(shape, dtype=int)) * 0.7) ** 2).reshape(shape).astype(np.float32)


def anchor_reference(points):
    difference = points - target_of(points.shape[1:]).astype(np.float64)
    return np.sum((fisher_of(points.shape[1:]).astype(np.float64) * difference**2).reshape(len(points), -1), 1) / 2


@dataclasses.dataclass(frozen=True)
class SparseCase:
    """A penalty and its prox under one name and options, and a reference of the penalty."""

    name: str
    function: str
    reference: Callable
    options: Callable = lambda shape: {}
    shapes: tuple = ((3, 4),)
    steps: tuple = (0.3, 1.7)
    convex: bool = True
    of_weights: bool = True  # a sum over single weights
    for_each: bool = True  # takes a step for each weight
    at_zero: bool = True  # least at 0
    squares: bool = False  # beyond float32 where a square is
    shards: bool = True

    def __str__(self):
        return self.name

    def penalty(self, x):
        return getattr(penalties, self.function)(x, **self.options(x.shape))

    def prox(self, x, step):
        return getattr(prox, self.function)(x, step, **self.options(x.shape))


def fixed(**options):
    return lambda shape: options


def _groups(name, axes, shapes, **options):
    return SparseCase(
        name,
        "group_lasso",
        groups_reference(axes, options.get("size_weighted")),
        fixed(**options),
        shapes,
        of_weights=False,
        steps=(0.3, 2.5),
    )


def _singular(name, function, shapes, order, sizes, **options):
    reduce = np.sum if function == "nuclear" else np.max
    return SparseCase(
        name,
        function,
        singular_reference(order, sizes, reduce),
        fixed(**options),
        shapes,
        of_weights=False,
        for_each=False,
        shards=False,
    )


SPARSE = (
    SparseCase("prox of l1", "l1", over_weights(lambda s: s), shapes=((), (3, 4))),
    SparseCase("prox of l2", "l2", over_weights(np.square), squares=True),
    SparseCase("l1_l2", "l1_l2", over_weights(lambda s: 0.7 * s + 0.4 * s**2), fixed(l1=0.7, l2=0.4), squares=True),
    # Hardware may take a denormal number for 0. The gradient is a constant, which has no sharding.
    SparseCase("l0", "l0", over_weights(lambda s: (s > 1e-37) * 1.0), convex=False, shards=False),
    SparseCase("l_half", "l_half", over_weights(np.sqrt), convex=False),
    SparseCase("huber", "huber", over_weights(lambda s: huber_reference(s, 0.5)), fixed(delta=0.5)),
    SparseCase(
        "mcp", "mcp", over_weights(lambda s: mcp_reference(s, 0.8, 2.0)), fixed(lam=0.8, gamma=2.0), convex=False
    ),
    SparseCase(
        "mcp, long steps",
        "mcp",
        over_weights(lambda s: mcp_reference(s, 1.2, 1.3)),
        fixed(lam=1.2, gamma=1.3),
        steps=(1.3, 2.5),
        convex=False,
    ),
    SparseCase("scad", "scad", over_weights(lambda s: scad_reference(s, 0.4, 3.7)), fixed(lam=0.4), convex=False),
    SparseCase(
        "scad, long steps",
        "scad",
        over_weights(lambda s: scad_reference(s, 1.1, 2.5)),
        fixed(lam=1.1, a=2.5),
        steps=(1.5, 1.8, 4.0),
        convex=False,
    ),
    SparseCase("log_sum", "log_sum", over_weights(lambda s: np.log1p(s / 0.3)), fixed(epsilon=0.3), convex=False),
    SparseCase(
        "anchor",
        "anchor",
        anchor_reference,
        lambda shape: {"target": target_of(shape), "fisher": fisher_of(shape)},
        at_zero=False,
        squares=True,
        shards=False,
    ),
    SparseCase(
        "linf",
        "linf",
        lambda points: np.max(np.abs(points).reshape(len(points), -1), axis=1, initial=0.0),
        shapes=((), (3, 4)),
        of_weights=False,
        for_each=False,
    ),
    _groups("group_lasso", (0,), ((3, 4), (1, 3))),
    _groups("group_lasso of a vector", (), ((5,),)),
    _groups("group_lasso of a convolution", (0, 1, 2), ((2, 1, 3, 4),)),
    _groups("group_lasso of input channels", (0, 1, 3), ((2, 1, 3, 4),), group_axis=-2),
    _groups("group_lasso of heads", (1,), ((2, 4, 3),), group_axis=(0, 2)),
    _groups("group_lasso stacked", (1,), ((2, 4, 3),), batch_axis=0),
    _groups("group_lasso weighted by size", (1,), ((3, 4),), group_axis=0, size_weighted=True),
    SparseCase(
        "sparse_group_lasso",
        "sparse_group_lasso",
        lambda p: 0.6 * over_weights(lambda s: s)(p) + 0.8 * groups_reference((0,))(p),
        fixed(l1=0.6, group=0.8),
        ((3, 4),),
        of_weights=False,
    ),
    _singular("nuclear", "nuclear", ((3, 5), (5, 3), (1, 4)), (0, 1), lambda s: (1, *s)),
    _singular(
        "nuclear per head", "nuclear", ((5, 2, 3),), (1, 0, 2), lambda s: (s[1], s[0], s[2]), batch_axis=1, out_axis=2
    ),
    _singular("spectral", "spectral", ((3, 5), (5, 3), (1, 4)), (0, 1), lambda s: (1, *s)),
    _singular(
        "spectral of a convolution", "spectral", ((2, 1, 3, 4),), (0, 1, 2, 3), lambda s: (1, s[0] * s[1] * s[2], s[3])
    ),
)
