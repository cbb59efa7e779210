"""The regularizers that jaxreg ships: frozen data, and one line that calls the maths."""

import dataclasses
from typing import Any

import jax

from jaxreg import penalties
from jaxreg._base import BUILT_IN, Regularizer
from jaxreg._gram import Precision, check_sample
from jaxreg._matrix import Axes, Mode, check_mode, checked_axes
from jaxreg._numerics import checked_strength, scaled


class _Strengths(Regularizer):
    """Fields with a metadata entry `unset` are strengths; that entry is what None stands for, if anything."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if "unset" in field.metadata:
                value = getattr(self, field.name)
                checked = checked_strength(value, name=field.name, default=field.metadata["unset"])
                object.__setattr__(self, field.name, checked)


def _strength(default: float) -> Any:
    return dataclasses.field(default=default, metadata={"unset": default})


def _choice(default: Any, *, kw_only: bool = False) -> Any:
    return dataclasses.field(default=default, kw_only=kw_only, metadata={"static": True})


class L1(_Strengths):
    """l1 · Σ|x|, with the subgradient 0 at 0.

    Args:
      l1: the strength, a number >= 0 or an array; None means 0.01.

    >>> float(jaxreg.L1(0.5)(jnp.array([1.0, -2.0, 0.0])))
    1.5

    Source: Tibshirani, Regression shrinkage and selection via the lasso, 1996; `keras.regularizers.L1`.
    """

    l1: Any = _strength(0.01)

    def __call__(self, x: jax.Array) -> jax.Array:
        return scaled(self.l1, penalties.l1(x), name="l1")


class L2(_Strengths):
    """l2 · Σx², without ½: `L2(l2)` decays weights as `weight_decay=2 * l2` does.

    Args:
      l2: the strength, a number >= 0 or an array; None means 0.01.

    >>> float(jaxreg.L2(0.5)(jnp.array([1.0, -2.0, 0.0])))
    2.5

    Source: Hoerl and Kennard, Ridge regression, 1970; `keras.regularizers.L2`.
    """

    l2: Any = _strength(0.01)

    def __call__(self, x: jax.Array) -> jax.Array:
        return scaled(self.l2, penalties.l2(x), name="l2")


class L1L2(_Strengths):
    """l1 · Σ|x| + l2 · Σx², the elastic net, with the subgradient 0 at 0.

    Args:
      l1: the strength of Σ|x|, a number >= 0 or an array; None means 0.
      l2: the strength of Σx², a number >= 0 or an array; None means 0.

    >>> float(jaxreg.L1L2(l1=1.0, l2=0.5)(jnp.array([1.0, -2.0, 0.0])))
    5.5

    By name and as a class, as in `jaxreg.get("l1_l2")` and `jaxreg.get(L1L2)`, both strengths are 0.01.

    Source: Zou and Hastie, Regularization and variable selection via the elastic net, 2005;
    `keras.regularizers.L1L2`.
    """

    l1: Any = _strength(0.0)
    l2: Any = _strength(0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        return scaled(self.l1, penalties.l1(x), name="l1") + scaled(self.l2, penalties.l2(x), name="l2")


class _OnMatrices(_Strengths):
    """What the regularizers of the rows or columns of kernels have in common."""

    factor: Any = dataclasses.field(default=0.01, metadata={"unset": None})  # Keras takes no None here
    mode: Mode = _choice("rows")
    out_axis: Axes = _choice(-1, kw_only=True)
    batch_axis: Axes = _choice((), kw_only=True)
    precision: Precision = _choice(None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mode(self.mode)
        for name in ("out_axis", "batch_axis"):
            object.__setattr__(self, name, checked_axes(getattr(self, name), name=name))

    def _view(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("mode", "out_axis", "batch_axis", "precision")}


class OrthogonalRegularizer(_OnMatrices):
    """factor · mean |cosine| between distinct rows (or columns): `jaxreg.penalties.orthogonal`.

    For a Dense kernel `(in, out)` and for a convolution, the units are the columns.

    Args:
      factor: the strength, a number >= 0 or an array.
      mode: "rows" or "columns", which of the two are compared.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices, whose penalties add up.
      precision: that of the matrix products, as in `jnp.matmul`.
      sample: the number of rows (or columns) from which to estimate the mean, without bias; None takes all.
        The random key comes from `Rules.__call__`, or from `add_penalty_gradients`.

    Raises:
      ValueError: `mode` is neither of the two; when called, `x` has rank < 2, or the axes do not fit it.

    >>> kernel = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> print(f"{jaxreg.OrthogonalRegularizer(0.1, mode='columns')(kernel):.4f}")
    0.0707

    Source: `keras.regularizers.OrthogonalRegularizer`, 2020.
    """

    sample: int | None = _choice(None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sample(self.sample)

    @property
    def needs_key(self) -> bool:
        return self.sample is not None

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        value = penalties.orthogonal(x, **self._view(), sample=self.sample, key=key)
        return scaled(self.factor, value, name="factor")


class FramePotential(_OnMatrices):
    """factor · mean squared cosine between distinct rows, above the least there is: `jaxreg.penalties.frame_potential`.

    Where there are more units than dimensions, its best is units that are spread evenly.

    Args:
      factor: the strength, a number >= 0 or an array.
      mode: "rows" or "columns", which of the two are compared.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices, whose penalties add up.
      precision: that of the matrix products, as in `jnp.matmul`.

    Raises:
      TypeError, ValueError: as `OrthogonalRegularizer` does.

    >>> kernel = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> print(f"{jaxreg.FramePotential(0.1, mode='columns')(kernel):.4f}")
    0.0500

    Source: Benedetto and Fickus, Finite normalized tight frames, 2003.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        return scaled(self.factor, penalties.frame_potential(x, **self._view()), name="factor")


BUILT_IN |= {cls.__name__: cls for cls in (L1, L2, L1L2, OrthogonalRegularizer, FramePotential)}
