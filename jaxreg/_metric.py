"""The metric in which an optimizer steps, and the check that a prox step in it solves the stated problem."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxreg._checks import at_count, describe, is_float_array
from jaxreg._met import Met
from jaxreg._paths import is_masked, leaves_with_paths
from jaxreg._probe import LARGE, LATER, SMALL, UPDATES, Answer, Untraceable, ask, concrete, small_tree

Metric = Literal["euclidean", "adam"] | Callable[[Any], Any]

# These wrappers scale, skip or average the steps of what is inside. A prox step outside of them has another step size.
_OUTSIDE = (
    optax.ApplyEvery,
    optax.ApplyIfFiniteState,
    optax.ConditionallyMaskState,
    optax.ConditionallyTransformState,
    optax.LookaheadState,
    optax.MultiStepsState,
    optax.contrib.SAMState,
)
# These change the length or the direction of steps by what they see of the loss and of the way so far.
_SEARCHES = (
    optax.ScaleByBacktrackingLinesearchState,
    optax.ScaleByZoomLinesearchState,
    optax.ScaleByLBFGSState,
)
_RESCALING = (optax.contrib.ReduceLROnPlateauState, *_SEARCHES)
_INJECTED = (optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState)
_AROUND = "optax.inject_hyperparams(jaxreg.proximal_adam, static_args=('rules',))(learning_rate=..., rules=rules)"
_CHOICES = (
    "choose one of: `jaxreg.proximal_adam` or `jaxreg.proximal_sgd`; `metric`, a function from the state of `inner` to "
    "a tree of D; metric='euclidean', which prunes by size and does not solve loss + rules; or the penalty in the loss"
)
_UNKNOWN = (
    "its metric is not known. In it, steps would be as long as `learning_rate` for gradients of any size; they are "
    "{:.4g} and {:.4g} times as long for gradients of {:g} and {:g}. Are `b2`, `eps` and `eps_root` those of `inner`? "
    f"Otherwise {_CHOICES}"
)


class Weight(NamedTuple):
    """The diagonal D of the metric for one parameter, a scalar or an array, and whether it is that of Adam."""

    diagonal: jax.Array
    is_adam: bool


def check_state(state: Any, *, has_penalties: bool) -> None:
    """Raises an error for optimizers around which no prox step is right, or no projection where there is no penalty."""
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
    if not has_penalties:
        if searches := _found(state, _SEARCHES):
            raise ValueError(
                f"`inner` must not hold a line search, got {type(searches[0]).__name__}: it would rely on the loss at "
                "weights that are then projected"
            )
        return
    if rescaling := _found(state, _RESCALING):
        raise ValueError(
            f"`inner` must not hold a transformation that changes the length of steps by itself, got "
            f"{type(rescaling[0]).__name__}: the prox would not know its step"
        )
    if injected := _found(state, _INJECTED):
        raise ValueError(
            f"`inner` must not hold injected numbers, got {type(injected[0]).__name__}: the prox would not see their "
            f"changes; inject around, {_AROUND}"
        )


def weights(metric: Metric | None, state: Any, b2: Any, eps: Any, eps_root: Any) -> Callable[[str, Any], Weight | None]:
    """Returns the function from a path and a parameter to the D of the metric, which is None where D is 1."""
    if metric == "euclidean":
        return lambda path, param: None
    if callable(metric):
        return _given(metric(state))
    moments: dict[str, tuple[Any, jax.Array]] = {}
    for adam in _found(state, optax.ScaleByAdamState):
        for path, moment in leaves_with_paths(adam.nu):
            if not is_masked(moment):
                if path in moments:
                    raise ValueError(
                        f"`inner` must hold one second moment of Adam for a parameter, got two at `{path}`"
                    )
                moments[path] = moment, adam.count

    def like(value: Any, param: jax.Array) -> Any:
        return float(value) if isinstance(value, float) else value.astype(param.dtype)

    def weight(path: str, param: jax.Array) -> Weight | None:
        if path not in moments:
            if metric == "adam":
                raise ValueError("`inner`: Adam's state has no second moment for it; is it masked there?")
            return None
        moment, count = moments[path]
        if moment.shape != param.shape:
            raise ValueError(
                f"`inner` must hold second moments of the shapes of parameters, got {describe(moment)} for "
                f"{describe(param)} at `{path}`"
            )
        # As optax writes it, so that XLA computes it once for both.
        second = optax.tree.bias_correction(moment.astype(param.dtype), like(b2, param), count)
        return Weight(jnp.sqrt(second + like(eps_root, param)) + like(eps, param), True)

    return weight


def _given(tree: Any) -> Callable[[str, Any], Weight]:
    found = dict(leaves_with_paths(tree))

    def weight(path: str, param: jax.Array) -> Weight:
        value: Any = found.get(path)
        if isinstance(value, float | int) and not isinstance(value, bool):
            value = jnp.asarray(value, param.dtype)
        if not is_float_array(value) or value.shape not in ((), param.shape):
            raise ValueError(
                f"`metric` must return a tree with a number or an array {describe(param)} for it, got {describe(value)}"
            )
        return Weight(jnp.asarray(value).astype(param.dtype), False)

    return weight


def _found(state: Any, kinds: type | tuple[type, ...]) -> list[Any]:
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))
    return [leaf for leaf in leaves if isinstance(leaf, kinds)]


def check_adam(state: Any) -> None:
    if not _found(state, optax.ScaleByAdamState):
        raise ValueError(
            "`inner` must hold an optax.ScaleByAdamState for metric='adam', got none; "
            "optax.adam, optax.adamw and chains with optax.scale_by_adam have one"
        )


def check_steps(
    inner: Any,
    params: Any,
    penalized: list[Met],
    weigh: Callable[[Any], Callable[[str, Any], Weight | None]],
    learning_rate: Any,
    *,
    is_choice: bool,
) -> None:
    """Raises an error where a prox step in the metric does not solve loss + rules.

    Where the metric is a choice, and for constraints, only parameters that `inner` does not move are an error.
    """
    is_choice = is_choice or not any(met.has_penalty for met in penalized)
    small = small_tree(params)
    at = dict(leaves_with_paths(small))

    def measured(state: Any, updates: Any) -> list[jax.Array]:
        moved = dict(leaves_with_paths(updates))
        weight = weigh(state)
        steps, weighed = [], []
        for met in penalized:
            step, param = moved.get(met.path), at[met.path]
            step = jnp.zeros_like(param) if step is None or is_masked(step) else step
            if jnp.shape(step) != param.shape:
                raise ValueError(f"its update is {describe(step)} for {describe(param)} at `{met.path}`")
            known = weight(met.path, param) if met.has_penalty else None
            steps.append(step)
            weighed.append(step if known is None else step * known.diagonal)
        return steps + weighed

    try:
        if is_choice:
            counts, rates = list(range(0, UPDATES, 100)), np.zeros(0)
        else:
            counts, rates = _counts_and_rates(learning_rate)
        answer = _answer(inner, small, measured, counts)
    except Untraceable:
        if is_choice:
            return
        raise ValueError(
            "`inner` or `learning_rate` holds a traced value, so its steps cannot be checked; take "
            "`jaxreg.proximal_adam` or `jaxreg.proximal_sgd`, which give the rate once, or check=False"
        ) from None
    except ValueError:
        if is_choice:
            return
        raise
    for met, steps, moves in zip(penalized, answer.steps, answer.moves, strict=True):
        if not moves:
            raise ValueError(
                f"`inner` does not move `{met.path}`, which {met.rule} would: put what stops it outside, as in "
                "optax.partition({'train': jaxreg.proximal(...), 'freeze': optax.set_to_zero()}, labels), or leave it "
                "alone by a rule with None"
            )
        if not is_choice and met.has_penalty and (fault := _fault(steps, counts, rates, answer)):
            raise ValueError(f"`inner` at `{met.path}`, under {met.rule}: {fault}")


def _answer(inner: Any, small: Any, measured: Callable[[Any, Any], list[jax.Array]], counts: list[int]) -> Answer:
    """Returns the answer of the probe. Whatever `inner` raises becomes a ValueError that says what to do."""
    try:
        return ask(inner, small, measured, counts)
    except Untraceable:
        raise
    except Exception as error:
        raise ValueError(
            f"`inner` cannot be run on small gradients alone, to find its metric: {type(error).__name__}: {error}; "
            f"{_CHOICES}; or check=False"
        ) from error


def _counts_and_rates(learning_rate: Any) -> tuple[list[int], np.ndarray]:
    """Returns the counts of updates at which steps are compared, in order, and the learning rates there.

    They are some of the last counts at which the rate is not 0, one from some time before, and later ones.
    """

    def rate(count: Any) -> jax.Array:
        return at_count(learning_rate, count, name="learning_rate").astype(jnp.float32)

    if isinstance(learning_rate, jax.core.Tracer):
        raise Untraceable
    every = [*range(UPDATES), *LATER]
    with concrete():
        try:
            rates = jax.lax.map(rate, jnp.asarray(every, jnp.int32))
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
            raise ValueError(
                "`learning_rate` must be a schedule that can be traced, as optax's are, without `if` or NumPy on the "
                f"count: {str(error).splitlines()[0]}; check=False skips the check"
            ) from error
    if isinstance(rates, jax.core.Tracer):
        raise Untraceable
    found = np.asarray(rates, np.float64)
    early = found[:UPDATES]
    usable = np.flatnonzero(early > 1e-6 * np.max(early))
    if not len(usable) or not np.max(early) > 0:
        raise ValueError(
            f"`learning_rate` must not be 0 for {UPDATES} updates, since the steps of `inner` cannot be checked then; "
            "check=False skips the check"
        )
    chosen = sorted({int(usable[int(0.9 * (len(usable) - 1))]), *map(int, usable[-8:])})
    counts = [*chosen, *LATER]
    return counts, np.concatenate([early[chosen], found[UPDATES:]])


def _fault(steps: np.ndarray, counts: list[int], rates: np.ndarray, answer: Answer) -> str | None:
    """Returns what is wrong with weighed steps that should be as long as the learning rate, or None."""
    if not np.all(np.isfinite(steps)):
        return f"its steps are not finite; {_CHOICES}"
    early, few, tolerance = len(rates) - len(LATER), len(SMALL), answer.tolerance
    # The axes are counts, gradient sizes and values. Each is 1 where the step is as long as it should be.
    ratios = steps[:early] / rates[:early, None, None]
    now, small = ratios[-1], ratios[-1, :few]
    ratio = float(np.mean(small))
    if not np.all(small):
        return f"it does not move some of its weights; put masks outside, around `proximal`. Otherwise {_CHOICES}"
    spread = 2 * tolerance * np.max(np.abs(small))
    if np.ptp(small[:-1]) > spread:
        return _UNKNOWN.format(small[0].mean(), small[1].mean(), *SMALL[:2])
    if np.ptp(small) > spread:  # the last gradients differ from weight to weight
        return f"its steps for a weight depend on the gradients of others; {_CHOICES}"
    if np.max(np.abs(ratios - now) / np.maximum(np.abs(now), 1e-30)) > tolerance:
        return (
            f"its steps cannot be checked, because their ratio to `learning_rate` still changes after "
            f"{counts[early - 1]} updates, from {float(np.mean(ratios[0])):.4g} to {float(np.mean(now)):.4g}: its "
            f"`b2` is not the one given here, it adapts, it has another schedule, or its momentum is very slow. "
            f"Otherwise {_CHOICES}; or check=False"
        )
    if abs(ratio - 1) > tolerance:
        return (
            f"its steps are {ratio:.4g} times as long as `learning_rate` says, so that the penalties would count 1 / "
            f"{ratio:.4g} times. Give the rate of `inner`, which under momentum m is its own over 1 − m, as in "
            f"`jaxreg.proximal_sgd`. Otherwise {_CHOICES}"
        )
    # Large gradients may be clipped. Then they have all the same steps.
    bounded = now[few:] * np.asarray(LARGE)[:, None]
    is_right = np.abs(now[few:] - 1) <= tolerance
    is_clipped = np.abs(bounded - bounded[-1]) <= tolerance * np.abs(bounded[-1])
    if not np.all(is_right | is_clipped):
        return _UNKNOWN.format(now[0].mean(), now[-1].mean(), SMALL[0], LARGE[-1])
    largest = np.max(rates[:early])
    for count, rate, step in zip(counts[early:], rates[early:], steps[early:, :few], strict=True):
        if np.max(np.abs(step - rate)) > tolerance * abs(rate) + 1e-6 * largest:
            return (
                f"after {count} updates its learning rate is {float(np.mean(step)):.4g} and `learning_rate` is "
                f"{rate:.4g}; give both the same schedule"
            )
    return None
