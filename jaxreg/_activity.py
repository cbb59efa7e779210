"""Penalties of layer outputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxreg._base import Scaled, Sum
from jaxreg._checks import describe
from jaxreg._numerics import checked_penalty
from jaxreg._rules import Rules
from jaxreg._shards import AxisName, names_of_batch, size_of


def activity_penalty(
    rules: Callable[[Any], jax.Array],
    activations: Any,
    *,
    batch_size: int | jax.Array,
    axis_name: AxisName = None,
) -> jax.Array:
    """Returns `rules(activations) / batch_size`, the penalty of Keras's `activity_regularizer`.

    The rules meet a tree of captured layer outputs as they meet parameters. Linen captures outputs by
    `model.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])`, under paths such as
    `Dense_0/__call__/0`. NNX captures them by `nnx.capture(model, nnx.Intermediate,
    method_outputs=nnx.Intermediate)(x)`, under the same paths. The output of the whole model is captured too, as
    `__call__/0`. These are the outputs before an activation that follows the layer, while Keras penalizes those after
    it. To penalize those, name them by `Module.sow`, which captures them under `NAME/0`.

    Outputs may have any shape, and a real floating-point dtype. The sum over the batch is divided by its size, so the
    strength does not depend on it. The gradient is that of the regularizers over `batch_size`. In
    `jaxreg.Rules`, the penalties `ZLoss`, `KLSparsity`, `DeCov`, `VICRegVariance` and `VICRegCovariance`, and their
    functions, are means over the batch by themselves. They and their gradients are not divided again. What any other
    function of the tree returns is divided, whatever it holds.

    Under data parallelism outside of `jax.shard_map` nothing changes. Inside, each device has the outputs for its part
    of the batch, and a norm or a maximum over the batch is not the sum of those of its parts. With `axis_name`, the
    penalty is that of the outputs for the whole batch over its whole size, the same on every device. Differentiate
    `pmean(local_loss, axis_name) + penalty` then.

    Args:
      rules: `jaxreg.Rules`, or any function from a tree to a scalar.
      activations: the captured outputs, a tree of arrays.
      batch_size: the number of examples in the batch, or in the part of a device with `axis_name`. An empty batch has
        the penalty 0.
      axis_name: the mesh axis, or several, of a `jax.shard_map` that divide the first axis of each output, the batch.
        `rules` must then be `jaxreg.Rules`. For outputs whose batch is another axis, such as those of stacked layers,
        give `rules.with_specs(...)` and the size of the whole batch.

    Returns:
      A scalar in at least float32.

    Raises:
      TypeError, ValueError: `activations` hold no outputs, `batch_size` is not a scalar integer >= 0, `axis_name`
        names no axis of a `jax.shard_map` or comes with rules that have specs already, or `rules` raises an error.

    >>> outputs = {"Dense_0": {"__call__": (10.0 * jnp.ones((5, 5)),)}}
    >>> rules = jaxreg.Rules((r"Dense_0/__call__", jaxreg.L2(0.01)))
    >>> float(jaxreg.activity_penalty(rules, outputs, batch_size=5))
    5.0

    Source: `activity_regularizer` of Keras's layers, 2015.
    """
    if not callable(rules):
        raise TypeError(f"`rules` must be a function from a tree to a scalar, got {describe(rules)}")
    kind = getattr(batch_size, "dtype", np.result_type(type(batch_size)) if isinstance(batch_size, int) else None)
    if isinstance(batch_size, bool) or kind is None or not jnp.issubdtype(kind, jnp.integer):
        raise TypeError(f"`batch_size` must be an integer, got {describe(batch_size)}")
    if np.ndim(batch_size):
        raise ValueError(f"`batch_size` must be a scalar, got {describe(batch_size)}")
    if isinstance(batch_size, int | np.integer | np.ndarray) and batch_size < 0:
        raise ValueError(f"`batch_size` must be >= 0, got {batch_size}")
    if isinstance(rules, Rules) and rules.strict and not jax.tree.leaves(activations):
        raise ValueError(
            f"`activations` must hold outputs of layers, got {describe(activations)} without any; name an output by "
            "`sow`, or capture all by `model.apply(..., capture_intermediates=True, mutable=['intermediates'])`"
        )
    if axis_name is not None:
        rules = _over_batch(rules, axis_name)
        batch_size = batch_size * size_of(names_of_batch(axis_name))
    is_known = isinstance(batch_size, int | np.integer)
    size = float(max(int(batch_size), 1)) if is_known else jnp.maximum(batch_size, 1)
    if isinstance(rules, Rules):
        rules = _with_sums(rules, size)
    value = checked_penalty(rules(activations), of="`rules`")
    return value / (size if isinstance(size, float) else size.astype(value.dtype))


def _over_batch(rules: Any, axis_name: AxisName) -> Rules:
    """Returns rules that see the whole batch, of which some mesh axes divide the first axis of each output."""
    if not isinstance(rules, Rules):
        raise TypeError(f"`rules` must be jaxreg.Rules with `axis_name`, got {describe(rules)}")
    if rules.specs is not None:
        raise ValueError("`axis_name` must not be given with rules that have specs already, which name the mesh axes")
    return rules.with_specs(PartitionSpec(names_of_batch(axis_name)))


def _with_sums(rules: Rules, size: Any) -> Rules:
    """Returns rules in which penalties that are means over the batch are multiplied by its size."""
    return rules._with([None if term is None else _with_sum(term, size) for term in rules.regularizers])


def _with_sum(term: Any, size: Any) -> Any:
    if isinstance(term, Sum):
        return Sum(tuple(_with_sum(part, size) for part in term.terms))
    if isinstance(term, Scaled):
        return Scaled(term.scale, _with_sum(term.regularizer, size))
    return Scaled(size, term) if term._is_mean_over_batch() else term
