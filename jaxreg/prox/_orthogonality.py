"""The prox of the distance from orthonormal vectors."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxreg._matrix import Axes
from jaxreg._names import public
from jaxreg.prox._norms import map_singular_values_of


@public
def soft_orthogonal(x: ArrayLike, step: ArrayLike, *, out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns the matrix with singular values drawn towards 1: each σ becomes the largest root of 4τ(s³ − s) + s = σ.

    The number τ is the step. It is the prox of `jaxreg.penalties.soft_orthogonal`. See `jaxreg.SoftOrthogonal`.

    >>> print(jaxreg.prox.soft_orthogonal(jnp.diag(jnp.array([7.0, 1.0])), 0.25).round(4))
    [[1.9129 0.    ]
     [0.     1.    ]]
    """
    return map_singular_values_of(_towards_one, x, step, out_axis, batch_axis)


@jax.custom_jvp
def _towards_one(s: jax.Array, step: jax.Array) -> jax.Array:
    """Returns the largest root r of a r³ + (1 − a) r = s with a = 4 · step, by Newton's method from above.

    Left of its start the function is convex, so each step stays above the root. Only where step = ¼ and s = 0 three
    roots meet at 0, to which the steps come by a third of the way each time.
    """
    a = 4 * step
    cubic = jnp.cbrt(s) / jnp.cbrt(jnp.where(a > 0, a, jnp.ones_like(a)))
    start = jnp.maximum(s, 1)
    start = jnp.where(a > 0, jnp.minimum(start, 1 + cubic), start)

    def newton(_: int, r: jax.Array) -> jax.Array:
        slope = _slope(r, a)
        change = (a * r * r * r + (1 - a) * r - s) / jnp.where(slope > 0, slope, jnp.ones_like(slope))
        return jnp.maximum(r - change, 0)

    return jax.lax.fori_loop(0, 60, newton, start)


def _slope(r: jax.Array, a: jax.Array) -> jax.Array:
    return 3 * a * r * r + 1 - a


@_towards_one.defjvp
def _towards_one_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (s, step), (ds, dstep) = primals, tangents
    r = _towards_one(s, step)
    slope = _slope(r, 4 * step)
    # Where it does not fit, the cube of r ends well below the largest number, so that a sum of such has no NaN.
    cube = jnp.minimum(r * (r - 1) * (r + 1), 1e-6 * float(np.finfo(r.dtype).max))
    change = ds - 4 * dstep * cube
    meets = slope <= 0
    return r, jnp.where(meets, jnp.zeros_like(change), change / jnp.where(meets, jnp.ones_like(slope), slope))
