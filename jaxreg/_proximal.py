"""An optax transformation that ends each step of an optimizer with a prox step of the rules."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxreg._checks import as_real, check_bool, check_key, check_single, checked_scalar, describe
from jaxreg._numerics import accumulation_dtype, add_up, times_strength
from jaxreg._paths import is_masked, leaves_with_paths
from jaxreg._rules import Met, Rules
from jaxreg._updates import Pairs, check_optimizer, first_key, first_penalty, split_key

# These wrappers scale, skip or average the steps of what is inside. A prox step outside of them has another step size.
_OUTSIDE = (
    optax.ApplyIfFiniteState,
    optax.ConditionallyMaskState,
    optax.ConditionallyTransformState,
    optax.LookaheadState,
    optax.MultiStepsState,
    optax.contrib.SAMState,
)


# These change the learning rate by themselves.
_RESCALING = (
    optax.contrib.ReduceLROnPlateauState,
    optax.ScaleByBacktrackingLinesearchState,
    optax.ScaleByZoomLinesearchState,
)


class ProximalState(NamedTuple):
    """The state of `proximal`.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      penalty: the penalty of the parameters that the last update met, a float32 scalar. It is 0 before the first
        update, and None where it is not tracked.
      key: the data of the random key for the next update, or None.
      memory: `()`.
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
    metric: Literal["euclidean", "adam"] = "euclidean",
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    eps_root: float | jax.Array = 0.0,
    cap: float | jax.Array | None = 10.0,
    track: bool = True,
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Ends each step of `inner` with a prox step of the rules, which reaches exact zeros: p' = prox(p + u).

    `learning_rate` must be that of `inner`. It is the step of the prox, so another rate changes the strengths, and
    another problem is solved. The same holds for `b2`, `eps` and `eps_root` with `metric="adam"`. The penalty belongs
    here *or* in the loss, not in both.

    - `metric="euclidean"`: p' = argmin_y ½‖y − (p + u)‖² + η·rules(y). Under plain SGD it is proximal gradient descent,
      and reaches the minimum of loss plus penalty. Under Adam it is decoupled, as AdamW's decay is, and solves another
      problem: Adam brings gradients to a size of about 1, and strengths are relative to that.
    - `metric="adam"`: p' = argmin_y ½Σ D(y − (p + u))² + η·rules(y) with Adam's own D = √v̂ + eps. A weight is at rest
      where the gradient of loss plus penalty is 0, so Adam then minimizes loss plus penalty, as SGD does. It takes
      regularizers whose `has_metric_prox` is true, such as L1 and GroupLasso. It refuses penalties with flat parts,
      such as MCP and L0, because D goes to 0 there, and those whose prox takes a single step, such as Nuclear.

    D is read from the one `optax.ScaleByAdamState` in the state of `inner`, wherever it is. No state shows another
    scale of the updates between Adam and the learning rate, so there must be none, as there is in `optax.lamb`,
    `optax.radam` or with an extra `optax.scale`. (In `optax.nadam` D is that of Adam.)

    Wrap it in `optax.MultiSteps`, `optax.apply_if_finite`, `optax.lookahead` or `optax.contrib.sam`. They do not go
    inside, and nothing follows it in a chain. `optax.masked` and `optax.partition` go around it too: the prox moves
    what its rules meet, also where they stop `inner` or give it another learning rate. Averages, such as the slow
    weights of `lookahead` and the weights of `optax.contrib.schedule_free`, have no exact zeros of their own.

    Updates come back in the wider dtype of update and parameter, which is exact at zero: `optax.apply_updates` then
    gives 0.0. Inside `optax.apply_if_finite`, gradients must have the dtype of the parameters, or a wider one. None,
    `MaskedNode` and parameters that no rule penalizes pass through.

    Args:
      inner: any optimizer or chain, such as `optax.adam(learning_rate)`.
      rules: `jaxreg.Rules` whose regularizers all have a prox.
      learning_rate: a number >= 0, or an optax schedule, which is read at the same count as that of `inner`. It may be
        left out where no rule has a regularizer. Under `optax.inject_hyperparams`, `rules` belongs in `static_args`.
      metric: "euclidean" or "adam".
      b2, eps, eps_root: those of the Adam in `inner`, for `metric="adam"`.
      cap: for `metric="adam"`, how far the prox may move a weight in one step, in units of the learning rate: a number
        greater than 1, or None for any distance. It matters where v̂ ≈ 0 and a weight would vanish at once, such as the
        embedding of a token that has not been seen. At rest the prox undoes the step of Adam, which is at most
        (1 − b1)/√(1 − b2) units long, 3.2 by default, so a larger cap changes no solution.
      track: whether the state holds the penalty, which costs one more pass over the parameters.
        `optax.tree.get(state, "penalty")` finds it.
      key: a key from `jax.random.key`, for rules that sample. It is split at each update.

    Returns:
      An `optax.GradientTransformationExtraArgs` with the state `ProximalState`.

    Raises:
      TypeError, ValueError: an argument has another type or is out of range, the learning rate is missing, or a
        regularizer has no prox, or none in Adam's metric. On `init`: `inner` has no Adam state or several of them, or
        one of the wrappers above. On `update`: `params` is missing or has other shapes, or the rules raise an error.

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
    if metric not in ("euclidean", "adam"):
        raise ValueError(f"`metric` must be 'euclidean' or 'adam', got {metric!r}")
    _check_rules(rules, metric)
    if not callable(learning_rate) and any(regularizer is not None for regularizer in rules.regularizers):
        learning_rate = checked_scalar(learning_rate, name="learning_rate")
    b2, eps, eps_root = (checked_scalar(v, name=n) for v, n in ((b2, "b2"), (eps, "eps"), (eps_root, "eps_root")))
    if not isinstance(b2, jax.Array) and b2 >= 1:
        raise ValueError(f"`b2` must be < 1, got {b2}")
    if cap is not None:
        cap = checked_scalar(cap, name="cap", above=1.0)
    check_bool(track, name="track")
    check_key(key)
    wrapped = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> ProximalState:
        inner_state = wrapped.init(params)
        _check_inner(inner_state, metric)
        return ProximalState(jnp.zeros((), jnp.int32), first_penalty(track), first_key(key), (), inner_state)

    def update_fn(
        updates: optax.Updates, state: ProximalState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ProximalState]:
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
        met = rules.met_leaves(list(zip(paths, leaves, strict=True)))
        penalized = {places[m.path]: m for m in met if m.regularizer is not None}

        changed = {}
        if penalized:
            rate = as_real(
                learning_rate(state.count) if callable(learning_rate) else learning_rate, name="learning_rate"
            )
            check_single(rate, name="learning_rate")
            step: Any = rate
            if metric == "adam":
                step = _adam_steps(inner_state, rate, b2, eps, eps_root)
            furthest = None if metric == "euclidean" or cap is None else times_strength(rate, cap, name="cap")
            for i, m in penalized.items():
                if not pairs.is_frozen(i):
                    changed[i] = _proxed_update(m, jnp.asarray(pairs.updates[i]), step, furthest)
        tracked = add_up(m.penalty(used_key) for m in penalized.values()).astype(jnp.float32) if track else None
        count = optax.safe_increment(state.count)
        return pairs.rebuilt(changed), ProximalState(count, tracked, next_key, state.memory, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _proxed_update(met: Met, update: jax.Array, step: Any, furthest: jax.Array | None) -> jax.Array:
    """Returns the update that moves a parameter to prox(p + u), at most `furthest` from p + u."""
    param = jnp.asarray(met.leaf)
    wide = accumulation_dtype(update.dtype, param.dtype)
    moved = param.astype(wide) + update.astype(wide)
    new = met._replace(leaf=moved).prox(step)
    if furthest is not None:
        new = _no_further(new, moved, furthest)
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(param.dtype, update.dtype)
    return (new - param.astype(wide)).astype(dtype)


def _check_rules(rules: Any, metric: str) -> None:
    if not isinstance(rules, Rules):
        raise TypeError(f"`rules` must be jaxreg.Rules, since a function has no prox; got {describe(rules)}")
    for index, regularizer in enumerate(rules.regularizers):
        if regularizer is None or (regularizer.has_metric_prox if metric == "adam" else regularizer.has_prox):
            continue
        if regularizer.has_prox:
            raise ValueError(
                f"`rules`: {rules.label(index)} has no prox in the metric of Adam; take metric='euclidean' for it"
            )
        raise ValueError(
            f"`rules`: {rules.label(index)} has no prox in closed form; "
            "add its gradients by `jaxreg.add_penalty_gradients`, in rules of their own"
        )


def _found(state: Any, kinds: type | tuple[type, ...]) -> list[Any]:
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))
    return [leaf for leaf in leaves if isinstance(leaf, kinds)]


