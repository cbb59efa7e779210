"""Regularizers of kernels that are seen as matrices."""

import jax

from jaxreg import penalties, prox
from jaxreg._gram import Precision, check_sample
from jaxreg._matrix import Axes, Mode, check_mode
from jaxreg._numerics import scaled
from jaxreg._regularizers._strengths import OfPenalty, WithProx, choice


class _OfAngles(OfPenalty):
    """What the regularizers of the angles between rows or columns have in common."""

    mode: Mode = choice("rows", kw_only=False)
    out_axis: Axes = choice(-1, axes=True)
    batch_axis: Axes = choice((), axes=True)
    precision: Precision = choice(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mode(self.mode)


class OrthogonalRegularizer(_OfAngles):
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

    sample: int | None = choice(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sample(self.sample)

    @property
    def needs_key(self) -> bool:
        return self.sample is not None

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return scaled(self.factor, penalties.orthogonal(x, **self._options(), key=key), name="factor")


class FramePotential(_OfAngles):
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

    _penalty = penalties.frame_potential


class Nuclear(WithProx):
    """factor · the sum of the singular values, whose zeros make the rank low: `jaxreg.penalties.nuclear`.

    Args:
      factor: the strength, a number >= 0 or an array.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices, whose penalties add up.

    Raises:
      TypeError, ValueError: as `OrthogonalRegularizer` does.

    >>> print(f"{jaxreg.Nuclear(0.5)(jnp.diag(jnp.array([3.0, -4.0]))):.4f}")
    3.5000

    Source: Fazel, Matrix rank minimization with applications, 2002.
    """

    out_axis: Axes = choice(-1, axes=True)
    batch_axis: Axes = choice((), axes=True)

    _penalty, _prox = penalties.nuclear, prox.nuclear


class Spectral(WithProx):
    """factor · the largest singular value: `jaxreg.penalties.spectral`.

    Args:
      factor: the strength, a number >= 0 or an array.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices, whose penalties add up.

    Raises:
      TypeError, ValueError: as `OrthogonalRegularizer` does.

    >>> print(f"{jaxreg.Spectral(0.5)(jnp.diag(jnp.array([3.0, -4.0]))):.4f}")
    2.0000

    Source: Yoshida and Miyato, Spectral norm regularization for improving the generalizability of deep learning, 2017.
    """

    out_axis: Axes = choice(-1, axes=True)
    batch_axis: Axes = choice((), axes=True)

    _penalty, _prox = penalties.spectral, prox.spectral
