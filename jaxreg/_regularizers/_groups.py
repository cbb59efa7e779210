"""Regularizers of groups of weights."""

from typing import Any

from jaxreg import penalties, prox
from jaxreg._fields import axes, number, static, strength
from jaxreg._matrix import Axes, as_tuple
from jaxreg._names import public
from jaxreg._regularizers._shipped import Shipped


@public
class GroupLasso(Shipped):
    """The group lasso penalty, factor · Σ_g ‖x_g‖. Each index along `group_axis` is one group.

    Under `jaxreg.proximal` whole groups become exactly zero. Use it to remove units of a Dense kernel `(in, out)` or
    filters of a convolution `HWIO`, which are the default groups. Before a normalization layer it only rescales what
    the normalization undoes: penalize the scale of that layer instead.

    The array has a rank >= 1 and a real floating-point dtype. The penalty is a scalar in at least float32, and the
    gradient and the prox have the dtype of the array. The gradient of a group is factor · x_g/‖x_g‖, and 0 at a group
    of zeros. The prox with step η sets groups with a norm up to η · factor to zero, and shortens the others by that
    much.

    Args:
      factor: the strength, a number >= 0 or an array.
      group_axis: the axis or axes whose indices count groups. A norm runs over all the other axes. `-2` are the input
        channels of a convolution, `0` the units of an Equinox kernel `(out, in)`, and `(0, 1)` the dimensions of each
        head in `(heads, head_dim, out)`. With `()` the whole array is one group.
      batch_axis: further axes that count groups, such as that of layers stacked by `nn.scan`.
      size_weighted: whether each norm is multiplied by √(weights in a group), so that groups of arrays of several
        shapes are penalized alike.

    Raises:
      TypeError: `factor` is not a number, an axis is not an int, or `size_weighted` is not a bool.
      ValueError: `factor` is negative or not finite. When called: an axis is out of range or named twice.

    >>> kernel = jnp.array([[3.0, 0.3], [4.0, 0.4]])
    >>> float(jaxreg.GroupLasso(2.0)(kernel))
    11.0
    >>> jaxreg.GroupLasso(0.5).prox(kernel, 5.0)
    Array([[1.5, 0. ],
           [2. , 0. ]], dtype=float32)

    Source: Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006.
    """

    factor: Any = strength(0.01)
    group_axis: Axes = axes(-1, kw_only=False)
    batch_axis: Axes = axes(())
    size_weighted: bool = static(False)

    _penalty, _prox, has_metric_prox = penalties.group_lasso, prox.group_lasso, True

    def _norm_groups(self) -> Any:
        return as_tuple(self.group_axis), as_tuple(self.batch_axis)


@public
class SparseGroupLasso(Shipped):
    """The sparse group lasso, factor · (l1 · Σ|x| + group · Σ_g ‖x_g‖).

    Under `jaxreg.proximal` it makes whole groups zero, and single weights zero in the groups that are left. Use it
    where units are to be removed and the remaining ones to be sparse.

    Shapes and dtypes are those of `GroupLasso`. The gradient is the sum of those of `L1` and `GroupLasso`, and 0 at
    zero weights and at groups of zeros. The prox is that of `L1`, then that of `GroupLasso`.

    Args:
      factor: the strength of the whole, a number >= 0 or an array.
      group_axis, batch_axis, size_weighted: as in `GroupLasso`.
      l1: the weight of Σ|x|, a number >= 0 or an array.
      group: the weight of Σ_g ‖x_g‖, a number >= 0 or an array.

    Raises:
      TypeError, ValueError: as `GroupLasso` does, for `l1` and `group` too.

    >>> float(jaxreg.SparseGroupLasso(2.0, l1=0.5)(jnp.array([[3.0, 0.0], [4.0, 0.0]])))
    17.0

    Source: Simon, Friedman, Hastie and Tibshirani, A sparse-group lasso, 2013.
    """

    factor: Any = strength(0.01)
    group_axis: Axes = axes(-1, kw_only=False)
    l1: Any = number(1.0)
    group: Any = number(1.0)
    batch_axis: Axes = axes(())
    size_weighted: bool = static(False)

    _penalty, _prox, has_metric_prox = penalties.sparse_group_lasso, prox.sparse_group_lasso, True


@public
class GroupMCP(Shipped):
    """The minimax concave penalty of norms n of groups, factor · the sum of λn − n²/(2γ) up to γλ, and of γλ²/2 beyond.

    Under `jaxreg.proximal` it makes whole groups zero, as `GroupLasso` does, and leaves groups with a norm beyond γλ as
    they are. Use it to remove units without shrinking those that stay. It is not convex, so the result depends on the
    start.

    Shapes and dtypes are those of `GroupLasso`. The gradient of a group is factor · (λ − n/γ)₊ x_g/n, and 0 at a group
    of zeros. The prox shortens each group to the norm that the prox of `MCP` makes of n. It is not for Adam's metric,
    for the reason given in `MCP`.

    Args:
      factor: the strength, a number >= 0 or an array.
      group_axis, batch_axis: as in `GroupLasso`.
      lam: the slope λ at 0, a number >= 0 or an array.
      gamma: how far the concave part reaches, in units of λ, a number > 0 or an array.
      size_weighted: whether the λ of a group is multiplied by √(weights in a group), as R's `grpreg` does.

    Raises:
      TypeError, ValueError: as `GroupLasso` does, for `lam` too, and where `gamma` is not a finite number > 0.

    >>> print(f"{jaxreg.GroupMCP(2.0, gamma=2.0)(jnp.array([[3.0, 0.6], [4.0, 0.8]])):.4f}")
    3.5000

    Source: Breheny and Huang, Group descent algorithms for nonconvex penalized linear and logistic regression models
    with grouped predictors, 2015.
    """

    factor: Any = strength(0.01)
    group_axis: Axes = axes(-1, kw_only=False)
    lam: Any = number(1.0)
    gamma: Any = number(3.0, above=0.0)
    batch_axis: Axes = axes(())
    size_weighted: bool = static(False)

    _penalty, _prox = penalties.group_mcp, prox.group_mcp