def _check_inner(state: Any, metric: str) -> None:
    if _found(state, optax.contrib.ScheduleFreeState):
        raise ValueError(
            "`inner` must not hold optax.contrib.schedule_free, whose averaged weights have no exact zeros"
        )
    if wrappers := _found(state, _OUTSIDE):
        name = type(wrappers[0]).__name__
        raise ValueError(
            f"`inner` must not hold a wrapper that skips, averages or repeats steps, got {name}; "
            "put `proximal` inside: optax.MultiSteps(jaxreg.proximal(...), 4)"
        )
    if rescaling := _found(state, _RESCALING):
        raise ValueError(
            f"`inner` must not hold a transformation that changes the length of steps by itself, got "
            f"{type(rescaling[0]).__name__}: the prox would not know its step"
        )
    if metric == "adam" and (count := len(_found(state, optax.ScaleByAdamState))) != 1:
        raise ValueError(
            f"`inner` must hold exactly one optax.ScaleByAdamState for metric='adam', got {count}; "
            "optax.adam, optax.adamw and chains with optax.scale_by_adam have one"
        )


def _adam_steps(inner_state: Any, rate: jax.Array, b2: Any, eps: Any, eps_root: Any) -> Callable[[str, Any], jax.Array]:
    """Returns the function from a path and a parameter to the steps η/D, with D = √(v̂ + eps_root) + eps."""
    (adam,) = _found(inner_state, optax.ScaleByAdamState)
    moments = dict(leaves_with_paths(adam.nu))

    def step(path: str, param: jax.Array) -> jax.Array:
        moment = moments.get(path, optax.MaskedNode())
        if is_masked(moment):
            raise ValueError("`inner`: Adam's state has no second moment for it; is it masked there?")
        # As optax writes it, so that XLA computes it once for both.
        second = optax.tree.bias_correction(moment.astype(param.dtype), like(b2, param), adam.count)
        scale = jnp.sqrt(second + like(eps_root, param)) + like(eps, param)
        return rate.astype(param.dtype) / jnp.maximum(scale, 1e-30)

    def like(value: Any, param: jax.Array) -> Any:
        return float(value) if isinstance(value, float) else value.astype(param.dtype)

    return step


def _no_further(new: jax.Array, old: jax.Array, distance: jax.Array) -> jax.Array:
    """Returns `new` where it is at most `distance` from `old`, else the point at that distance on the way to it."""
    change = new - old
    distance = distance.astype(new.dtype)
    return jnp.where(jnp.abs(change) > distance, old + jnp.clip(change, -distance, distance), new)
