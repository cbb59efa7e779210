"""Fisher information: how much the outputs of a model depend on each weight."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxreg._checks import check_key, describe, is_float_array
from jaxreg._names import public
from jaxreg._numerics import as_wide


@public
def fisher_diagonal(apply: Callable[[Any, Any], jax.Array], params: Any, batches: Iterable[Any], key: jax.Array) -> Any:
    """Returns the diagonal of the Fisher information of a classifier: how much its outputs depend on each weight.

    It is the mean over examples of (∂ log p(y | x) / ∂w)², with one label y for each example that is sampled from the
    model's own outputs. (With the labels of the data it would be the empirical Fisher, which is another matrix.) It is
    the importance for elastic weight consolidation: `rules.init(params, importance=fisher)`, see `jaxreg.Anchor`.

    Gradients are taken for each example of a batch at once, which takes as much memory as there are examples in a batch
    times parameters. It compiles `apply` anew at each call. For many models of one kind, map over them under `jax.jit`:
    `jax.vmap(lambda params, key: fisher_diagonal(apply, params, [x], key))`.

    Args:
      apply: a function from parameters and a batch of inputs to logits, with the batch along the first axis and the
        classes along the last. Axes between, such as positions, are outputs of one example. Dropout must be off, and
        normalization must use stored statistics, so that examples do not depend on each other.
      params: a tree of parameters. Leaves that are not real floating-point arrays get zeros.
      batches: an iterable of batches, each an array or a tree of arrays with the batch along the first axis.
      key: a key from `jax.random.key`, for the labels.

    Returns:
      A tree like `params`. Arrays of floats are in at least float32.

    Raises:
      TypeError, ValueError: `apply` is no function, `batches` is empty or an array, `key` is no key, or `apply` returns
        no logits for each example.

    >>> def apply(params, x):
    ...     return x @ params["kernel"]
    >>> params, batches = {"kernel": jnp.zeros((1, 2))}, [jnp.ones((4, 1))]
    >>> jaxreg.diagnostics.fisher_diagonal(apply, params, batches, jax.random.key(0))["kernel"]
    Array([[0.25, 0.25]], dtype=float32)

    Source: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017; Kunstner, Balles and
    Hennig, Limitations of the empirical Fisher approximation for natural gradient descent, 2019, for sampled labels.
    """
    if not callable(apply):
        raise TypeError(f"`apply` must be a function from parameters and inputs to logits, got {describe(apply)}")
    check_key(key, or_old=True)
    if key is None:
        raise TypeError("`key` must be a key from `jax.random.key`, got None")
    if hasattr(batches, "shape") or not isinstance(batches, Iterable):
        raise TypeError(f"`batches` must be an iterable of batches, such as [x], got {describe(batches)}")
    leaves, structure = jax.tree.flatten(params)
    chosen = [i for i, leaf in enumerate(leaves) if is_float_array(leaf)]
    values = [jnp.asarray(leaves[i]) for i in chosen]

    def applied(values: list[jax.Array], batch: Any) -> jax.Array:
        every = list(leaves)
        for i, value in zip(chosen, values, strict=True):
            every[i] = value
        return apply(jax.tree.unflatten(structure, every), batch)

    @jax.jit
    def squares(values: list[jax.Array], batch: Any, key: jax.Array) -> list[jax.Array]:
        logits = applied(values, batch)
        if not is_float_array(logits) or logits.ndim < 2 or logits.shape[0] != _size_of_batch(batch):
            raise ValueError(
                f"`apply` must return logits with the {_size_of_batch(batch)} examples along the first axis "
                f"and classes along the last, got {describe(logits)}"
            )
        labels = jax.random.categorical(key, as_wide(logits))  # which samples in the dtype that it gets

        def log_probability(values: list[jax.Array], example: Any, label: jax.Array) -> jax.Array:
            log_probabilities = jax.nn.log_softmax(
                as_wide(applied(values, jax.tree.map(lambda x: x[None], example))[0])
            )
            return jnp.sum(jnp.take_along_axis(log_probabilities, label[..., None], axis=-1))

        gradients = jax.vmap(jax.grad(log_probability), in_axes=(None, 0, 0))(values, batch, labels)
        return [jnp.sum(jnp.square(as_wide(gradient)), axis=0) for gradient in gradients]

    totals: list[jax.Array] | None = None
    count = 0
    for batch in batches:
        size = _size_of_batch(batch)
        key, own = jax.random.split(key)
        found = squares(values, batch, own)
        totals = found if totals is None else [a + b for a, b in zip(totals, found, strict=True)]
        count += size
    if totals is None or not count:
        raise ValueError("`batches` must hold at least one example, got none")
    filled = [jnp.zeros_like(leaf) for leaf in leaves]
    for i, total in zip(chosen, totals, strict=True):
        filled[i] = total / count
    return jax.tree.unflatten(structure, filled)


def _size_of_batch(batch: Any) -> int:
    """Returns the number of examples in a batch."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"`batches` must hold arrays with the examples along the first axis, as many in each, got "
            f"{[describe(leaf) for leaf in jax.tree.leaves(batch)]}"
        )
    return int(sizes.pop()[0])