@public
class GroupSCAD(Shipped):
    """The SCAD penalty of norms n of groups, factor · the sum of λn up to λ, a parabola up to aλ, λ²(a + 1)/2 beyond.

    Use it as `GroupMCP`, where norms up to λ are to be pushed in full. It is not convex, so the result depends on
    the start.

    Shapes and dtypes are those of `GroupLasso`. The gradient of a group is factor · x_g/n times λ up to λ,
    (aλ − n)/(a − 1) up to aλ and 0 beyond. It is 0 at a group of zeros. The prox shortens each group to the norm that
    the prox of `SCAD` makes of n. It is not for Adam's metric, for the reason given in `MCP`.

    Args:
      factor: the strength, a number >= 0 or an array.
      group_axis, batch_axis: as in `GroupLasso`.
      lam: the slope λ at 0, a number >= 0 or an array.
      a: where the penalty becomes constant, in units of λ, a number > 1 or an array.
      size_weighted: as in `GroupMCP`.

    Raises:
      TypeError, ValueError: as `GroupLasso` does, for `lam` too, and where `a` is not a finite number > 1.

    >>> print(f"{jaxreg.GroupSCAD(2.0, a=3.0)(jnp.array([[3.0, 0.6], [4.0, 0.8]])):.4f}")
    6.0000

    Source: Breheny and Huang, Group descent algorithms for nonconvex penalized linear and logistic regression models
    with grouped predictors, 2015.
    """

    factor: Any = strength(0.01)
    group_axis: Axes = axes(-1, kw_only=False)
    lam: Any = number(1.0)
    a: Any = number(3.7, above=1.0)
    batch_axis: Axes = axes(())
    size_weighted: bool = static(False)

    _penalty, _prox = penalties.group_scad, prox.group_scad


@public
class HingedNorm(Shipped):
    """The squares of what norms of groups have beyond a threshold c, factor · Σ_g (‖x_g‖ − c)₊².

    It is the soft form of `jaxreg.constraints.MaxNorm`: norms up to c are free, and longer groups are pulled back to c.
    Use it to keep units from growing where a hard bound is too much. It makes no weight zero.

    Shapes and dtypes are those of `GroupLasso`. The gradient of a group is 2 · factor · (1 − c/‖x_g‖)₊ x_g, so 0 up to
    c. The prox with step η turns a norm n beyond c into (n + 2η · factor · c)/(1 + 2η · factor). It is not for Adam's
    metric.

    Args:
      factor: the strength, a number >= 0 or an array.
      group_axis, batch_axis: as in `GroupLasso`.
      threshold: c, a number >= 0 or an array.

    Raises:
      TypeError, ValueError: as `GroupLasso` does, for `threshold` too.

    >>> float(jaxreg.HingedNorm(0.5, threshold=2.0)(jnp.array([[3.0, 0.3], [4.0, 0.4]])))
    4.5

    Source: Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, 2014, for the bound;
    Beck, First-order methods in optimization, 2017, for the prox of a squared distance.
    """

    factor: Any = strength(0.01)
    group_axis: Axes = axes(-1, kw_only=False)
    threshold: Any = number(1.0)
    batch_axis: Axes = axes(())

    _penalty, _prox = penalties.hinged_norm, prox.hinged_norm


@public
class HoyerSquare(Shipped):
    """The Hoyer square, factor · (Σ|x|)²/Σx²: a measure of how many weights are large. The scale does not matter.

    It is 1 for an array with one weight that is not 0, and the number of weights for weights of one size. A step of
    descent makes weights below Σx²/Σ|x| smaller, and those above it larger. So it makes an array sparse without
    shrinking the weights that stay. Use it to prepare pruning by magnitude. It is not convex.

    The array has any shape and a real floating-point dtype. The penalty is a scalar in at least float32, and the
    gradient has the dtype of the array. The gradient is 2 · factor · (Σ|x|/Σx²)(sign(x) − x Σ|x|/Σx²), which is
    orthogonal to x. It is 0 at a weight of exactly 0. An array of zeros has the penalty 0 and the gradient 0. There is
    no prox.

    Args:
      factor: the strength, a number >= 0 or an array.
      batch_axis: the axis or axes that count independent arrays, such as that of layers stacked by `nn.scan`. Their
        penalties add up.

    Raises:
      TypeError: `factor` is not a number, or an axis is not an int.
      ValueError: `factor` is negative or not finite. When called: an axis is out of range or named twice.

    >>> print(f"{jaxreg.HoyerSquare(0.5)(jnp.array([3.0, -4.0, 0.0])):.4f}")
    0.9800

    Source: Hoyer, Non-negative matrix factorization with sparseness constraints, 2004; Yang, Wen and Li, DeepHoyer:
    learning sparser neural network with differentiable scale-invariant sparsity measures, 2020.
    """

    factor: Any = strength(0.01)
    batch_axis: Axes = axes(())

    _penalty = penalties.hoyer_square
