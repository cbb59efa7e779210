"""Numbers about weights: angles between the vectors of a kernel, weights that are exactly zero, Fisher information."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from rich.table import Table

from jaxreg._angles import LargestCosine, all_cosines, over_batch
from jaxreg._checks import check_key, describe, is_float_array
from jaxreg._matrix import Axes, Mode, View, as_vectors, check_mode, checked_axes, positive_axes, within_groups
from jaxreg._names import public
from jaxreg._numerics import as_wide
from jaxreg._paths import check_no_optimizer_state, leaves_with_paths, replace_leaves
from jaxreg._shards import gathered, split_of
from jaxreg._spread import penalty_of_matrices
from jaxreg._tables import Tables, add_row, table


@public
def cosines(x: ArrayLike, *, mode: Mode = "rows", out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns the cosines between all rows (or columns): UUᵀ with the rows u_i = x_i / max(‖x_i‖, 1e-7) of U.

    The kernel is seen as a matrix as in `jaxreg.OrthogonalRegularizer`. A zero row has the cosine 0 with every row,
    itself included. A kernel that is divided over a mesh is gathered, so every device has all cosines.

    Args:
      x: a real floating-point array of rank >= 2.
      mode: "rows" or "columns", the vectors that are compared.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices.

    Returns:
      An array (n, n) in at least float32, or (batch, n, n) where `batch_axis` names an axis.

    Raises:
      TypeError, ValueError: as `jaxreg.OrthogonalRegularizer` does.

    >>> jaxreg.diagnostics.cosines(jnp.array([[3.0, 0.0], [0.0, -2.0]])).round(4)
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    check_mode(mode)
    x = as_wide(x)
    split_of(x)  # raises an error for a shard
    vectors = as_vectors(gathered(x), View(mode, out_axis, batch_axis))
    grams = over_batch(all_cosines, *vectors)
    return grams[0] if isinstance(batch_axis, tuple | list) and not batch_axis else grams


@public
def mutual_coherence(x: ArrayLike, *, mode: Mode = "rows", out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns the largest |cosine| between two distinct rows (or columns), max_{i≠j} |cos(x_i, x_j)|, over all
    matrices.

    A kernel that is divided over a mesh is gathered, and each device compares its share of the vectors with all.

    For n vectors in d dimensions it is at least √((n−d)/(d(n−1))). A single vector has the coherence 0. No more than
    1024 rows of the cosines are held at a time.

    Arguments, shapes and errors are those of `cosines`. The result is a scalar in at least float32.

    >>> float(jaxreg.diagnostics.mutual_coherence(jnp.array([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])))
    1.0

    Source: Welch, Lower bounds on the maximum cross correlation of signals, 1974.
    """
    check_mode(mode)
    return penalty_of_matrices(LargestCosine(), as_wide(x), View(mode, out_axis, batch_axis))


@public
def sparsity(tree: Any, *, group_axis: Axes | None = None, batch_axis: Axes = ()) -> dict[str, jax.Array]:
    """Returns the share of each parameter that is exactly zero, by path. It counts weights or groups, and is jittable.

    Args:
      tree: any tree of parameters that `jaxreg.Rules` take. Leaves that are not floating-point arrays have no share.
      group_axis: None counts the weights that are zero. An axis, or several, whose indices count groups as in
        `jaxreg.GroupLasso`, counts the groups in which all weights are zero. The scale of a normalization has a channel
        for each weight. Other vectors and scalars have no groups.
      batch_axis: further axes that count groups, such as that of layers stacked by `nn.scan`.

    Returns:
      A dict from paths to scalars in float32. An empty array has the share 0.

    Raises:
      TypeError, ValueError: an axis does not fit a parameter of rank >= 2; the message has its path.

    >>> params = {"kernel": jnp.array([[0.0, 1.0], [0.0, 0.0]]), "bias": jnp.ones(2)}
    >>> {path: float(share) for path, share in jaxreg.diagnostics.sparsity(params).items()}
    {'bias': 0.0, 'kernel': 0.75}
    >>> {path: float(share) for path, share in jaxreg.diagnostics.sparsity(params, group_axis=-1).items()}
    {'kernel': 0.5}
    """
    checked_axes(batch_axis, name="batch_axis")
    if group_axis is None:
        return {path: _share(leaf == 0) for path, leaf in _parameters(tree)}
    return {path: _share(dead) for path, dead in _dead(tree, group_axis, batch_axis).items()}


@public
def dead_units(tree: Any, *, group_axis: Axes = -1, batch_axis: Axes = ()) -> Any:
    """Returns a tree like `tree` of bool arrays, which are true for groups whose weights are all exactly zero.

    By default a group is a unit of a Dense kernel `(in, out)`, or a filter of a convolution. Without weights, its
    output is its bias for every input. The same holds for a channel whose normalization has the scale 0: a vector
    named `scale`, `gamma` or `weight`, as linen, NNX, Haiku, Keras and Equinox name them. The function is jittable.

    Args:
      tree: a tree of parameters. For an `nnx.Module`, give `nnx.state(model, nnx.Param)`.
      group_axis: the axis or axes whose indices count groups, as in `jaxreg.GroupLasso`.
      batch_axis: further axes that count groups, such as that of layers stacked by `nn.scan`. All arrays of the tree
        are taken as stacked: of rank 2, a bias has no groups then, and a scale has its channels along the other axis.

    Returns:
      The tree with a bool array for each parameter that has groups, and None for other leaves. The array has the sizes
      of `group_axis` and `batch_axis`, in their order in the parameter.

    Raises:
      TypeError, ValueError: an axis does not fit a parameter of rank >= 2; the message has its path.

    >>> params = {"kernel": jnp.array([[0.0, 1.0], [0.0, 0.0]]), "bias": jnp.ones(2)}
    >>> jaxreg.diagnostics.dead_units(params)
    {'bias': None, 'kernel': Array([ True, False], dtype=bool)}
    """
    dead = _dead(tree, group_axis, batch_axis)
    return replace_leaves(tree, {path: dead.get(path) for path, _ in leaves_with_paths(tree)})


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


