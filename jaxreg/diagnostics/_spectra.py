"""Singular values of kernels: a table of them, and how many directions count."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from rich.table import Table

from jaxreg._checks import describe, is_float_array
from jaxreg._matrix import Axes, View, as_tuple, as_vectors, checked_axes, matrices_in
from jaxreg._names import public
from jaxreg._numerics import as_wide, for_lapack, near_one
from jaxreg._paths import check_no_optimizer_state, leaves_with_paths
from jaxreg._shards import gathered, split_of
from jaxreg._tables import Tables, add_row, table
from jaxreg._values import check_values, with_values


@public
def effective_rank(x: ArrayLike, *, out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns the effective rank of a matrix, exp(−Σ p log p) with the shares p_i = σ_i/Σσ of its singular values.

    It is k for a matrix with k equal singular values and no others, and 0 for a zero matrix. Small singular values
    count more than in the stable rank Σσ²/σ₁², which is `jaxreg.penalties.stable_rank`. The function is jittable, and
    takes a singular value decomposition. A kernel that is divided over a mesh is gathered.

    Args:
      x: a real floating-point array of rank >= 2.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices.

    Returns:
      A scalar in at least float32, or an array (batch,) where `batch_axis` names an axis. It is NaN for a matrix that
      is not finite.

    Raises:
      TypeError, ValueError: as `jaxreg.Nuclear` does.

    >>> print(f"{jaxreg.diagnostics.effective_rank(jnp.diag(jnp.array([2.0, 2.0, 0.0]))):.4f}")
    2.0000

    Source: Roy and Vetterli, The effective rank: a measure of effective dimensionality, 2007.
    """
    x = as_wide(x)
    split_of(x)  # raises an error for a shard
    matrices, layout = as_vectors(gathered(x), View("rows", out_axis, batch_axis))
    ranks = jax.vmap(_effective_rank, in_axes=layout.batch)(matrices)
    return ranks[0] if isinstance(batch_axis, tuple | list) and not batch_axis else ranks


def _effective_rank(x: jax.Array) -> jax.Array:
    if not x.size:
        return jnp.zeros((), x.dtype)
    x, _, _ = near_one(x, (0, 1))
    s = jnp.linalg.svd(for_lapack(x), compute_uv=False)
    whole = jnp.sum(s)
    shares = s / jnp.where(whole == 0, jnp.ones_like(whole), whole)
    entropy = -jnp.sum(shares * jnp.log(jnp.where(shares == 0, jnp.ones_like(shares), shares)))
    return jnp.where(whole == 0, jnp.zeros_like(whole), jnp.exp(entropy))


class Spectrum(NamedTuple):
    """The singular values of the matrices of a kernel. Each array has a number for each matrix, NaN if not finite.

    Attributes:
      path: its path in the tree.
      array: its dtype and shape.
      seen: what is seen in it, such as "12 matrices 32×8".
      largest, smallest: σ₁ and the least singular value, of as many as the smaller side has.
      condition: their quotient, infinite where the least is 0.
      stable_rank: Σσ²/σ₁², and 0 for zeros.
      effective_rank: exp of the entropy of σ/Σσ, and 0 for zeros.
      norm: √Σσ², which is that of the weights.
    """

    path: str
    array: str
    seen: str
    largest: np.ndarray
    smallest: np.ndarray
    condition: np.ndarray
    stable_rank: np.ndarray
    effective_rank: np.ndarray
    norm: np.ndarray


class SpectrumTable(Tables):
    """The table that `spectrum_table` returns. `str` gives it as plain text, and `rows` are the lines as data."""

    def __init__(self, rows: tuple[Spectrum, ...]):
        self.rows = rows

    def _tables(self) -> tuple[Table, ...]:
        numbers = ("σ₁", "σ min", "condition", "stable rank", "effective rank", "norm")
        made = table("path", "array", "seen as", *numbers, right=numbers)
        for row in self.rows:
            add_row(made, row.path or "the array", row.array, row.seen, *map(_range, row[3:]))
        return (made,)


