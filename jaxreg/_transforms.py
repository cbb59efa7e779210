"""Penalties as optax gradient transformations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import jaxpr_as_fun

from jaxreg._alike import divided_alike
from jaxreg._checks import at_count, check_bool, check_key, checked_scalar, describe
from jaxreg._evaluate import is_nothing
from jaxreg._numerics import checked_penalty, times_strength
from jaxreg._rules import Rules
from jaxreg._updates import (
    Pairs,
    check_call,
    check_memory,
    check_optimizer,
    first_key,
    first_memory,
    first_penalty,
    next_memory,
    rules_at,
    split_key,
)


class PenaltyState(NamedTuple):
    """The state of `add_penalty_gradients`.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      penalty: the penalty of the parameters that the last update met, before `scale`, a float32 scalar. It is 0 before
        the first update, and None where it is not tracked.
      key: the data of the random key for the next update, or None.
      memory: what the rules keep for each parameter, as `Rules.init` makes it, or `()`.
    """

    count: jax.Array  # type: ignore[assignment]  # optax's name, which hides `tuple.count`
    penalty: jax.Array | None
    key: jax.Array | None
    memory: Any = ()


def add_penalty_gradients(
    rules: Callable[..., jax.Array],
    *,
    scale: float | jax.Array | optax.Schedule = 1.0,
    cautious: bool = False,
    track: bool = True,
    key: jax.Array | None = None,
    memory: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adds `scale` times the gradient of `rules(params)` to the updates.

    Its place in a chain decides what that means. Before `optax.scale_by_adam` the penalty is coupled: the optimizer
    rescales it with the gradient of the loss, as in Keras. After it, and before the learning rate, the penalty is
    decoupled: `L2(l2)` there is `optax.adamw(weight_decay=2 * l2)`. Never put it after a whole optimizer such as
    `optax.adam(1e-3)`, whose updates already point downhill. The weights would grow: with `L2(0.05)`, a weight of 1
    grows to 13,780 in 100 steps. After `optax.clip_by_global_norm` the penalty is not clipped.

    Updates keep their shapes and dtypes. None, `MaskedNode` and leaves that are not floating-point arrays pass through.
    At the awkward points of a penalty, such as |x| at 0, the gradient is that of its regularizer. A complex parameter,
    which a function may penalize, gets its gradient as optax takes it: the conjugate of that of `jax.grad`.

    Args:
      rules: `jaxreg.Rules`, or any function from a tree to a scalar, such as a sum of several. Under
        `optax.inject_hyperparams` it belongs in `static_args`.
      scale: a number >= 0, or an optax schedule, which is read at the count of updates before this one. So are
        schedules inside the rules. Under `optax.inject_hyperparams` the scale can be set in a running state, without
        recompiling: `optax.tree.set(state, scale=0.5)`.
      cautious: whether the gradient of the penalty is left out for each weight where it points against the update that
        comes in, so that it only ever speeds up the way that the weight goes anyway. A weight whose update or gradient
        is 0 takes it.
      track: whether the state holds the penalty, which costs one more pass over the parameters.
        `optax.tree.get(state, "penalty")` finds it.
      key: a key from `jax.random.key`, for rules that sample. It is split at each update, and `rules` is then
        called as `rules(params, key=...)`.
      memory: what rules keep for each parameter, from `rules.init(...)`, for regularizers such as `Anchor`. It is
        copied into the state. By default it is `rules.init(params)` at `init`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with the state `PenaltyState`.

    Raises:
      TypeError, ValueError: `rules` is not a function or holds a constraint, or `scale` is neither a number >= 0 nor a
        schedule. On `init`: `memory` has no entry for a parameter, or one of another shape. On `update`: `params` is
        missing, an update has another shape than its parameter, or `rules` raises an error.

    >>> params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
    >>> rules = jaxreg.Rules((r"kernel$", jaxreg.L2(0.5)))
    >>> tx = optax.chain(jaxreg.add_penalty_gradients(rules), optax.sgd(0.1))
    >>> updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    >>> updates["kernel"]
    Array([-0.1,  0.2], dtype=float32)
    >>> float(optax.tree.get(state, "penalty"))
    2.5

    Source: Loshchilov and Hutter, Decoupled weight decay regularization, 2019, for the two placements; Chen et al.,
    Cautious weight decay, 2025, for `cautious`.
    """
    _check_function(rules)
    if not callable(scale):
        scale = checked_scalar(scale, name="scale")
    check_bool(cautious, name="cautious")
    check_bool(track, name="track")
    check_key(key)
    check_memory(rules, memory)

    def init_fn(params: optax.Params) -> PenaltyState:
        kept = first_memory(rules, memory, params)
        return PenaltyState(jnp.zeros((), jnp.int32), first_penalty(track), first_key(key), kept)

    def update_fn(
        updates: optax.Updates, state: PenaltyState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, PenaltyState]:
        del extra_args
        check_call(updates, state, params, PenaltyState)
        pairs = Pairs.of(updates, params)
        used_key, next_key = split_key(key, state.key)
        factor = at_count(scale, state.count, name="scale")
        now = rules_at(rules, state.count)
        updates, penalty = _with_gradients(pairs, now, factor, used_key, state.memory, cautious)
        tracked = penalty.astype(jnp.float32) if track else None
        kept = next_memory(now, state.memory, params)
        return updates, PenaltyState(optax.safe_increment(state.count), tracked, next_key, kept)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class DecoupledState(NamedTuple):
    """The state of `decoupled`.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      penalty: the penalty of the parameters that the last update met, before `scale`, a float32 scalar. It is 0 before
        the first update, and None where it is not tracked.
      key: the data of the random key for the next update, or None.
      memory: what the rules keep for each parameter, as `Rules.init` makes it, or `()`.
      inner_state: the state of the inner optimizer.
    """

    count: jax.Array  # type: ignore[assignment]  # optax's name, which hides `tuple.count`
    penalty: jax.Array | None
    key: jax.Array | None
    memory: Any
    inner_state: Any


