"""An array that is divided over a mesh as another one is, where only the compiler knows how that is.

On an Auto mesh the type of an array does not show how it is divided. A gradient should be divided as its parameter is,
so the compiler is told that the two are alike. `jax.experimental.shard_alike` did this, and is gone in jax 0.12.
"""

import itertools
from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxlib.mlir.dialects import sdy

from jaxreg._shards import placement

_alike_p = Primitive("divided_alike")
_groups = itertools.count()


def divided_alike(y: jax.Array, x: jax.Array) -> jax.Array:
    """Returns `y`, divided as `x` is, if `x` lies on an Auto mesh. Its cotangent is divided so too.

    Elsewhere the types say how arrays are divided. It must not be called under a `jax.jit` of ours, which traces arrays
    of one type once, however they are divided.
    """
    place = placement(x)
    if place is None or place.split is not None:
        return y
    if isinstance(x, jax.core.Tracer) or isinstance(y, jax.core.Tracer):
        # The compiler cannot change how the result of `jax.shard_map` is divided, so another operation stands between.
        return _alike(lax.optimization_barrier(y), x)
    return jax.device_put(y, x.sharding)


def _alike(y: jax.Array, x: jax.Array) -> jax.Array:
    # Each has a number of its own, because what has the same number is made alike.
    return _alike_p.bind(y, lax.stop_gradient(x), group=next(_groups))


_alike_p.def_impl(lambda y, x, **_: jax.jit(_alike)(y, x))
_alike_p.def_abstract_eval(lambda y, x, **_: y)


def _jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    (y, x), (change, _) = primals, tangents
    return _alike(y, x), change if isinstance(change, ad.Zero) else _alike(change, x)


def _transpose(cotangent: Any, y: Any, x: Any, **_: Any) -> tuple[Any, None]:
    return cotangent if isinstance(cotangent, ad.Zero) else _alike(cotangent, x), None


def _batched(arguments: Any, axes: Any, **_: Any) -> tuple[Any, int]:
    size = next(x.shape[axis] for x, axis in zip(arguments, axes, strict=True) if axis is not None)
    y, x = (batching.bdim_at_front(x, axis, size) for x, axis in zip(arguments, axes, strict=True))
    return _alike(y, x), 0


def _lowered(context: Any, y: Any, x: Any, *, group: int) -> list[Any]:
    if getattr(jax.config, "jax_use_shardy_partitioner", True):
        sdy.sharding_group(y, group)
        sdy.sharding_group(x, group)
    return [y]


ad.primitive_jvps[_alike_p] = _jvp
ad.primitive_transposes[_alike_p] = _transpose
batching.primitive_batchers[_alike_p] = _batched
mlir.register_lowering(_alike_p, _lowered)