@public
def spectrum_table(tree: Any, *, out_axis: Axes = -1, batch_axis: Axes = ()) -> SpectrumTable:
    """Returns a table of the singular values of each kernel: the largest, the least, and how many of them count.

    The columns are σ₁, the least singular value, their quotient, the stable rank Σσ²/σ₁², the effective rank of
    `effective_rank`, and the norm of the weights. They are computed in float64, where what is less than the rounding of
    a decomposition counts as 0. For several matrices in a kernel a cell has the least and the greatest number. Print
    it, or show it in a notebook. `rich.print` folds it to the width of a terminal. `rows` are the lines as data.

    Args:
      tree: a real floating-point array of rank >= 2, or a tree of parameters that `jaxreg.Rules` take. Of a tree, the
        arrays are shown whose rank is 2 more than the number of batch axes, or higher.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices.

    Raises:
      TypeError, ValueError: `tree` holds no matrices, or no values, or an axis does not fit a kernel. The message has
        its path.

    >>> params = {"kernel": jnp.diag(jnp.array([3.0, 4.0])), "bias": jnp.ones(2)}
    >>> print(jaxreg.diagnostics.spectrum_table(params))
    path     array          seen as        σ₁   σ min   condition   stable rank   effective rank   norm
    ───────────────────────────────────────────────────────────────────────────────────────────────────
    kernel   float32[2,2]   1 matrix 2×2    4       3       1.333         1.562             1.98      5
    """
    spectra = spectra_of(tree, out_axis, batch_axis)
    leaves = dict(leaves_with_paths(tree))
    return SpectrumTable(
        tuple(
            _row(path, leaves[path], matrices_in(leaves[path], out_axis, batch_axis), s) for path, s in spectra.items()
        )
    )


def _row(path: str, leaf: Any, seen: str, s: np.ndarray) -> Spectrum:
    largest, smallest = s[:, 0], s[:, -1]
    whole = np.where(largest > 0, np.sum(s, axis=1), 1.0)
    most = np.where(largest > 0, largest, 1.0)
    shares = s / whole[:, None]
    entropy = -np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), axis=1)
    squares = np.sum((s / most[:, None]) ** 2, axis=1)
    condition = np.where(smallest == 0, np.inf, largest / np.where(smallest == 0, 1.0, smallest))
    effective = np.where(largest == 0, 0.0, np.exp(entropy))
    norm = most * np.sqrt(squares)
    return Spectrum(path, describe(leaf), seen, largest, smallest, condition, squares, effective, norm)


def _range(numbers: np.ndarray) -> str:
    """Returns a number, or the least and the greatest of several. NaN stands beside them."""
    known = numbers[~np.isnan(numbers)]
    cells = [f"{number:.4g}" for number in (known.min(), known.max())] if known.size else []
    parts = [" to ".join(dict.fromkeys(cells))] * bool(cells) + ["nan"] * (known.size < numbers.size)
    return " and ".join(parts)


def spectra_of(tree: Any, out_axis: Axes, batch_axis: Axes) -> dict[str, np.ndarray]:
    """Returns the singular values of all kernels by path, as arrays (matrices, values), NaN where one is not finite."""
    check_no_optimizer_state(tree)
    stacked = len(as_tuple(checked_axes(batch_axis, name="batch_axis")))
    checked_axes(out_axis, name="out_axis")
    leaves = leaves_with_paths(tree)
    is_array = [path for path, _ in leaves] == [""]
    if is_array:
        leaves = [("", with_values(tree, name="tree"))]
        if leaves[0][1].ndim < stacked + 2:
            raise ValueError(f"`tree` must have a rank of at least {stacked + 2}, got {describe(tree)}")
    spectra: dict[str, np.ndarray] = {}
    for path, leaf in leaves:
        if not is_float_array(leaf) or leaf.ndim < stacked + 2:
            continue
        if not leaf.size:
            where = f" at `{path}`" if path else ""
            raise ValueError(f"`tree` must hold no empty arrays, got {describe(leaf)}{where}")
        try:
            check_values(leaf, name="tree")
            wide: Any = np.asarray(leaf).astype(np.float64)  # also where JAX has no float64
            matrices, layout = as_vectors(wide, View("rows", out_axis, batch_axis))
        except (TypeError, ValueError) as error:
            raise type(error)(f"at `{path}`: {error}" if path else str(error)) from error
        spectra[path] = np.stack([_spectrum(matrix) for matrix in np.moveaxis(np.asarray(matrices), layout.batch, 0)])
    if not spectra:
        raise ValueError(f"`tree` must hold a floating-point array of rank >= {stacked + 2}, got none")
    return spectra


def _spectrum(matrix: np.ndarray) -> np.ndarray:
    """Returns the singular values of a matrix, with 0 for those that are rounding."""
    if not np.isfinite(matrix).all():
        return np.full(min(matrix.shape), np.nan)
    values = np.linalg.svd(matrix, compute_uv=False)
    return np.where(values > max(matrix.shape) * np.finfo(np.float64).eps * values[0], values, 0.0)
