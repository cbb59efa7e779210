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
    """Returns the largest root of a r³ + b r = c, by Newton's method from above.

    That is the equation over 4 · max(step, ¼), whose numbers do not overflow. Left of its start the function is convex,
    so each step stays above the root. Only where step = ¼ and s = 0 three roots meet at 0, to which the steps come by a
    third of the way each time.
    """
    a, b, c, _ = _coefficients(s, step)
    is_moved = step > 0
    far = 1 + jnp.cbrt(s) / jnp.cbrt(jnp.where(is_moved, step, jnp.ones_like(step))) / float(np.cbrt(4))
    start = jnp.maximum(s, 1)
    start = jnp.where(is_moved, jnp.minimum(start, far), start)

    def newton(_: int, r: jax.Array) -> jax.Array:
        slope = 3 * a * r * r + b
        return jnp.maximum(r - (a * r * r * r + b * r - c) / jnp.where(slope > 0, slope, jnp.ones_like(slope)), 0)

    return jax.lax.fori_loop(0, 60, newton, start)


def _coefficients(s: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    most = jnp.maximum(step, 0.25)
    return step / most, (0.25 - step) / most, s / most * 0.25, most


@_towards_one.defjvp
def _towards_one_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (s, step), (ds, dstep) = primals, tangents
    r = _towards_one(s, step)
    a, b, _, most = _coefficients(s, step)
    slope = 3 * a * r * r + b
    # Where it does not fit, the cube of r ends well below the largest number, so that a sum of such has no NaN.
    cube = jnp.minimum(r * (r - 1) * (r + 1), 1e-6 * float(np.finfo(r.dtype).max))
    change = ds / most * 0.25 - dstep / most * cube
    meets = slope <= 0
    return r, jnp.where(meets, jnp.zeros_like(change), change / jnp.where(meets, jnp.ones_like(slope), slope))
