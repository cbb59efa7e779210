"""The table of cases. A new penalty is one row of `CASES`, and the row inherits every law.

A row names a penalty, its prox and its regularizer, their NumPy reference, and for every option the values that are
tried. It expands to variants: each layout (a shape, and the axes that see it as matrices or groups) with a covering of
the values of the other options, in which every two values of two options meet. What a law does not hold for is a flag
of the row.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import references as ref

import jaxreg
from jaxreg import penalties, prox
from jaxreg._gram import ABSOLUTE, mean_over_pairs
from jaxreg._numerics import as_wide
from jaxreg._plans import Plan


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


# The penalties of two arrays, which are no rows and have no regularizer. test_pairs.py holds them to the laws.
OF_PAIRS = ("barlow", "norm_weighted_l1", "product_l2")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A shape, the options that see it as matrices or groups, and the same view in the words of the reference."""

    shape: tuple
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    view: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def weights(*shapes):
    return tuple(Layout(shape) for shape in shapes)


def groups(shape, within, **options):
    return Layout(shape, options, {"within": within})


def matrices(shape, rows, columns, batch=(), **options):
    return Layout(shape, options, {"rows": rows, "columns": columns, "batch": batch})


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A row of the table.

    Attributes:
      penalty, prox: the two functions, or None.
      regularizer: the class; or a function that makes a regularizer of the options alone, which are then its strengths.
      reference: a function of a batch of points and the same options.
      options: the values that are tried for each keyword option, in the table of all of them. A value may be a
        function of the shape of the array. Floats and arrays are numbers, which may be traced; others are static.
      layouts: the shapes, with their axes.
      steps: the steps that the prox is tried with.
      name: what the tests call the row, by default the name of the penalty.
      gradient: the gradient of the reference in closed form, for a penalty whose differences vanish in rounding beside
        its value at small weights; a function of one point and of what the reference takes.
      above: the options that must be greater than a number, with this number. The others must be >= 0.
    """

    penalty: Callable | None
    prox: Callable | None
    regularizer: Callable | None
    reference: Callable
    options: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    layouts: tuple = weights((3, 4), ())
    steps: tuple = (0.3, 1.7)
    name: str = ""
    gradient: Callable | None = None
    above: Mapping[str, float] = dataclasses.field(default_factory=dict)
    # The flags. Each says what holds for the row.
    convex: bool = True
    degree: float | None = None  # the penalty of c·x is c to this power times that of x
    separable: bool = False  # a sum over single weights
    steps_for_each: bool = False  # the prox takes a step for each weight
    metric_prox: bool = False  # the regularizer does so too, under Adam's metric
    elastic_net: bool = False  # made of Σ|x| and Σx² alone, so that sums of such rows have a prox too
    of_sizes: bool = True  # larger weights cost more
    least_at_zero: bool = True  # or at rest there: a zero array has the gradient 0
    kills: bool = True  # the prox makes small weights exactly zero
    computes_svd: bool = False  # the prox is exact only to the rounding of a decomposition
    overflows: bool = False  # the exact value is beyond float32 where the square of a weight is
    underflows: bool = False  # products of weights are below float32 where the weights are tiny
    bounded: bool = False  # the penalty of an infinite weight is finite
    masks: bool = False  # a weight of −inf has no part, as a logit that is masked
    flat: bool = False  # the gradient is 0 everywhere, and the regularizer refuses to be differentiated
    composes_prox: bool = False  # the regularizer has a prox that is no function of its own
    zero_strength: bool = True  # a strength of 0 makes exactly 0, also of what overflows
    none_is_default: bool = False  # None stands for the default of a strength, as in Keras
    remembers: bool = False  # the regularizer takes the options as memory: test_memory.py holds it to the laws
    needs_custom: bool = False  # its config can be read only with the custom objects

    def __post_init__(self):
        object.__setattr__(self, "name", self.name or self.penalty.__name__)

    def __str__(self):
        return self.name


def is_numeric(value):
    return callable(value) or isinstance(value, float | np.ndarray)


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
    """A row at one layout, with one value for each of its other options."""

    case: Case
    layout: Layout
    options: Mapping[str, Any]

    def __str__(self):
        def brief(value):
            return getattr(value, "__name__", str(value))

        shown = [*self.layout.options.items(), *self.options.items()]
        return "-".join([self.case.name, str(self.shape), *(f"{name}={brief(value)}" for name, value in shown)])

    @property
    def shape(self):
        return self.layout.shape

    @property
    def static(self):
        """The options that are no numbers, as a tuple that a cache can hold."""
        chosen = {name: value for name, value in self.options.items() if not is_numeric(value)}
        return tuple((self.layout.options | chosen).items())

    def numbers(self, shape):
        """The options that are numbers, for an array of this shape."""
        numeric = {name: value for name, value in self.options.items() if is_numeric(value)}
        return {name: value(shape) if callable(value) else value for name, value in numeric.items()}

    def reference(self, points, **numbers):
        points = np.asarray(points, np.float64)
        chosen = {name: value for name, value in self.options.items() if not is_numeric(value)}
        return self.case.reference(points, **self.layout.view, **chosen, **(self.numbers(points.shape[1:]) | numbers))

    def reference_at(self, x):
        return float(self.reference(np.asarray(x, np.float64)[None])[0])

    def exact_gradient(self, x):
        x = np.asarray(x, np.float64)
        chosen = {name: value for name, value in self.options.items() if not is_numeric(value)}
        return self.case.gradient(x, **self.layout.view, **chosen, **self.numbers(x.shape))

    def penalty(self, x):
        """The penalty with its options as Python has them."""
        return self.case.penalty(x, **dict(self.static), **self.numbers(np.shape(x)))

    def prox(self, x, step):
        return self.case.prox(x, step, **dict(self.static), **self.numbers(np.shape(x)))


def covering(factors):
    """Choices of one value for each factor, so that every two values of two factors meet in one of them."""
    indices = itertools.product(*(range(len(values)) for values in factors.values()))
    every = [dict(zip(factors, choice, strict=True)) for choice in indices]

    def meetings(choice):
        return set(itertools.combinations(choice.items(), min(len(factors), 2)))

    missing, chosen = set().union(*map(meetings, every)), []
    while missing:
        best = max(every, key=lambda choice: len(meetings(choice) & missing))
        missing -= meetings(best)
        chosen.append({name: factors[name][index] for name, index in best.items()})
    return chosen or [{}]


def variants_of(case):
    for layout in case.layouts:
        for options in covering(case.options):
            yield Variant(case, layout, options)


def target_of(shape):
    return np.cos(np.arange(np.prod(shape, dtype=int)) * 1.3).reshape(shape).astype(np.float32)


def other_target_of(shape):
    return (1.5 * target_of(shape)[..., ::-1] if shape else 1.5 * target_of(shape)).astype(np.float32)


def fisher_of(shape):
    return (0.2 + np.sin(np.arange(np.prod(shape, dtype=int)) * 0.7) ** 2).reshape(shape).astype(np.float32)


# The ways through a Gram matrix, with so few vectors in a block that a small matrix has many, and all at once.
PLANS = {
    "blocks": Plan(1, written_out=True),
    "panels": Plan(1, wide=True, scaling="sums", raw=True),
    "dense": Plan(9, scaling="steps"),
}


def planned(x, *, rows, columns, batch, mode, plan):
    """The mean |cosine| by one of these plans."""
    x = as_wide(x)
    sizes = [int(np.prod([x.shape[axis] for axis in axes])) for axes in (batch, rows, columns)]
    seen = jnp.transpose(x, (*batch, *rows, *columns)).reshape(sizes)
    one = functools.partial(mean_over_pairs, axis=int(mode == "columns"), element=ABSOLUTE, plan=PLANS[plan])
    return jnp.sum(jax.vmap(one)(seen))


def unsquared(x, **options):
    """The norm that soft orthogonality squares."""
    return penalties.soft_orthogonal(x, squared=False, **options)


def in_order(shape, rows, columns, batch=()):
    view = {"rows": rows, "columns": columns, "batch": batch}
    return Layout(shape, view, view)


WEIGHTS = weights((3, 4), (), (7,), (2, 3, 4))
GROUPS = (
    groups((3, 4), within=(0,)),
    groups((5,), within=()),
    groups((2, 1, 3, 4), within=(0, 1, 2)),
    groups((2, 1, 3, 4), within=(0, 1, 3), group_axis=-2),
    groups((2, 4, 3), within=(1,), batch_axis=0),
    groups((3, 4), within=(1,), group_axis=0),
    groups((2, 3, 4), within=(1, 2), group_axis=(), batch_axis=0),
    groups((2, 4, 3), within=(1,), group_axis=(0, 2)),
)

SIGNALS = (
    Layout((3, 4), {}, {"axis": 1}),
    Layout((7,), {}, {"axis": 0}),
    Layout((2, 3, 4), {"axis": 1}, {"axis": 1}),
    Layout((4, 3), {"axis": 0}, {"axis": 0}),
)


def all_matrices(other):
    """The axes of the last come in the order of a 3-cycle, whose inverse is another permutation."""
    return (
        matrices((3, 5), (0,), (1,)),
        matrices((5, 3), (1,), (0,), out_axis=0),
        matrices((3, 2, 2, 5), (0, 1, 2), (3,)),
        matrices((5, 2, 3), (0,), (1, 2), out_axis=(1, 2)),
        matrices((2, 3, 2, 4), (3,), (2, 1), (0,), out_axis=(-2, -3), batch_axis=-4),
        matrices(other, (0,), (1,)),
        matrices((4, 3, 2), (0,), (1,), (2,), out_axis=1, batch_axis=2),
    )


SUMS = {"layouts": weights((4, 3)), "overflows": True}
COSINES = {"reference": ref.cosines, "degree": 0.0, "underflows": True}

CASES = (
    Case(
        penalties.l1,
        prox.l1,
        jaxreg.L1,
        none_is_default=True,
        elastic_net=True,
        reference=ref.of_weights(lambda size: size),
        layouts=WEIGHTS,
        degree=1.0,
        separable=True,
        steps_for_each=True,
        metric_prox=True,
    ),
    Case(
        penalties.l2,
        prox.l2,
        jaxreg.L2,
        none_is_default=True,
        elastic_net=True,
        reference=ref.of_weights(np.square),
        layouts=WEIGHTS,
        degree=2.0,
        separable=True,
        steps_for_each=True,
        metric_prox=True,
        kills=False,
        overflows=True,
    ),
    Case(
        penalties.l1_l2,
        prox.l1_l2,
        jaxreg.L1L2,
        none_is_default=True,
        elastic_net=True,
        reference=ref.of_weights(ref.elastic_net),
        options={"l1": (0.7, 1.3), "l2": (0.4, 1.1)},
        separable=True,
        steps_for_each=True,
        metric_prox=True,
        overflows=True,
    ),
    Case(
        penalties.l0,
        prox.l0,
        jaxreg.L0,
        reference=ref.of_weights(ref.is_not_zero),
        convex=False,
        degree=0.0,
        separable=True,
        steps_for_each=True,
        bounded=True,
        flat=True,
    ),
    Case(
        penalties.l_half,
        prox.l_half,
        jaxreg.LHalf,
        reference=ref.of_weights(np.sqrt),
        convex=False,
        degree=0.5,
        separable=True,
        steps_for_each=True,
        metric_prox=True,
    ),
    Case(
        penalties.l_two_thirds,
        prox.l_two_thirds,
        jaxreg.LTwoThirds,
        reference=ref.of_weights(ref.two_thirds),
        convex=False,
        degree=2 / 3,
        separable=True,
        steps_for_each=True,
        metric_prox=True,
    ),
    Case(
        penalties.huber,
        prox.huber,
        jaxreg.Huber,
        reference=ref.of_weights(ref.huber),
        options={"delta": (0.5, 1.0, 1e-3)},
        above={"delta": 0.0},
        separable=True,
        steps_for_each=True,
        metric_prox=True,
        kills=False,
    ),
    Case(
        penalties.mcp,
        prox.mcp,
        jaxreg.MCP,
        reference=ref.of_weights(ref.mcp),
        options={"lam": (0.8, 1.2), "gamma": (2.0, 1.3, 3.0)},
        above={"gamma": 0.0},
        steps=(0.3, 1.3, 1.7, 2.5),  # the last ones are longer than some γ
        convex=False,
        separable=True,
        steps_for_each=True,
        bounded=True,
    ),
    Case(
        penalties.scad,
        prox.scad,
        jaxreg.SCAD,
        reference=ref.of_weights(ref.scad),
        options={"lam": (0.4, 1.1), "a": (3.7, 2.5)},
        above={"a": 1.0},
        steps=(0.3, 1.5, 1.7, 1.8, 4.0),  # the last ones are longer than some a − 1
        convex=False,
        separable=True,
        steps_for_each=True,
        bounded=True,
    ),
    Case(
        penalties.log_sum,
        prox.log_sum,
        jaxreg.LogSum,
        reference=ref.of_weights(ref.log_sum),
        options={"epsilon": (1.0, 0.3, 1e-3, 1e-30)},
        above={"epsilon": 0.0},
        convex=False,
        separable=True,
        steps_for_each=True,
        metric_prox=True,
    ),
    Case(
        penalties.anchor,
        prox.anchor,
        jaxreg.Anchor,
        remembers=True,
        metric_prox=True,
        reference=ref.anchor,
        options={"target": (target_of, other_target_of), "fisher": (fisher_of, 0.7)},
        separable=True,
        steps_for_each=True,
        least_at_zero=False,
        kills=False,
        overflows=True,
    ),
    Case(
        penalties.weighted_l1,
        prox.weighted_l1,
        jaxreg.AdaptiveL1,
        remembers=True,
        metric_prox=True,
        reference=ref.weighted_l1,
        options={"weights": (fisher_of, 0.7)},
        above={"epsilon": 0.0},
        degree=1.0,
        separable=True,
        steps_for_each=True,
    ),
    Case(
        penalties.linf,
        prox.linf,
        jaxreg.LInf,
        reference=ref.largest,
        degree=1.0,
        kills=True,
    ),
    Case(
        penalties.total_variation,
        prox.total_variation,
        jaxreg.TotalVariation,
        reference=ref.total_variation,
        layouts=SIGNALS,
        degree=1.0,
        kills=False,
    ),
    Case(
        penalties.fused_lasso,
        prox.fused_lasso,
        jaxreg.FusedLasso,
        reference=ref.fused_lasso,
        options={"l1": (0.6, 1.0), "tv": (0.8, 1.4)},
        layouts=SIGNALS,
        degree=1.0,
    ),
    Case(
        penalties.group_lasso,
        prox.group_lasso,
        jaxreg.GroupLasso,
        reference=ref.group_norms,
        options={"size_weighted": (False, True)},
        layouts=GROUPS,
        steps=(0.3, 2.5),
        degree=1.0,
        steps_for_each=True,
        metric_prox=True,
    ),
    Case(
        penalties.sparse_group_lasso,
        prox.sparse_group_lasso,
        jaxreg.SparseGroupLasso,
        reference=ref.sparse_groups,
        options={"size_weighted": (False, True), "l1": (0.6, 1.0), "group": (0.8, 1.4)},
        layouts=(*GROUPS[:2], *GROUPS[3:]),
        degree=1.0,
        steps_for_each=True,
        metric_prox=True,
    ),
    Case(
        penalties.group_mcp,
        prox.group_mcp,
        jaxreg.GroupMCP,
        reference=ref.group_mcp,
        options={"size_weighted": (False, True), "lam": (0.8, 1.3), "gamma": (2.0, 1.3, 3.0)},
        above={"gamma": 0.0},
        layouts=GROUPS,
        steps=(0.3, 1.4, 2.5),  # the last ones are longer than some γ
        convex=False,
        bounded=True,
    ),
    Case(
        penalties.group_scad,
        prox.group_scad,
        jaxreg.GroupSCAD,
        reference=ref.group_scad,
        options={"size_weighted": (False, True), "lam": (0.4, 1.1), "a": (3.7, 2.5)},
        above={"a": 1.0},
        layouts=GROUPS,
        steps=(0.3, 1.8, 4.0),  # the last ones are longer than some a − 1
        convex=False,
        bounded=True,
    ),
    Case(
        penalties.hinged_norm,
        prox.hinged_norm,
        jaxreg.HingedNorm,
        reference=ref.hinged_norm,
        options={"threshold": (1.0, 0.7)},
        layouts=GROUPS,
        kills=False,
        overflows=True,
    ),
    Case(
        penalties.hoyer_square,
        None,
        jaxreg.HoyerSquare,
        reference=ref.hoyer_square,
        layouts=(
            groups((3, 4), within=(0, 1)),
            groups((7,), within=(0,)),
            groups((2, 3, 4), within=(1, 2), batch_axis=0),
        ),
        degree=0.0,
    ),
    Case(
        penalties.stable_rank,
        None,
        jaxreg.StableRank,
        reference=ref.stable_rank,
        layouts=all_matrices((1, 4)),
        degree=0.0,
        computes_svd=True,
    ),
    Case(
        penalties.nuclear,
        prox.nuclear,
        jaxreg.Nuclear,
        reference=ref.nuclear,
        layouts=all_matrices((1, 4)),
        degree=1.0,
        computes_svd=True,
    ),
    Case(
        penalties.spectral,
        prox.spectral,
        jaxreg.Spectral,
        reference=ref.spectral,
        layouts=all_matrices((1, 4)),
        degree=1.0,
        kills=False,
        computes_svd=True,
    ),
    Case(
        penalties.orthogonal,
        None,
        jaxreg.OrthogonalRegularizer,
        options={"mode": ("rows", "columns")},
        layouts=all_matrices((2, 2)),
        **COSINES,
    ),
    Case(
        planned,
        None,
        None,
        options={"mode": ("rows", "columns"), "plan": tuple(PLANS)},
        layouts=(in_order((5, 3), (0,), (1,)), in_order((4, 2, 7), (0,), (2,), (1,))),
        **(COSINES | {"reference": lambda points, plan, **options: ref.cosines(points, **options)}),
    ),
    Case(
        penalties.frame_potential,
        None,
        jaxreg.FramePotential,
        options={"mode": ("rows", "columns")},
        layouts=all_matrices((3, 3)),
        **(COSINES | {"reference": ref.frame_potential}),
    ),
    Case(
        penalties.p_frame,
        None,
        jaxreg.PFrame,
        options={"mode": ("rows", "columns"), "p": (4, 3, 2)},
        layouts=all_matrices((3, 3)),
        **(COSINES | {"reference": ref.p_frame}),
    ),
    Case(
        penalties.mutual_coherence,
        None,
        jaxreg.MutualCoherence,
        options={"mode": ("rows", "columns"), "sharpness": (None, 20)},
        layouts=all_matrices((3, 3)),
        **(COSINES | {"reference": ref.coherence}),
    ),
    Case(
        penalties.off_diagonal,
        None,
        jaxreg.OffDiagonal,
        reference=ref.off_diagonal,
        options={"mode": ("rows", "columns")},
        layouts=all_matrices((3, 3)),
        degree=4.0,
        overflows=True,
    ),
    Case(
        penalties.soft_orthogonal,
        prox.soft_orthogonal,
        jaxreg.SoftOrthogonal,
        reference=ref.soft_orthogonal,
        gradient=ref.gradient_of_soft_orthogonal,
        layouts=all_matrices((1, 4)),
        convex=False,
        kills=False,
        computes_svd=True,
        overflows=True,
    ),
    Case(
        penalties.srip,
        None,
        jaxreg.SRIP,
        reference=ref.srip,
        gradient=ref.gradient_of_srip,
        options={"steps": (1, 10)},
        layouts=all_matrices((1, 4)),
        overflows=True,
    ),
    Case(
        penalties.conv_orthogonal,
        None,
        jaxreg.ConvOrthogonal,
        reference=ref.conv_orthogonal,
        gradient=ref.gradient_of_conv_orthogonal,
        options={"stride": (1, 2, 3)},
        layouts=(
            Layout((3, 2, 2, 3), {}, {"inputs": 2, "outputs": 3}),
            Layout((2, 3, 2, 2), {"in_axis": 1, "out_axis": 0}, {"inputs": 1, "outputs": 0}),
            Layout((2, 3, 2, 3), {"batch_axis": 0}, {"inputs": 2, "outputs": 3, "batch": (0,)}),
        ),
        overflows=True,
    ),
    Case(
        penalties.z_loss,
        None,
        jaxreg.ZLoss,
        reference=ref.z_loss,
        layouts=all_matrices((1, 4)),
        convex=False,
        of_sizes=False,
        least_at_zero=False,
        masks=True,
        overflows=True,
    ),
    Case(
        penalties.kl_sparsity,
        None,
        jaxreg.KLSparsity,
        reference=ref.kl_sparsity,
        options={"rho": (0.3, 0.05), "epsilon": (0.01, 0.4)},
        above={"rho": 0.0, "epsilon": 0.0},
        layouts=all_matrices((1, 4)),
        of_sizes=False,
        least_at_zero=False,
    ),
    Case(
        penalties.decov,
        None,
        jaxreg.DeCov,
        reference=ref.decov,
        layouts=all_matrices((3, 3)),
        degree=4.0,
        convex=False,
        overflows=True,
    ),
    Case(
        penalties.vicreg_covariance,
        None,
        jaxreg.VICRegCovariance,
        reference=ref.vicreg_covariance,
        layouts=all_matrices((3, 3)),
        degree=4.0,
        convex=False,
        overflows=True,
    ),
    Case(
        penalties.vicreg_variance,
        None,
        jaxreg.VICRegVariance,
        reference=ref.vicreg_variance,
        gradient=ref.gradient_of_vicreg_variance,
        options={"gamma": (1.7, 2.5), "epsilon": (1e-4, 0.3)},
        above={"epsilon": 0.0},
        layouts=all_matrices((3, 3)),
        convex=False,
        of_sizes=False,
    ),
    Case(
        unsquared,
        None,
        None,
        reference=functools.partial(ref.soft_orthogonal, squared=False),
        gradient=functools.partial(ref.gradient_of_soft_orthogonal, squared=False),
        layouts=all_matrices((1, 4)),
        overflows=True,
    ),
    Case(
        None,
        None,
        lambda s, t: jaxreg.L1(s) + jaxreg.L2(t),
        reference=ref.of_weights(lambda size, s, t: s * size + t * size**2),
        options={"s": (0.3,), "t": (2.0,)},
        name="sum",
        composes_prox=True,
        metric_prox=True,
        **SUMS,
    ),
    Case(
        None,
        None,
        lambda s, t: s * jaxreg.L1(t),
        reference=ref.of_weights(lambda size, s, t: s * t * size),
        options={"s": (2.0,), "t": (0.3,)},
        name="multiple",
        composes_prox=True,
        metric_prox=True,
        **SUMS,
    ),
    Case(
        None,
        None,
        lambda s, t: 2.0 * (jaxreg.L1(s) + jaxreg.L2(t) * 3.0),
        reference=ref.of_weights(lambda size, s, t: 2 * s * size + 6 * t * size**2),
        options={"s": (0.3,), "t": (0.1,)},
        name="nested",
        composes_prox=True,
        metric_prox=True,
        **SUMS,
    ),
    Case(
        None,
        None,
        lambda s, t, lam: s * jaxreg.MCP(t, lam=lam, gamma=1.4),
        reference=ref.of_weights(lambda size, s, t, lam: s * t * ref.mcp(size, lam, 1.4)),
        options={"s": (2.0,), "t": (0.3,), "lam": (0.9,)},
        name="multiple with a shape",
        composes_prox=True,
        **SUMS,
    ),
    Case(
        None,
        None,
        lambda s, t: jaxreg.GroupLasso(s) + jaxreg.L1(t),
        reference=lambda points, s, t: ref.sparse_groups(points, (0,), l1=t, group=s),
        options={"s": (0.3,), "t": (0.2,)},
        name="sum without a prox",
        **SUMS,
    ),
    Case(
        None,
        None,
        lambda s: jaxreg.L1(s) + half_sum_of_squares,
        reference=ref.of_weights(lambda size, s: s * size + size**2 / 2),
        options={"s": (0.3,)},
        name="with a function",
        zero_strength=False,
        needs_custom=True,
        **SUMS,
    ),
    Case(
        None,
        None,
        Cube,
        reference=ref.of_weights(lambda size, factor: factor * size**3),
        options={"factor": (0.3,)},
        name="annotated subclass",
        zero_strength=False,
        **SUMS,
    ),
    Case(
        None,
        None,
        KerasStyle,
        reference=ref.of_weights(lambda size, l2: l2 * size**2),
        options={"l2": (0.3,)},
        name="Keras's form of a subclass",
        zero_strength=False,
        **SUMS,
    ),
)
PENALTIES = tuple(case for case in CASES if case.penalty is not None)
PROXES = tuple(case for case in CASES if case.prox is not None)
VARIANTS = tuple(variant for case in PENALTIES for variant in variants_of(case))
# One variant of each layout of each row, for the laws that take long to compile. The static options take turns.
KERNELS = tuple(
    chosen[index % len(chosen)]
    for case in PENALTIES
    for index, layout in enumerate(case.layouts)
    if (chosen := [v for v in VARIANTS if v.layout is layout and v.case is case])
)
# Two layouts of each row, the second of which has its axes in another order, and one layout of each row. They are for
# laws that compile several programs.
FEW = tuple(v for v in KERNELS if v.layout in (v.case.layouts[0], v.case.layouts[-1]))
ONE = tuple(v for v in KERNELS if v.layout is v.case.layouts[0])
# All variants of these functions: the options that are numbers are traced, so that nothing more is compiled.
NUMBERED = tuple(
    v for v in VARIANTS if any((v.case, v.layout, v.static) == (k.case, k.layout, k.static) for k in KERNELS)
)
FEW_NUMBERED = tuple(v for v in NUMBERED if any(v.layout is few.layout for few in FEW))


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """A regularizer as a function of its strengths, with values for these."""

    variant: Variant
    own: Mapping[str, float]  # the strength that no option of the penalty is, if there is one

    def __str__(self):
        return "-".join([str(self.variant), *(f"{name}={value}" for name, value in self.own.items())])

    @property
    def case(self):
        return self.variant.case

    @property
    def shape(self):
        return self.variant.shape

    @property
    def strengths(self):
        return dict(self.own) | self.variant.numbers(self.shape)

    def make(self, **strengths):
        return self.case.regularizer(**(self.strengths | strengths), **dict(self.variant.static))

    def reference(self, points, **strengths):
        values = self.strengths | strengths
        factor = np.prod([values.pop(name) for name in self.own])
        return factor * self.variant.reference(points, **values)

    def reference_at(self, x, **strengths):
        return float(self.reference(np.asarray(x, np.float64)[None], **strengths)[0])


def own_strengths(case):
    """The fields of the class that are numbers and no options of its penalty."""
    fields = getattr(case.regularizer, "__dataclass_fields__", {})
    numbers = [field.name for field in fields.values() if isinstance(field.default, float)]
    return [name for name in numbers if name not in case.options]


def made_of(case):
    """The variants of the row with a strength, whose values take turns."""
    values = itertools.cycle((0.3, 2.0))
    for variant in variants_of(case):
        yield Made(variant, {name: next(values) for name in own_strengths(case)})


REGULARIZERS = tuple(
    made for case in CASES if case.regularizer is not None and not case.remembers for made in made_of(case)
)
# One of each layout of each row, and one of each row.
MAKERS = tuple({(m.case, m.variant.layout.shape, str(m.variant.layout.options)): m for m in REGULARIZERS}.values())
MADE = tuple({m.case: m for m in reversed(REGULARIZERS)}.values())[::-1]


# Constraints: the rows that inherit the laws of projections.


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """A row: a constraint, and its set in NumPy.

    Attributes:
      name: what the tests call the row.
      make: the constraint, of its numbers by name and of the options of a layout.
      into: a function of a batch of points, a layout and the numbers, that brings points into the set in any way.
      outside: how far a point is outside of the set, in the unit of the weights, from the same.
      numbers: the numbers of the constraint, which may be traced.
      layouts: the shapes, with the axes that a group or a matrix has.
    """

    name: str
    make: Callable
    into: Callable
    outside: Callable
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    layouts: tuple = GROUPS
    # The flags. Each says what holds for the row.
    convex: bool = True
    exact: bool = False  # the projected weights are exact, and not only to the rounding of a norm
    memory: Callable | None = None  # an array at the start, from the shape
    decomposes: bool = False  # a decomposition rounds more
    above: Mapping[str, float] = dataclasses.field(default_factory=dict)
    zero_stays: bool = True  # an array of zeros stays what it is
    spreads: bool = True  # a NaN shows also in other weights of its group
    count: Callable | None = None  # how many zeros there are exactly, from the shape and the numbers

    def __str__(self):
        return self.name


@dataclasses.dataclass(frozen=True, eq=False)
class KeptAt:
    """A constraint at one layout."""

    case: Kept
    layout: Layout

    def __str__(self):
        return f"{self.case.name}-{self.layout.shape}-{dict(self.layout.options)}"

    @property
    def shape(self):
        return self.layout.shape

    def make(self, **numbers):
        return self.case.make(**(dict(self.case.numbers) | numbers), **self.layout.options)

    def memory(self, shape=None):
        """The array that the memory is made of, or None."""
        return None if self.case.memory is None else self.case.memory(self.shape if shape is None else shape)

    def project(self, x, **numbers):
        constraint = self.make(**numbers)
        start = self.memory(np.shape(x))
        return constraint(x) if start is None else constraint(x, memory=constraint.init(jnp.asarray(start, x.dtype)))

    def into(self, points, **numbers):
        return self.case.into(np.asarray(points, np.float64), self.layout, **(dict(self.case.numbers) | numbers))

    def outside(self, y, **numbers):
        points = np.asarray(y, np.float64)[None]
        return float(self.case.outside(points, self.layout, **(dict(self.case.numbers) | numbers))[0])


def start_of(shape):
    """An array at the start, with zeros in it."""
    values = 1.7 * np.sin(np.arange(np.prod(shape, dtype=int)) * 2.1 + 0.5).reshape(shape)
    return np.where(np.abs(values) < 0.6, 0.0, values).astype(np.float32)


WITHOUT_SMALL = tuple(layout for layout in GROUPS if layout.shape != (5,))
VECTORS = (*weights((3, 4), (7,)), Layout((2, 3, 4), {"batch_axis": 0}))
BLOCKS = (
    Layout((8, 3), {}, {"axis": 0}),
    Layout((3, 4), {"axis": -1}, {"axis": 1}),
    Layout((2, 1, 8, 3), {}, {"axis": 2}),
)

KEPT = (
    Kept(
        "non_neg",
        jaxreg.constraints.NonNeg,
        ref.into_box(0.0),
        ref.outside_box(0.0),
        layouts=WEIGHTS,
        exact=True,
        spreads=False,
    ),
    Kept(
        "box",
        jaxreg.constraints.Box,
        ref.into_box(),
        ref.outside_box(),
        numbers={"lower": -0.3, "upper": 1.1},
        layouts=WEIGHTS,
        exact=True,
        spreads=False,
        above={"lower": -np.inf, "upper": -np.inf},
    ),
    Kept(
        "max_norm",
        jaxreg.constraints.MaxNorm,
        ref.into_norms(lambda norm, max_value: np.minimum(norm, max_value)),
        ref.outside_norms(lambda norm, max_value: np.minimum(norm, max_value)),
        numbers={"max_value": 1.3},
    ),
    Kept(
        "unit_norm",
        jaxreg.constraints.UnitNorm,
        ref.into_norms(lambda norm, radius: radius),
        ref.outside_norms(lambda norm, radius: radius),
        numbers={"radius": 0.7},
        convex=False,
        above={"radius": 0.0},
    ),
    Kept(
        "min_max_norm",
        jaxreg.constraints.MinMaxNorm,
        ref.into_norms(lambda norm, min_value, max_value: np.clip(norm, min_value, max_value)),
        ref.outside_norms(lambda norm, min_value, max_value: np.clip(norm, min_value, max_value)),
        numbers={"min_value": 0.9, "max_value": 1.4},
        convex=False,
    ),
    Kept(
        "keep_norm",
        jaxreg.constraints.KeepNorm,
        ref.into_norms(None, start=start_of),
        ref.outside_norms(None, start=start_of),
        convex=False,
        memory=start_of,
    ),
    Kept(
        "simplex",
        jaxreg.constraints.Simplex,
        ref.into_simplex,
        ref.outside_simplex,
        numbers={"radius": 1.3},
        zero_stays=False,
        above={"radius": 0.0},
    ),
    Kept("l1_ball", jaxreg.constraints.L1Ball, ref.into_l1_ball, ref.outside_l1_ball, numbers={"radius": 1.3}),
    Kept(
        "spectral_norm",
        jaxreg.constraints.SpectralNorm,
        ref.into_values(lambda s, max_value: np.minimum(s, max_value)),
        ref.outside_values(lambda s, max_value: np.minimum(s, max_value)),
        numbers={"max_value": 1.3},
        layouts=all_matrices((1, 4)),
        decomposes=True,
    ),
    Kept(
        "orthonormal",
        jaxreg.constraints.Orthonormal,
        ref.into_values(lambda s: np.ones_like(s)),
        ref.outside_values(lambda s: np.ones_like(s)),
        layouts=all_matrices((1, 4)),
        convex=False,
        decomposes=True,
        zero_stays=False,
    ),
    Kept(
        "max_rank",
        functools.partial(jaxreg.constraints.MaxRank, 1),
        ref.into_values(lambda s: np.where(np.arange(s.shape[-1]) < 1, s, 0)),
        ref.outside_values(lambda s: np.where(np.arange(s.shape[-1]) < 1, s, 0)),
        layouts=all_matrices((1, 4)),
        convex=False,
        decomposes=True,
    ),
    Kept(
        "sparsity",
        jaxreg.constraints.Sparsity,
        ref.into_sparse,
        ref.outside_sparse,
        numbers={"fraction": 0.6},
        layouts=VECTORS,
        convex=False,
        exact=True,
        spreads=False,
        count=ref.zeros_of_sparse,
    ),
    Kept(
        "group_sparsity",
        jaxreg.constraints.GroupSparsity,
        ref.into_group_sparse,
        ref.outside_group_sparse,
        numbers={"fraction": 0.6},
        layouts=(
            Layout((3, 4), {}, {"within": (0,), "groups": (1,)}),
            Layout((3, 4), {"group_axis": 0}, {"within": (1,), "groups": (0,)}),
            Layout((2, 1, 3, 4), {"group_axis": -2}, {"within": (0, 1, 3), "groups": (2,)}),
            Layout((2, 4, 3), {"batch_axis": 0}, {"within": (1,), "groups": (2,)}),
        ),
        convex=False,
        exact=True,
        spreads=False,
        count=ref.zeros_of_group_sparse,
    ),
    Kept(
        "n_of_m",
        functools.partial(jaxreg.constraints.NM, 2, 4),
        ref.into_blocks,
        ref.outside_blocks,
        layouts=BLOCKS,
        convex=False,
        exact=True,
        spreads=False,
        count=lambda shape, layout: np.prod(shape, dtype=int) // 2,
    ),
    Kept(
        "keep_zeros",
        jaxreg.constraints.KeepZeros,
        ref.into_mask(start_of),
        ref.outside_mask(start_of),
        layouts=WEIGHTS,
        exact=True,
        spreads=False,
        memory=start_of,
    ),
)
CONSTRAINTS = tuple(KeptAt(case, layout) for case in KEPT for layout in case.layouts)
# Two layouts of each row, and one, for the laws that take long to compile.
FEW_CONSTRAINTS = tuple(c for c in CONSTRAINTS if c.layout in (c.case.layouts[0], c.case.layouts[-1]))
EACH_CONSTRAINT = tuple(KeptAt(case, case.layouts[0]) for case in KEPT)
