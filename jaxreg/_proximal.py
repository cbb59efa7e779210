"""An optax transformation that ends each step of an optimizer with a prox step of the rules."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxreg._alike import divided_alike
from jaxreg._base import Sum
from jaxreg._checks import at_count, check_bool, check_key, checked_scalar, describe, is_float_array
from jaxreg._met import Met
from jaxreg._metric import Metric, Weight, check_adam, check_state, check_steps, weights
from jaxreg._numerics import accumulation_dtype, add_up, times_strength
from jaxreg._paths import leaves_with_paths
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


class ProximalState(NamedTuple):
    """The state of `proximal`.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      penalty: the penalty of the parameters that the last update met, before `scale`, a float32 scalar. It is 0 before
        the first update, and None where it is not tracked. Constraints count as 0.
      key: the data of the random key for the next update, or None.
      memory: what the rules keep for each parameter, as `Rules.init` makes it, or `()`.
      inner_state: the state of the inner optimizer.
    """

    count: jax.Array  # type: ignore[assignment]  # optax's name, which hides `tuple.count`
    penalty: jax.Array | None
    key: jax.Array | None
    memory: Any
    inner_state: Any


def proximal(
    inner: optax.GradientTransformation,
    rules: Rules,
    learning_rate: float | jax.Array | optax.Schedule | None = None,
    *,
    metric: Metric | None = None,
    check: bool = True,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    eps_root: float | jax.Array = 0.0,
    cap: float | jax.Array | None = 10.0,
    scale: float | jax.Array | optax.Schedule = 1.0,
    track: bool = True,
    key: jax.Array | None = None,
    memory: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Ends each step of `inner` with a prox step of the rules, which reaches exact zeros: p' = prox(p + u).

    Training then minimizes loss + rules, or `init` raises an error. The penalty belongs here *or* in the loss, not in
    both. `jaxreg.proximal_sgd` and `jaxreg.proximal_adam` are this around SGD and Adam, and take the learning rate
    once. Take `proximal` for other optimizers, and for chains.

    The prox must be taken in the metric in which `inner` steps: p' = argmin_y ½Σ D(y − (p + u))² + η·rules(y), where
    the update at rest is u = −η·gradient/D. A weight is then at rest where the gradient of loss + rules is 0.

    - Without `metric`, a parameter for which `inner` has the second moment of Adam gets Adam's D = √v̂ + eps. Any other
      parameter gets D = 1, as for SGD.
    - `metric="adam"` is Adam's D for all parameters. Its regularizers need a `has_metric_prox`, as L1 and GroupLasso
      have it. It refuses penalties with flat parts, such as MCP and L0, because D goes to 0 there, and those whose prox
      takes a single step, such as Nuclear.
    - `metric="euclidean"` is D = 1, whatever `inner` is. Under an adaptive optimizer that does *not* solve loss +
      rules. It prunes by size: gradients have a size of about 1 there, and strengths are relative to that.
    - A function from the state of `inner` to a tree of D is for optimizers that jaxreg does not know. The tree has the
      structure of the parameters, and holds arrays of their shapes, or numbers.

    Rules may hold constraints too. Each step is projected on them in the Euclidean metric under every optimizer,
    uncapped, as Keras does, the first step included. The set then holds after each step, to the rounding of the step
    that leads there. Under an adaptive optimizer the result is feasible, and need not be the minimum in the set. Where
    all rules are constraints, no learning rate is needed, and any optimizer will do. A sum such as `L1(0.1) + NonNeg()`
    has an exact prox in both metrics, where both are for single weights.

    To check this, `init` runs `inner` on small constant gradients. The steps times D must be as long as `learning_rate`
    says. This finds another rate, momentum (η/(1 − m) is then the rate to give), another `b2` or `eps`, a scale after
    Adam, and metrics that are not known. It takes about 0.5 seconds, and 2 for 600 parameters. A tree of more than
    4,096 weights is replaced by one of the same paths and ranks, with at most 2 weights along an axis, so sizes are not
    seen. The check
    does not run for `metric="euclidean"`, except that no parameter with a penalty may be one that `inner` never moves.
    `check=False` leaves it out.

    Weight decay inside, as in `optax.adamw`, is decoupled and stays what it is: it solves no stated problem. Nor does
    clipping, before or after Adam, whose bound is below the norm of the penalty's own gradient, which the loss must
    balance at rest. The bound of `optax.adaptive_grad_clip` goes to 0 with the weights, and holds zeros where they are.
    The gradient of `L1(0.15)` for 100 weights has the norm 1.5. Behind `optax.clip_by_global_norm(1.0)` all weights of
    a test went to 0, where the solution keeps all of them and shortens each by 0.15. With a bound of 2 it was right.

    Wrap it in `optax.MultiSteps`, `optax.apply_if_finite`, `optax.lookahead` or `optax.contrib.sam`. They do not go
    inside, and nothing follows it in a chain. `optax.masked`, `optax.partition` and `optax.freeze` go around it too.
    Inject numbers around it, by `optax.inject_hyperparams(jaxreg.proximal_adam, static_args=("rules",))`. Averages,
    such as the slow weights of `lookahead`, have no exact zeros of their own.

    Updates come back in the wider dtype of update and parameter, which is exact at zero: `optax.apply_updates` then
    gives 0.0. Inside `optax.apply_if_finite`, gradients must have the dtype of the parameters, or a wider one. None,
    `MaskedNode` and parameters that no rule penalizes pass through.

    Args:
      inner: any optimizer or chain, such as `optax.adam(learning_rate)`.
      rules: `jaxreg.Rules` whose regularizers all have a prox, and constraints.
      learning_rate: that of `inner`, a number >= 0 or an optax schedule, which is read at the same count. It may be
        left out where no rule has a penalty.
      metric: None, "euclidean", "adam" or a function, as above.
      check: whether `init` runs the check.
      b2, eps, eps_root: those of the Adam in `inner`.
      cap: how far the prox may move a weight in one step of Adam, in units of the learning rate: a number greater than
        1, or None for any distance. It matters where v̂ ≈ 0 and a weight would vanish at once, such as the embedding of
        a token that has not been seen. At rest the prox undoes the step of Adam, which is at most (1 − b1)/√(1 − b2)
        units long, 3.2 by default, so a larger cap changes no solution. It holds for Adam's D alone.
      scale: a number >= 0, or an optax schedule, that multiplies the penalties and not the constraints. Schedules are
        read at the count of updates before this one, also those inside the rules. Under `optax.inject_hyperparams` the
        scale can be set in a running state, without recompiling: `optax.tree.set(state, scale=0.5)`.
      track: whether the state holds the penalty, which costs one more pass over the parameters.
        `optax.tree.get(state, "penalty")` finds it.
      key: a key from `jax.random.key`, for rules that sample. It is split at each update.
      memory: what rules keep for each parameter, from `rules.init(...)`, for `Anchor`, `KeepNorm` and their like. It is
        copied into the state. By default it is `rules.init(params)` at `init`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with the state `ProximalState`.

    Raises:
      TypeError, ValueError: an argument has another type or is out of range, the learning rate is missing, or a
        regularizer has no prox, or none in Adam's metric. On `init`: the check fails, or `inner` holds one of the
        wrappers above, injected numbers, a line search, or what else changes its steps by itself, or `memory` has no
        entry for a parameter, or one of another shape. On `update`: `params` is missing or has other shapes, or the
        rules raise an error.

    >>> params = {"kernel": jnp.array([2.0, -0.01])}
    >>> rules = jaxreg.Rules((r"kernel$", jaxreg.L1(0.5)))
    >>> tx = jaxreg.proximal(optax.sgd(0.1), rules, learning_rate=0.1)
    >>> updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"]
    Array([1.95, 0.  ], dtype=float32)

    Source: Parikh and Boyd, Proximal algorithms, 2014; Yun, Lozano and Yang, Adaptive proximal gradient methods for
    structured neural networks (ProxGen), 2021.
    """
    check_optimizer(inner)
    if metric not in (None, "euclidean", "adam") and not callable(metric):
        raise ValueError(f"`metric` must be None, 'euclidean', 'adam' or a function, got {describe(metric)}")
    check_bool(check, name="check")
    _check_rules(rules, metric)
    with_penalty = [i for i, r in enumerate(rules.regularizers) if r is not None and r._has_penalty()]
    if learning_rate is None and with_penalty:
        raise TypeError(
            f"`learning_rate` must be a number, got None; {rules.label(with_penalty[0])} has "
            "a penalty, and the rate of `inner` may be left out only where all rules are constraints"
        )
    if learning_rate is not None and not callable(learning_rate):
        learning_rate = checked_scalar(learning_rate, name="learning_rate")
    b2, eps, eps_root = (checked_scalar(v, name=n) for v, n in ((b2, "b2"), (eps, "eps"), (eps_root, "eps_root")))
    if not isinstance(b2, jax.Array) and b2 >= 1:
        raise ValueError(f"`b2` must be < 1, got {b2}")
    if cap is not None:
        cap = checked_scalar(cap, name="cap", above=1.0)
    if not callable(scale):
        scale = checked_scalar(scale, name="scale")
    check_bool(track, name="track")
    check_key(key)
    check_memory(rules, memory)
    wrapped = optax.with_extra_args_support(inner)

    def weigh(inner_state: Any) -> Any:
        return weights(metric, inner_state, b2, eps, eps_root)

    def check_metric(inner_state: Any, penalized: list[Met]) -> None:
        weight = weigh(inner_state)
        for met in penalized:
            if met.has_penalty:
                _weight(met, met.leaf, weight)

    def init_fn(params: optax.Params) -> ProximalState:
        inner_state = wrapped.init(params)
        kept = first_memory(rules, memory, params)
        if metric == "adam":
            check_adam(inner_state)
        # Rules are strict when they are applied: here the tree may be empty, or have placeholders for leaves.
        leaves = [(path, leaf) for path, leaf in leaves_with_paths(params) if is_float_array(leaf) and leaf.size]
        now = rules_at(rules, jnp.zeros((), jnp.int32))
        found = now.met_leaves(leaves, strict=False, memory=kept if leaves else ())
        penalized = [met for met in found if met.regularizer is not None]
        for met in penalized:
            if met.has_constraint:
                met.check()
        may_be = bool(with_penalty) and not leaves  # a tree that is empty here may have had parameters
        check_state(inner_state, has_penalties=may_be or any(met.has_penalty for met in penalized))
        if check and penalized:
            jax.eval_shape(lambda state: check_metric(state, penalized), inner_state)
            check_steps(wrapped, params, penalized, weigh, learning_rate, is_choice=metric == "euclidean")
        return ProximalState(jnp.zeros((), jnp.int32), first_penalty(track), first_key(key), kept, inner_state)

    def update_fn(
        updates: optax.Updates, state: ProximalState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ProximalState]:
        check_call(updates, state, params, ProximalState)
        updates, inner_state = wrapped.update(updates, state.inner_state, params, **extra_args)
        pairs = Pairs.of(updates, params)
        used_key, next_key = split_key(key, state.key)
        paths = pairs.paths()
        places = {path: i for i, path in enumerate(paths)}
        # Where updates and parameters have a None, a rule may be for what stood there.
        leaves = [
            optax.MaskedNode() if pairs.is_frozen(i) and param is None else param
            for i, param in enumerate(pairs.params)
        ]
        now = rules_at(rules, state.count)
        met = now.met_leaves(list(zip(paths, leaves, strict=True)), memory=state.memory)
        penalized = {places[m.path]: m for m in met if m.regularizer is not None}

        changed: dict[int, jax.Array] = {}
        penalties: list[jax.Array] = []
        if penalized:
            rate = jnp.zeros(())
            if any(m.has_penalty for m in penalized.values()):
                rate = at_count(learning_rate, state.count, name="learning_rate")
            step = times_strength(rate, at_count(scale, state.count, name="scale"), name="scale")
            furthest = None if cap is None else times_strength(rate, cap, name="cap")
            weight = weigh(inner_state)
            turn: jax.Array | bool = True
            for i, m in penalized.items():
                if not is_float_array(param := jnp.asarray(m.leaf)):
                    raise TypeError(f"at `{m.path}`, under {m.rule}: the parameter must be real, got {describe(param)}")
                if track and m.has_penalty:
                    penalties.append(m.penalty(used_key))
                    turn &= _once(m, penalties[-1])
                if not pairs.is_frozen(i):
                    update = _in_turn(turn, jnp.asarray(pairs.updates[i]))
                    changed[i], new = _proxed_update(m, update, _in_turn(turn, step), weight, furthest)
                    turn &= _once(m, new)
        tracked = add_up(penalties).astype(jnp.float32) if track else None
        count = optax.safe_increment(state.count)
        kept = next_memory(now, state.memory, params)
        return pairs.rebuilt(changed), ProximalState(count, tracked, next_key, kept, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _proxed_update(
    met: Met,
    update: jax.Array,
    step: jax.Array,
    weight: Callable[[str, jax.Array], Weight | None],
    furthest: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the update that moves a parameter to prox(p + u), under Adam at most `furthest` from p + u.

    The new parameter comes with it.
    """
    param = jnp.asarray(met.leaf)
    wide = accumulation_dtype(update.dtype, param.dtype)
    moved = param.astype(wide) + update.astype(wide)
    known = _weight(met, moved, weight) if met.has_penalty else None
    size = step if known is None else step.astype(wide) / jnp.maximum(known.diagonal, 1e-30)
    limit = None
    if known is not None and known.is_adam and furthest is not None:
        limit = functools.partial(_no_further, distance=furthest)
    new = met._replace(leaf=moved).prox(size, limit)
    change = (new - param.astype(wide)).astype(_wider(param.dtype, update.dtype))
    if met.has_constraint:
        change = _inside(change, update.astype(change.dtype), param.astype(wide), moved, new)
    return divided_alike(change, param), new


def _inside(change: jax.Array, update: jax.Array, param: jax.Array, moved: jax.Array, new: jax.Array) -> jax.Array:
    """Returns an update that leads to a projected parameter, rounded so that it does not fall short of the set.

    A weight that is not moved keeps the update of the optimizer, to the bit. Another one may be far from where it goes,
    such as at the first step, so that no update leads there exactly. The next number is then taken.
    """
    short = (param + change.astype(param.dtype) - new) * jnp.sign(moved - new) > 0
    further = jax.lax.nextafter(change, jnp.where(moved > new, -np.inf, np.inf).astype(change.dtype))
    return jnp.where(new == moved, update, jnp.where(short, further, change))


def _once(met: Met, array: jax.Array) -> jax.Array | bool:
    """Returns True, which XLA on CPUs knows once it has computed an array, if that takes more than one pass.

    Groups and matrices take more. XLA does not see that no number is both below and above 0. The
    conditional keeps it from doing this for each weight.
    """
    is_one_pass = not met.seen() or not array.size
    if is_one_pass or jax.default_backend() != "cpu" or not jax.typeof(array).sharding.mesh.empty:
        return True
    number = array[(0,) * array.ndim]
    never = (number < 0) & (number > 0)
    return jax.lax.cond(never, jnp.zeros_like, jnp.ones_like, never)


def _in_turn(turn: jax.Array | bool, x: jax.Array) -> jax.Array:
    """Returns `x`, which XLA on CPUs then computes after `turn`, where that is True.

    It computes there what it can as soon as it can, so the temporaries of all parameters would be held at once. Nor
    would it know that the penalty of a parameter comes before the new one in its place, and copy the old one.
    """
    return x if turn is True else jnp.where(turn, x, jnp.zeros_like(x))


def _wider(first: Any, second: Any) -> Any:
    """Returns the dtype that holds all values of two dtypes. JAX promotes 8-bit floats to no other one."""
    if first == second:
        return first
    sizes = (first.itemsize, second.itemsize)
    if 1 in sizes:
        return jnp.float32 if sizes == (1, 1) else max(first, second, key=lambda dtype: dtype.itemsize)
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)


def _weight(met: Met, param: Any, weight: Callable[[str, Any], Weight | None]) -> Weight | None:
    """Returns the D of the metric for a parameter, for which its regularizer must have a prox."""
    assert met.regularizer is not None
    with met.located():
        known = weight(met.path, param)
        if known is not None and (known.is_adam or known.diagonal.ndim) and not met.regularizer.has_metric_prox:
            raise ValueError(f"`inner` has a metric of its own there, and {_no_metric_prox(repr(met.regularizer))}")
    return known


def _check_rules(rules: Any, metric: Metric | None) -> None:
    if not isinstance(rules, Rules):
        raise TypeError(f"`rules` must be jaxreg.Rules, since a function has no prox; got {describe(rules)}")
    for index, regularizer in enumerate(rules.regularizers):
        if regularizer is None:
            continue
        in_metric = metric == "adam" and regularizer._has_penalty()
        if regularizer.has_metric_prox if in_metric else regularizer.has_prox:
            continue
        if isinstance(regularizer, Sum) and not regularizer._is_penalty() and not regularizer.has_prox:
            raise ValueError(f"`rules`: {rules.label(index)} has no prox, because {regularizer.obstacle()}")
        if regularizer.has_prox:
            raise ValueError(f"`rules`: {_no_metric_prox(rules.label(index))}")
        raise ValueError(
            f"`rules`: {rules.label(index)} has no prox in closed form; "
            "add its gradients by `jaxreg.add_penalty_gradients`, in rules of their own"
        )


def _no_metric_prox(rule: str) -> str:
    return f"{rule} has no prox in the metric of Adam; take metric='euclidean' for it"


def _no_further(new: jax.Array, old: jax.Array, distance: jax.Array) -> jax.Array:
    """Returns `new` where it is at most `distance` from `old`, else the point at that distance on the way to it."""
    change = new - old
    distance = distance.astype(new.dtype)
    return jnp.where(jnp.abs(change) > distance, old + jnp.clip(change, -distance, distance), new)