def decoupled(
    inner: optax.GradientTransformation,
    rules: Callable[..., jax.Array],
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    scale: float | jax.Array | optax.Schedule = 1.0,
    cautious: bool = False,
    track: bool = True,
    key: jax.Array | None = None,
    memory: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Decays parameters beside the steps of an optimizer, as AdamW does: p' = p + u − η · scale · ∇R(p).

    The update u of `inner` and the gradient of R = `rules` are added, so the optimizer neither sees nor rescales the
    penalty. With `L2(l2)` and Adam inside it is `optax.adamw(weight_decay=2 * l2)`. Use it for weight decay around any
    optimizer, with the same rules as everywhere else.

    Under an adaptive optimizer it solves no stated problem: training rests where u = η · ∇R(p), which is neither the
    minimum of the loss nor that of loss plus penalty. Under plain SGD it is the same as the penalty in the loss. For
    the minimum of loss plus penalty use `jaxreg.proximal`, or put the penalty in the loss.

    Updates keep their shapes and dtypes. None, `MaskedNode` and leaves that are not floating-point arrays pass through.
    At the awkward points of a penalty, such as |x| at 0, the gradient is that of its regularizer. A complex parameter,
    which a function may penalize, gets its gradient as optax takes it: the conjugate of that of `jax.grad`.

    Args:
      inner: any optimizer or chain, such as `optax.adam(learning_rate)`.
      rules: `jaxreg.Rules`, or any function from a tree to a scalar. Under `optax.inject_hyperparams` it belongs in
        `static_args`.
      learning_rate: η, a number >= 0 or an optax schedule, which is read at the count of updates before this one. With
        the rate of `inner` it is AdamW's decay. For decay that does not depend on the peak rate, give `schedule`
        divided by its peak.
      scale: a number >= 0, or an optax schedule, that multiplies the penalty. Schedules are read at the count of
        updates before this one, also those inside the rules. Under `optax.inject_hyperparams` the scale can be set in a
        running state, without recompiling: `optax.tree.set(state, scale=0.5)`.
      cautious: whether the decay is left out for each weight where it points against the step of `inner`, as in
        cautious weight decay. A weight whose step or decay is 0 takes it.
      track: whether the state holds the penalty, which costs one more pass over the parameters.
        `optax.tree.get(state, "penalty")` finds it.
      key: a key from `jax.random.key`, for rules that sample. It is split at each update, and `rules` is then
        called as `rules(params, key=...)`.
      memory: what rules keep for each parameter, from `rules.init(...)`, for regularizers such as `Anchor`. It is
        copied into the state. By default it is `rules.init(params)` at `init`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with the state `DecoupledState`.

    Raises:
      TypeError, ValueError: an argument has another type or is out of range, or `rules` holds a constraint. On `init`:
        `memory` has no entry for a parameter, or one of another shape. On `update`: `params` is missing, an update has
        another shape than its parameter, or `rules` raises an error.

    >>> params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
    >>> rules = jaxreg.Rules((r"kernel$", jaxreg.L2(0.5)))
    >>> tx = jaxreg.decoupled(optax.adam(0.1), rules, learning_rate=0.1)
    >>> updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    >>> updates["kernel"]
    Array([-0.1,  0.2], dtype=float32)

    Source: Loshchilov and Hutter, Decoupled weight decay regularization, 2019; Chen et al., Cautious weight decay,
    2025, for `cautious`.
    """
    check_optimizer(inner)
    _check_function(rules)
    if not callable(learning_rate):
        learning_rate = checked_scalar(learning_rate, name="learning_rate")
    if not callable(scale):
        scale = checked_scalar(scale, name="scale")
    check_bool(cautious, name="cautious")
    check_bool(track, name="track")
    check_key(key)
    check_memory(rules, memory)
    wrapped = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> DecoupledState:
        kept = first_memory(rules, memory, params)
        return DecoupledState(
            jnp.zeros((), jnp.int32), first_penalty(track), first_key(key), kept, wrapped.init(params)
        )

    def update_fn(
        updates: optax.Updates, state: DecoupledState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, DecoupledState]:
        check_call(updates, state, params, DecoupledState)
        updates, inner_state = wrapped.update(updates, state.inner_state, params, **extra_args)
        used_key, next_key = split_key(key, state.key)
        rate = at_count(learning_rate, state.count, name="learning_rate")
        factor = -times_strength(rate, at_count(scale, state.count, name="scale"), name="scale")
        now, pairs = rules_at(rules, state.count), Pairs.of(updates, params)
        updates, penalty = _with_gradients(pairs, now, factor, used_key, state.memory, cautious)
        tracked = penalty.astype(jnp.float32) if track else None
        count = optax.safe_increment(state.count)
        kept = next_memory(now, state.memory, params)
        return updates, DecoupledState(count, tracked, next_key, kept, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_function(rules: Any) -> None:
    if not callable(rules) or isinstance(rules, type):
        raise TypeError(f"`rules` must be a function from a tree to a scalar, got {describe(rules)}")
    if isinstance(rules, Rules):
        rules.check_penalties()


def _with_gradients(
    pairs: Pairs,
    rules: Callable[..., jax.Array],
    factor: jax.Array,
    key: jax.Array | None,
    memory: Any,
    cautious: bool,
) -> tuple[optax.Updates, jax.Array]:
    """Returns the updates plus `factor` times the gradient of the rules, and the penalty. Updates keep their dtypes.

    Where it is `cautious`, what points against the update is left out for each weight.
    """
    given = ({} if key is None else {"key": key}) | ({} if is_nothing(memory) else {"memory": memory})

    def penalty_of(*values: jax.Array) -> jax.Array:
        leaves = list(pairs.params)
        for i, value in zip(pairs.chosen, values, strict=True):
            leaves[i] = value
        return checked_penalty(rules(pairs.treedef.unflatten(leaves), **given), of="`rules`")

    values = [jnp.asarray(pairs.params[i]) for i in pairs.chosen]
    penalty, gradients = _value_and_gradients(penalty_of, values, factor)
    changed = {}
    for i, value, gradient in zip(pairs.chosen, values, gradients, strict=True):
        if gradient is not None:
            update = jnp.asarray(pairs.updates[i])
            if jnp.iscomplexobj(gradient):
                if cautious:
                    raise TypeError(
                        f"at `{pairs.paths()[i]}`: `cautious` is for real parameters, got {describe(value)}"
                    )
                gradient = gradient.conj()  # JAX has the conjugate of the gradient that optax takes
            if cautious:
                # `factor` is negative where updates are steps, so both point the same way where the signs agree.
                agrees = jnp.sign(update).astype(gradient.dtype) * jnp.sign(gradient)
                gradient = jnp.where(agrees < 0, jnp.zeros_like(gradient), gradient)
            changed[i] = divided_alike(update + gradient.astype(update.dtype), value)
    return pairs.rebuilt(changed), penalty


def _value_and_gradients(
    function: Callable[..., jax.Array], values: list[jax.Array], scale: jax.Array
) -> tuple[jax.Array, list[jax.Array | None]]:
    """Returns `function(*values)`, and `scale` times its gradient, with None for a value that it does not use.

    An update to which nothing is added is then passed on as it came, without a copy.
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
    # The ones give the cotangent the type of the value, under `jax.shard_map` its varying axes too.
    gradients = iter(pull_back(scale.astype(value.dtype) * jnp.ones_like(value)))
    return value, [next(gradients) if u else None for u in used]
