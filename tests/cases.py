"""The table of cases. A new penalty or regularizer is a row here, and the row inherits every law of `test_laws.py`.

The references are NumPy in float64, written from the formulas, with loops where those read best.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from sparse_cases import (
    SPARSE,
    groups_reference,
    huber_reference,
    mcp_reference,
    over_weights,
    scad_reference,
)

import jaxreg
from jaxreg import penalties
from jaxreg._gram import mean_absolute_cosine
from jaxreg._numerics import as_wide


def cosines_reference(x, mode="rows", epsilon=1e-7):
    """Mean |cosine| of one matrix, pair by pair."""
    rows = np.asarray(x, np.float64)
    rows = rows if mode == "rows" else rows.T
    with np.errstate(under="ignore"):
        units = [row / max(np.sqrt(np.sum(np.square(row.astype(np.longdouble)))), epsilon) for row in rows]
        n = len(units)
        pairs = [abs(np.dot(units[i], units[j])) for i in range(n) for j in range(n) if i != j]
    return float(sum(pairs) / (n * (n - 1))) if n > 1 else 0.0


def frame_potential_reference(x, mode="rows"):
    """Mean cos², pair by pair, less what the Welch bound says it must be."""
    rows = np.asarray(x, np.float64)
    rows = rows if mode == "rows" else rows.T
    n, d = rows.shape
    if n < 2 or d == 0:
        return 0.0
    with np.errstate(under="ignore"):
        units = np.stack([row / max(np.sqrt(np.sum(np.square(row.astype(np.longdouble)))), 1e-7) for row in rows])
        if n <= d:
            pairs = [np.dot(units[i], units[j]) ** 2 for i in range(n) for j in range(n) if i != j]
            return float(sum(pairs) / (n * (n - 1)))
        return float(np.linalg.norm((units.T @ units - n / d * np.eye(d)).astype(np.float64)) ** 2 / (n * (n - 1)))


def over_matrices(x, out, batch=(), mode="rows", one=cosines_reference):
    """The reference over the matrices of a kernel, its axes picked one index at a time."""
    x = np.asarray(x, np.float64)
    rows = [axis for axis in range(x.ndim) if axis not in out + batch]
    total = 0.0
    for place in np.ndindex(*(x.shape[axis] for axis in batch)):
        part = x
        for axis, index in sorted(zip(batch, place, strict=True), reverse=True):
            part = np.take(part, index, axis=axis)

        def position(axis):
            return axis - sum(b < axis for b in batch)

        part = np.transpose(part, [position(axis) for axis in rows] + [position(axis) for axis in out])
        sizes = [int(np.prod([x.shape[axis] for axis in axes])) for axes in (rows, out)]
        total += one(part.reshape(sizes), mode)
    return total


class Cube(jaxreg.Regularizer):
    """A subclass with an annotated field."""

    factor: float = 0.01

    def __call__(self, x):
        return jnp.asarray(self.factor, jnp.float32) * jnp.sum(jnp.abs(x.astype(jnp.float32)) ** 3)


class KerasStyle(jaxreg.Regularizer):
    """A subclass as Keras documents it."""

    def __init__(self, l2=0.0):
        self.l2 = l2

    def __call__(self, x):
        return self.l2 * jnp.sum(jnp.square(x))

    def get_config(self):
        return {"l2": float(self.l2)}


def half_sum_of_squares(x):
    """A plain function."""
    return 0.5 * jnp.sum(jnp.square(x))


CUSTOM = {"Cube": Cube, "KerasStyle": KerasStyle, "half_sum_of_squares": half_sum_of_squares}


@dataclasses.dataclass(frozen=True)
class Case:
    """A pure penalty, its reference, and the shapes that it is tried on."""

    name: str
    penalty: Callable
    reference: Callable
    shapes: tuple
    scale_invariant: bool = False
    at_zero: bool = True  # least at 0
    squares: bool = False  # beyond float32 where a square is
    shards: bool = False  # of any matrix, sharded along any axis

    def __str__(self):
        return self.name


def _on_matrices(penalty, one):
    def case(name, shapes, out, batch=(), mode="rows", **options):
        return Case(
            name,
            lambda x: penalty(x, mode=mode, **options),
            lambda x: over_matrices(x, out, batch, mode, one),
            shapes,
            scale_invariant=True,
        )

    return case


def _tiled(x, mode):
    """The kernel with tiles of 2 rows, so that a small matrix has many, the last one ragged."""
    return mean_absolute_cosine(as_wide(x), tile=2)


_orthogonal = _on_matrices(penalties.orthogonal, cosines_reference)
_frame = _on_matrices(penalties.frame_potential, frame_potential_reference)
_tiles = _on_matrices(_tiled, cosines_reference)


PENALTIES = (
    Case("l1", penalties.l1, lambda x: np.sum(np.abs(x)), ((), (7,), (3, 4), (2, 3, 4)), shards=True),
    Case("l2", penalties.l2, lambda x: np.sum(np.square(x)), ((), (7,), (3, 4), (2, 3, 4)), squares=True, shards=True),
    *(
        Case(
            case.name,
            case.penalty,
            lambda x, case=case: float(case.reference(np.asarray(x, np.float64)[None])[0]),
            case.shapes,
            scale_invariant=case.function == "l0",
            at_zero=case.at_zero,
            squares=case.squares,
            shards=case.shards and (3, 4) in case.shapes,
        )
        for case in SPARSE
        if not case.name.startswith("prox of")
    ),
    _orthogonal("orthogonal rows", ((3, 5), (5, 3), (2, 2)), (1,)),
    _orthogonal("orthogonal columns", ((3, 5), (5, 3)), (1,), mode="columns"),
    _orthogonal("orthogonal conv", ((3, 2, 4, 5),), (3,), mode="columns"),
    _orthogonal("orthogonal query", ((5, 2, 3),), (1, 2), mode="columns", out_axis=(1, 2)),
    _orthogonal("orthogonal per head", ((5, 2, 3),), (2,), (1,), mode="columns", batch_axis=1),
    _orthogonal("orthogonal stacked", ((4, 5, 3),), (2,), (0,), batch_axis=0),
    _orthogonal("orthogonal Equinox", ((5, 3),), (0,), mode="columns", out_axis=0),
    _tiles("tiles of two rows", ((5, 3), (7, 2), (4, 6)), (1,)),
    _frame("frame potential rows", ((3, 5), (5, 3), (3, 3)), (1,)),
    _frame("frame potential columns", ((3, 5), (5, 3)), (1,), mode="columns"),
    _frame("frame potential per head", ((5, 2, 3),), (2,), (1,), mode="columns", batch_axis=1),
    _orthogonal("orthogonal negative axes", ((2, 3, 4, 5),), (2, 1), (0,), out_axis=(-2, -3), batch_axis=-4),
)


@dataclasses.dataclass(frozen=True)
class RegularizerCase:
    """A regularizer made of strengths, and its reference, a function of x and the same strengths."""

    name: str
    make: Callable
    reference: Callable
    strengths: tuple

    def __str__(self):
        return self.name


def _l1(x):
    return np.sum(np.abs(x))


def _l2(x):
    return np.sum(np.square(x))


REGULARIZERS = (
    RegularizerCase("L1", jaxreg.L1, lambda x, s: s * _l1(x), (0.3,)),
    RegularizerCase("L2", jaxreg.L2, lambda x, s: s * _l2(x), (0.3,)),
    RegularizerCase("L1L2", jaxreg.L1L2, lambda x, s, t: s * _l1(x) + t * _l2(x), (0.3, 0.2)),
    RegularizerCase(
        "OrthogonalRegularizer rows",
        jaxreg.OrthogonalRegularizer,
        lambda x, s: s * over_matrices(x, (x.ndim - 1,)),
        (0.3,),
    ),
    RegularizerCase(
        "OrthogonalRegularizer heads",
        lambda s: jaxreg.OrthogonalRegularizer(s, "columns", out_axis=(0,), batch_axis=()),
        lambda x, s: s * over_matrices(x, (0,), mode="columns"),
        (0.3,),
    ),
    RegularizerCase(
        "FramePotential",
        lambda s: jaxreg.FramePotential(s, "columns"),
        lambda x, s: s * frame_potential_reference(x, "columns"),
        (0.3,),
    ),
    *(
        RegularizerCase(cls.__name__, cls, lambda x, s, one=one: s * one(x[None])[0], (0.3,))
        for cls, one in (
            (jaxreg.LHalf, over_weights(np.sqrt)),
            (jaxreg.Huber, over_weights(lambda size: huber_reference(size, 1.0))),
            (jaxreg.MCP, over_weights(lambda size: mcp_reference(size, 1.0, 3.0))),
            (jaxreg.SCAD, over_weights(lambda size: scad_reference(size, 1.0, 3.7))),
            (jaxreg.LogSum, over_weights(np.log1p)),
            (jaxreg.LInf, lambda points: np.max(np.abs(points).reshape(len(points), -1), axis=1)),
            (jaxreg.GroupLasso, groups_reference((0,))),
            (jaxreg.SparseGroupLasso, lambda p: over_weights(np.abs)(p) + groups_reference((0,))(p)),
            (jaxreg.Nuclear, lambda p: np.sum(np.linalg.svd(p, compute_uv=False), axis=-1)),
            (jaxreg.Spectral, lambda p: np.max(np.linalg.svd(p, compute_uv=False), axis=-1)),
        )
    ),
    RegularizerCase(
        "SparseGroupLasso with its weights",
        lambda s, t, u: jaxreg.SparseGroupLasso(s, 0, l1=t, group=u, size_weighted=True),
        lambda x, s, t, u: s * (t * _l1(x) + u * groups_reference((1,), True)(x[None])[0]),
        (0.3, 0.5, 0.7),
    ),
    RegularizerCase(
        "MCP with its shape",
        lambda s, t: jaxreg.MCP(s, lam=t, gamma=1.4),
        lambda x, s, t: s * over_weights(lambda size: mcp_reference(size, t, 1.4))(x[None])[0],
        (0.3, 0.9),
    ),
    RegularizerCase("sum", lambda s, t: jaxreg.L1(s) + jaxreg.L2(t), lambda x, s, t: s * _l1(x) + t * _l2(x), (0.3, 2)),
    RegularizerCase("scaled", lambda s, t: s * jaxreg.L1(t), lambda x, s, t: s * t * _l1(x), (2.0, 0.3)),
    RegularizerCase(
        "nested",
        lambda s, t: 2.0 * (jaxreg.L1(s) + jaxreg.L2(t) * 3.0),
        lambda x, s, t: 2 * s * _l1(x) + 6 * t * _l2(x),
        (0.3, 0.1),
    ),
    RegularizerCase(
        "with a function", lambda s: jaxreg.L1(s) + half_sum_of_squares, lambda x, s: s * _l1(x) + _l2(x) / 2, (0.3,)
    ),
    RegularizerCase("annotated subclass", Cube, lambda x, s: s * np.sum(np.abs(x) ** 3), (0.3,)),
    RegularizerCase("Keras's form of a subclass", KerasStyle, lambda x, s: s * _l2(x), (0.3,)),
)