class _Sparsity(Tables):
    """The table that `sparsity_table` returns."""

    def __init__(self, tree: Any, group_axis: Axes, batch_axis: Axes):
        self._zeros = {path: (describe(leaf), np.asarray(leaf == 0)) for path, leaf in _parameters(tree)}
        self._dead = {path: np.asarray(dead) for path, dead in _dead(tree, group_axis, batch_axis).items()}

    def _tables(self) -> tuple[Table, ...]:
        numbers = ("weights", "zero", "share", "groups", "dead", "share of groups")
        made = table("path", "array", *numbers, "which are dead", right=numbers)
        for path, (array, zeros) in self._zeros.items():
            dead = self._dead.get(path)
            groups = ("", "", "", "") if dead is None else (*_counts(dead), _places(dead))
            add_row(made, path, array, *_counts(zeros), *groups)
        made.add_section()
        flat = [np.concatenate([a.ravel() for a in arrays] or [np.zeros(0, bool)]) for arrays in self._columns()]
        add_row(made, "all", "", *(cell for column in flat for cell in _counts(column)), "")
        return (made,)

    def _columns(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return [zeros for _, zeros in self._zeros.values()], list(self._dead.values())


@public
def sparsity_table(tree: Any, *, group_axis: Axes = -1, batch_axis: Axes = ()) -> Tables:
    """Returns a table of the weights and groups of each parameter that are exactly zero, and of which groups are dead.

    Print it, or show it in a notebook. `rich.print` folds it to the width of a terminal.

    Arguments and errors are those of `sparsity` and `dead_units`. The arrays must have values.

    >>> params = {"kernel": jnp.array([[0.0, 1.0], [0.0, 0.0]]), "bias": jnp.ones(2)}
    >>> print(jaxreg.diagnostics.sparsity_table(params))
    path     array          weights   zero   share   groups   dead   share of groups   which are dead
    ─────────────────────────────────────────────────────────────────────────────────────────────────
    bias     float32[2]           2      0    0.0%
    kernel   float32[2,2]         4      3   75.0%        2      1             50.0%   0
    <BLANKLINE>
    all                           6      3   50.0%        2      1             50.0%
    """
    return _Sparsity(tree, group_axis, batch_axis)


def _parameters(tree: Any) -> list[tuple[str, Any]]:
    check_no_optimizer_state(tree)
    found = [(path, leaf) for path, leaf in leaves_with_paths(tree) if is_float_array(leaf)]
    for path, leaf in found:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(f"`tree` must hold values, got the shape {describe(leaf)} at `{path}`")
        try:
            split_of(leaf)  # raises an error for a shard, whose share is not that of the whole
        except ValueError as error:
            raise ValueError(f"at `{path}`: {error}") from error
    return found


# The last names of vectors by which a normalization scales its channels.
_SCALES = ("scale", "gamma", "weight")


def _dead(tree: Any, group_axis: Axes, batch_axis: Axes) -> dict[str, jax.Array]:
    found = {}
    batch = checked_axes(batch_axis, name="batch_axis")
    stacked = 1 if isinstance(batch, int) else len(batch)
    for path, leaf in _parameters(tree):
        rank = leaf.ndim - stacked
        is_scale = rank == 1 and path.rsplit("/", 1)[-1] in _SCALES
        if is_scale or rank > 1:
            try:
                positive_axes(batch_axis, leaf.ndim, name="batch_axis")
                if is_scale:
                    found[path] = leaf == 0
                    continue
                over, _ = within_groups(leaf, group_axis, batch_axis, False)
            except (TypeError, ValueError) as error:
                raise type(error)(f"at `{path}`: {error}") from error
            found[path] = jnp.all(leaf == 0, axis=over.axes)
    return found


def _share(zero: jax.Array) -> jax.Array:
    return jnp.mean(zero.astype(jnp.float32)) if zero.size else jnp.zeros((), jnp.float32)


def _counts(zero: np.ndarray) -> tuple[str, str, str]:
    share = f"{zero.mean():.1%}" if zero.size else "-"
    return f"{zero.size:,}", f"{int(zero.sum()):,}", share


def _places(dead: np.ndarray, most: int = 10) -> str:
    """Returns the indices of the dead groups, with ranges for those that follow each other."""
    if dead.ndim > 1:
        places = [str(tuple(map(int, place))) for place in np.argwhere(dead)]
    else:
        indices = np.flatnonzero(dead)
        runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1) if indices.size else []
        places = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    rest = f" and {len(places) - most} more" if len(places) > most else ""
    return ", ".join(places[:most]) + rest
