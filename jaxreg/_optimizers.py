"""Optimizers that end each step with a prox step in their own metric, so that the learning rate is given once."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxreg._checks import checked_scalar
from jaxreg._proximal import proximal
from jaxreg._rules import Rules


def proximal_sgd(
    learning_rate: float | jax.Array | optax.Schedule,
    rules: Rules,
    *,
    momentum: float | jax.Array | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any | None = None,
    scale: float | jax.Array | optax.Schedule = 1.0,
    track: bool = True,
    key: jax.Array | None = None,
    memory: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Minimizes loss + rules by proximal gradient descent, which reaches exact zeros.

    It is `jaxreg.proximal` around `optax.sgd`, with the right step for the prox: η without momentum, and η/(1 −
    momentum) with it, because momentum makes the steps that much longer. The penalty belongs nowhere else, neither in
    the loss nor in the chain.

    Its dtypes, and what passes through, are those of `jaxreg.proximal`. The gradient of the loss alone is its input.

    Args:
      learning_rate: η, a number >= 0 or an optax schedule.
      rules: `jaxreg.Rules` whose regularizers all have a prox, and constraints. Under `optax.inject_hyperparams` it
        belongs in `static_args`.
      momentum, nesterov, accumulator_dtype: as in `optax.sgd`. `momentum` is a number >= 0 and < 1, or None.
      scale, track, key, memory: as in `jaxreg.proximal`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with the state `ProximalState`.

    Raises:
      TypeError, ValueError: as `jaxreg.proximal` does, and for `momentum`.

    >>> params = {"kernel": jnp.array([2.0, -0.01])}
    >>> tx = jaxreg.proximal_sgd(0.1, jaxreg.Rules((r"kernel$", jaxreg.L1(0.5))))
    >>> updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"]
    Array([1.95, 0.  ], dtype=float32)

    Source: Parikh and Boyd, Proximal algorithms, 2014.
    """
    longer: Any = 1.0
    if momentum is not None:
        momentum = checked_scalar(momentum, name="momentum")
        if not isinstance(momentum, jax.Array) and momentum >= 1:
            raise ValueError(f"`momentum` must be < 1, got {momentum}")
        longer = 1 / (1 - momentum)
    inner = optax.sgd(learning_rate, momentum, nesterov, accumulator_dtype)
    options: dict[str, Any] = {"scale": scale, "track": track, "key": key, "memory": memory}
    return proximal(inner, rules, _times(learning_rate, longer), metric="euclidean", check=False, **options)


def proximal_adam(
    learning_rate: float | jax.Array | optax.Schedule,
    rules: Rules,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    eps_root: float | jax.Array = 0.0,
    mu_dtype: Any | None = None,
    nesterov: bool = False,
    cap: float | jax.Array | None = 10.0,
    scale: float | jax.Array | optax.Schedule = 1.0,
    track: bool = True,
    key: jax.Array | None = None,
    memory: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Minimizes loss + rules by Adam with a prox step in Adam's own metric, which reaches exact zeros.

    It is `jaxreg.proximal(optax.adam(...), metric="adam")` with every argument given once. The penalty belongs nowhere
    else, neither in the loss nor in the chain.

    Its dtypes, and what passes through, are those of `jaxreg.proximal`. The gradient of the loss alone is its input.

    Args:
      learning_rate: a number >= 0 or an optax schedule.
      rules: `jaxreg.Rules` whose regularizers all have a `has_metric_prox`, and constraints. Under
        `optax.inject_hyperparams` it belongs in `static_args`.
      b1, b2, eps, eps_root, mu_dtype, nesterov: as in `optax.adam`.
      cap, scale, track, key, memory: as in `jaxreg.proximal`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with the state `ProximalState`.

    Raises:
      TypeError, ValueError: as `jaxreg.proximal` does.

    >>> params = {"kernel": jnp.array([2.0, -0.01])}
    >>> tx = jaxreg.proximal_adam(0.1, jaxreg.Rules((r"kernel$", jaxreg.L1(0.5))))
    >>> updates, state = tx.update({"kernel": jnp.array([1.0, 0.1])}, tx.init(params), params)
    >>> float(optax.apply_updates(params, updates)["kernel"][1])
    0.0

    Source: Yun, Lozano and Yang, Adaptive proximal gradient methods for structured neural networks (ProxGen), 2021.
    """
    _check_b1(b1)
    inner = optax.adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    options: dict[str, Any] = {"b2": b2, "eps": eps, "eps_root": eps_root, "cap": cap, "scale": scale}
    options |= {"track": track, "key": key, "memory": memory}
    return proximal(inner, rules, learning_rate, metric="adam", check=False, **options)


def proximal_adamw(
    learning_rate: float | jax.Array | optax.Schedule,
    rules: Rules,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    eps_root: float | jax.Array = 0.0,
    mu_dtype: Any | None = None,
    weight_decay: float | jax.Array = 1e-4,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    nesterov: bool = False,
    cap: float | jax.Array | None = 10.0,
    scale: float | jax.Array | optax.Schedule = 1.0,
    track: bool = True,
    key: jax.Array | None = None,
    memory: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Takes the steps of AdamW, each with a prox step in Adam's own metric, which reaches exact zeros.

    It is `proximal_adam` with the decoupled weight decay of `optax.adamw`. That decay solves no stated problem, as
    AdamW does not. To minimize loss + rules + l2 · Σx², use `proximal_adam` with `L1L2`, or with L2 added to each rule.

    Its dtypes, and what passes through, are those of `jaxreg.proximal`. The gradient of the loss alone is its input.

    Args:
      learning_rate, rules, b1, b2, eps, eps_root, mu_dtype, nesterov: as in `proximal_adam`.
      weight_decay, mask: as in `optax.adamw`.
      cap, scale, track, key, memory: as in `jaxreg.proximal`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with the state `ProximalState`.

    Raises:
      TypeError, ValueError: as `jaxreg.proximal` does.

    >>> params = {"kernel": jnp.array([2.0, -0.01])}
    >>> tx = jaxreg.proximal_adamw(0.1, jaxreg.Rules((r"kernel$", jaxreg.L1(0.5))), weight_decay=0.1)
    >>> updates, state = tx.update({"kernel": jnp.array([1.0, 0.1])}, tx.init(params), params)
    >>> float(optax.apply_updates(params, updates)["kernel"][1])
    0.0

    Source: Yun, Lozano and Yang, Adaptive proximal gradient methods for structured neural networks (ProxGen), 2021;
    Loshchilov and Hutter, Decoupled weight decay regularization, 2019.
    """
    _check_b1(b1)
    inner = optax.adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=nesterov)
    options: dict[str, Any] = {"b2": b2, "eps": eps, "eps_root": eps_root, "cap": cap, "scale": scale}
    options |= {"track": track, "key": key, "memory": memory}
    return proximal(inner, rules, learning_rate, metric="adam", check=False, **options)


def _check_b1(b1: Any) -> None:
    b1 = checked_scalar(b1, name="b1")
    if not isinstance(b1, jax.Array) and b1 >= 1:
        raise ValueError(f"`b1` must be < 1, got {b1}")


def _times(learning_rate: float | jax.Array | optax.Schedule, factor: Any) -> Any:
    if callable(learning_rate):
        return lambda count: learning_rate(count) * factor
    return checked_scalar(learning_rate, name="learning_rate") * factor
