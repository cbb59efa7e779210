"""Penalties of the angles between the rows, or columns, of a kernel."""

import functools

import jax
from jax.typing import ArrayLike

from jaxreg._gram import (
    Precision,
    check_sample,
    mean_absolute_cosine,
    mean_squared_cosine,
    over_batch,
    random_rows,
)
from jaxreg._matrix import Axes, Mode, as_matrices, check_mode
from jaxreg._numerics import as_wide


def orthogonal(
    x: ArrayLike,
    *,
    mode: Mode = "rows",
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    precision: Precision = None,
    sample: int | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Mean absolute cosine between distinct rows: Σ_{i≠j} |cos(x_i, x_j)| / (n(n−1)), as in Keras.

    A kernel of any rank ≥ 2 is seen as a matrix: `out_axis` are its columns, `batch_axis` counts
    independent matrices, whose means add up, and all the other axes are its rows. For a Dense kernel
    `(in, out)` or a convolution `HWIO`, the units are the columns: `mode="columns"` compares them.

    Of n rows in d < n dimensions the mean cannot reach 0: it is at least 2(n−d)/(n(n−1)) for n ≤ 2d, and rows that
    repeat each other can score best. `frame_potential` has its least value at rows that are spread evenly.

    The cosine is taken with norms of at least 1e-7. The subgradient of |·| at 0 is 0, so a zero row
    has cosine 0 with every other row and gradient 0; a single row has no pair, and its value is 0.

    Value and gradient come from one pass over the tiles of the Gram matrix: 3n²d FLOPs and O(nd) memory; the value
    alone takes n²d. With `sample=m` the mean runs over a random subset of m rows, an unbiased estimate in m²d.

    Args:
      x: a real floating-point array of rank ≥ 2.
      mode: "rows" or "columns", which of the two are compared.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices.
      precision: that of the matrix products, as in `jnp.matmul`. By default JAX's own default: float32 on CPUs,
        TF32 on recent NVIDIA GPUs, bfloat16 passes on TPUs; `"highest"` is float32 everywhere. Sums are taken in
        float32 at least.
      sample: the number of rows (or columns) to estimate the mean from, at least 2; None takes all.
      key: the random key for `sample`.

    Returns:
      A scalar: float64 for a float64 `x`, float32 for everything narrower.

    Raises:
      TypeError: `x` is not a real floating-point array, or an axis or `sample` is not an int.
      ValueError: `x` has rank < 2, an axis is out of range, named twice, or none is left for the
        rows; `mode` is neither of the two; `sample` is less than 2, or has no `key`.

    >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> print(f"{jaxreg.penalties.orthogonal(x):.4f}")
    0.7071
    >>> float(jaxreg.penalties.orthogonal(jnp.eye(3)))
    0.0

    Source: `keras.regularizers.OrthogonalRegularizer`, 2020; Brock et al., Neural photo editing
    with introspective adversarial networks, 2017.
    """
    check_sample(sample)
    matrices = _vectors(x, mode, out_axis, batch_axis)
    if sample is not None:
        if key is None:
            raise ValueError(f"`key` must be given where `sample` is, got None for sample={sample}")
        matrices = random_rows(matrices, sample, key)
    return over_batch(functools.partial(mean_absolute_cosine, precision=precision), matrices)


def frame_potential(
    x: ArrayLike,
    *,
    mode: Mode = "rows",
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    precision: Precision = None,
) -> jax.Array:
    """Mean squared cosine between distinct rows, above the least there is: 0 is always the best.

    For n ≤ d rows, Σ_{i≠j} cos²(x_i, x_j) / (n(n−1)), which is 0 for orthogonal rows. More rows than dimensions cannot
    be orthogonal: for n > d it is ‖UᵀU − (n/d)I‖² / (n(n−1)), with the unit rows U, which is that mean minus the
    Welch bound (n−d)/(d(n−1)), and 0 exactly for a tight frame, the rows spread evenly. All its minima are global.

    Smooth, and computed from the smaller of the two Gram matrices, in O(nd·min(n, d)). The cosine is taken
    with norms of at least 1e-7, so that a zero row has a finite gradient; a single row has the value 0.

    Args, dtypes and errors are those of `orthogonal`.

    >>> angles = 2.0 * jnp.pi * jnp.arange(3.0) / 3.0
    >>> mercedes = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    >>> print(f"{jaxreg.penalties.frame_potential(mercedes):.4f}")
    0.0000
    >>> print(f"{jaxreg.penalties.frame_potential(jnp.ones((3, 2))):.4f}")
    0.7500

    Source: Benedetto and Fickus, Finite normalized tight frames, 2003.
    """
    matrices = _vectors(x, mode, out_axis, batch_axis)
    return over_batch(functools.partial(mean_squared_cosine, precision=precision), matrices)


def _vectors(x: ArrayLike, mode: Mode, out_axis: Axes, batch_axis: Axes) -> jax.Array:
    """The matrices of a kernel, what is compared in their rows."""
    check_mode(mode)
    matrices = as_matrices(as_wide(x), out_axis=out_axis, batch_axis=batch_axis)
    return matrices if mode == "rows" else matrices.swapaxes(-1, -2)
