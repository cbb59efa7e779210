"""Rules as optax gradient transformations."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxpr_as_fun
from jax.tree_util import keystr, tree_flatten_with_path

from jaxreg._numerics import as_real, checked_scalar, checked_strength, describe, is_float_array
from jaxreg._paths import is_masked


class PenaltyState(NamedTuple):
    """State of `add_penalty_gradients`.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      penalty: the penalty at the parameters that the last update met, before `scale`, a float32 scalar;
        NaN before the first update, and where it is not tracked.
      key: the data of the random key for the next update, or None.
    """

    count: jax.Array  # type: ignore[assignment]  # optax's name, which hides `tuple.count`
    penalty: jax.Array
    key: jax.Array | None


def _untracked() -> jax.Array:
    return jnp.full((), math.nan, jnp.float32)


def add_penalty_gradients(
    rules: Callable[..., jax.Array],
    *,
    scale: float | jax.Array | optax.Schedule = 1.0,
    track: bool = True,
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adds `scale` times the gradient of `rules(params)` to the updates.

    Before `optax.scale_by_adam` the penalty is coupled: the optimizer rescales it with the gradient of the loss, as in
    Keras. After it, before the learning rate, it is decoupled: `L2(l2)` there is `optax.adamw(weight_decay=2 * l2)`.
    After `optax.clip_by_global_norm` it is not clipped.

    Updates keep their dtype. None, `MaskedNode` and leaves that are no real floating-point arrays pass through.

    Args:
      rules: `jaxreg.Rules`, or any function from a tree to a scalar, such as a sum of several. Under
        `optax.inject_hyperparams` it belongs in `static_args`.
      scale: a number >= 0, or an optax schedule, read at the count of updates before this one.
      track: whether the state holds the penalty, which costs one more pass over the parameters.
        `optax.tree.get(state, "penalty")` finds it.
      key: a key from `jax.random.key`, for rules that sample. It is split at each update; `rules` is then
        called as `rules(params, key=...)`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with the state `PenaltyState`.

    Raises:
      TypeError, ValueError: `rules` is no function, or `scale` no number >= 0 and no schedule; when updating, `params`
        is missing, an update has another shape than its parameter, or what `rules` raises.

    >>> params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
    >>> rules = jaxreg.Rules((r"kernel$", jaxreg.L2(0.5)))
    >>> tx = optax.chain(jaxreg.add_penalty_gradients(rules), optax.sgd(0.1))
    >>> updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    >>> updates["kernel"]
    Array([-0.1,  0.2], dtype=float32)
    >>> float(optax.tree.get(state, "penalty"))
    2.5

    Source: Loshchilov and Hutter, Decoupled weight decay regularization, 2019, for the two placements.
    """
    if not callable(rules) or isinstance(rules, type):
        raise TypeError(f"`rules` must be a function from a tree to a scalar, got {describe(rules)}")
    if not callable(scale):
        scale = checked_strength(scale, name="scale")
        check_scalar(scale, name="scale")
    if not isinstance(track, bool):
        raise TypeError(f"`track` must be a bool, got {describe(track)}")

    if key is not None and not jnp.issubdtype(getattr(key, "dtype", np.object_), jax.dtypes.prng_key):
        raise TypeError(f"`key` must be a key from `jax.random.key`, got {describe(key)}")

    def init_fn(params: optax.Params) -> PenaltyState:
        del params
        data = None if key is None else jnp.array(jax.random.key_data(key))
        return PenaltyState(jnp.zeros((), jnp.int32), _untracked(), data)

    def update_fn(
        updates: optax.Updates, state: PenaltyState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, PenaltyState]:
        del extra_args
        pairs = Pairs.of(updates, params)

        next_key, with_key = None, {}
        if key is not None and state.key is not None:
            pair = jax.random.split(jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(key)))
            next_key, with_key = jax.random.key_data(pair[0]), {"key": pair[1]}

        def penalty_of(*values: jax.Array) -> jax.Array:
            leaves = list(pairs.params)
            for i, value in zip(pairs.chosen, values, strict=True):
                leaves[i] = value
            return checked_scalar(rules(pairs.treedef.unflatten(leaves), **with_key), of="`rules`")

        values = [jnp.asarray(pairs.params[i]) for i in pairs.chosen]
        penalty, gradients = _value_and_gradients(penalty_of, values, scale(state.count) if callable(scale) else scale)
        leaves = list(pairs.updates)
        for i, gradient in zip(pairs.chosen, gradients, strict=True):
            if gradient is not None:
                update = jnp.asarray(leaves[i])
                leaves[i] = update + gradient.astype(update.dtype)
        tracked = penalty.astype(jnp.float32) if track else _untracked()
        new_state = PenaltyState(optax.safe_increment(state.count), tracked, next_key)
        return pairs.treedef.unflatten(leaves), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def check_scalar(value: Any, *, name: str) -> None:
    if jnp.ndim(value):
        raise ValueError(f"`{name}` must be a scalar, got {describe(value)}")


class Pairs(NamedTuple):
    """The leaves of updates with those of parameters, and which of them are two arrays of real numbers."""

    treedef: Any
    updates: list[Any]
    params: list[Any]
    chosen: list[int]

    @classmethod
    def of(cls, updates: optax.Updates, params: optax.Params | None) -> "Pairs":
        if params is None:
            raise ValueError("`params` must be given to `update`: tx.update(grads, state, params), got None")
        treedef: Any
        located, treedef = tree_flatten_with_path(updates, is_leaf=lambda leaf: leaf is None or is_masked(leaf))
        try:
            param_leaves = treedef.flatten_up_to(params)
        except ValueError as error:
            raise ValueError(f"`updates` and `params` must have the same structure: {error}") from error
        chosen = []
        for i, ((path, update), param) in enumerate(zip(located, param_leaves, strict=True)):
            if is_float_array(update) and is_float_array(param):
                chosen.append(i)
                if update.shape != param.shape:
                    raise ValueError(
                        f"`updates` must have the shapes of `params`, got {describe(update)} for {describe(param)} "
                        f"at `{keystr(path, simple=True, separator='/')}`"
                    )
        return cls(treedef, [leaf for _, leaf in located], param_leaves, chosen)


def _value_and_gradients(
    function: Callable[..., jax.Array], values: list[jax.Array], scale: Any
) -> tuple[jax.Array, list[jax.Array | None]]:
    """`function(*values)`, and `scale` times its gradient, None for a value that it does not use.

    An update to which nothing is added is then the one that came in, and is not copied.
    """
    traced = jax.make_jaxpr(function)(*values)
    read = {id(variable) for equation in traced.jaxpr.eqns for variable in equation.invars}
    read |= {id(variable) for variable in traced.jaxpr.outvars}
    used = [id(variable) in read for variable in traced.jaxpr.invars]

    def of_used(*some: jax.Array) -> jax.Array:
        rest = iter(some)
        (value,) = jaxpr_as_fun(traced)(*(next(rest) if u else v for u, v in zip(used, values, strict=True)))
        return value

    value, pull_back = jax.vjp(of_used, *(v for u, v in zip(used, values, strict=True) if u))
    scale = as_real(scale, name="scale")
    check_scalar(scale, name="scale")
    # The ones give the cotangent the type of the value, under `jax.shard_map` its varying axes too.
    gradients = iter(pull_back(scale.astype(value.dtype) * jnp.ones_like(value)))
    return value, [next(gradients) if u else None for u in used]
