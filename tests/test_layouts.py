"""The axes of every layer, held to what the layer itself does.

A unit makes one feature of the outputs. The weights that make it are read off the Jacobian of the real layer.
"""

import math
import re
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from guides import assert_shown
from jax.tree_util import keystr, tree_map_with_path
from layouts import EQUINOX, GEMMA, HAIKU, LAYOUTS, LINEN, NNX, Layer, Row, markdown, sizes

from jaxreg import GroupLasso, OrthogonalRegularizer, Rules

# Layers of other libraries mix dtypes and ranks.
pytestmark = pytest.mark.standard_promotion

# Rows of one layer share what is compiled.
BY_LAYER: dict[Any, list[Row]] = {}
for _row in LAYOUTS:
    BY_LAYER.setdefault(_row.make, []).append(_row)
every_layer = pytest.mark.parametrize("rows", BY_LAYER.values(), ids=lambda rows: str(rows[0]))
TINY = 1e-6  # Weights and inputs are not near 0, and neither are the derivatives that exist.


class Measured(NamedTuple):
    """What a layer does.

    Attributes:
      shape: the shape of the kernel.
      jacobian: the derivatives of the outputs with respect to the kernel.
      mixed: the derivatives of a random sum of the outputs with respect to the kernel and the inputs, or None where no
        row asks for inputs.
    """

    shape: tuple[int, ...]
    jacobian: np.ndarray
    mixed: np.ndarray | None

    @property
    def outputs(self) -> tuple[int, ...]:
        return self.jacobian.shape[: self.jacobian.ndim - len(self.shape)]


def kernels(row: Row, tree: Any) -> dict[str, jax.Array]:
    """Returns the kernels that the pattern of a row meets, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    return {path: leaf for path, leaf in named.items() if re.search(row.pattern, path)}


def measure(layer: Layer, path: str, kernel: jax.Array, of_inputs: bool) -> Measured:
    """Returns what a layer does as a function of the kernel at a path, with random weights everywhere."""

    def outputs(kernel, inputs):
        tree = tree_map_with_path(
            lambda keys, leaf: kernel if keystr(keys, simple=True, separator="/") == path else leaf, layer.tree
        )
        return layer.outputs(tree, inputs)

    jacobian = np.asarray(jax.jit(jax.jacfwd(outputs))(kernel, layer.inputs))
    measured = Measured(kernel.shape, jacobian, None)
    if of_inputs:
        weights = jnp.asarray(np.random.default_rng(0).normal(size=measured.outputs), jnp.float32)
        slope = jax.grad(lambda kernel, inputs: jnp.vdot(weights, outputs(kernel, inputs)))
        mixed = jax.jit(jax.jacfwd(slope, argnums=1))(kernel, layer.inputs)
        measured = measured._replace(mixed=np.asarray(mixed))
    return measured


def counted(given, rank):
    """Returns several axes, each an int or a tuple, as one tuple counted from the front."""
    return tuple(axis % rank for some in given for axis in (some if isinstance(some, tuple) else (some,)))


def places(shape, *given):
    """Returns which part of an array each of its elements belongs to, where the indices along some axes count parts."""
    axes = counted(given, len(shape))
    if not axes:
        return np.zeros(math.prod(shape), int)
    return np.ravel_multi_index(tuple(np.indices(shape)[list(axes)]), [shape[axis] for axis in axes]).ravel()


def reach(derivative, features, parts):
    """Returns a bool matrix of which part of the kernel reaches which feature."""
    moves = np.abs(derivative).reshape(features.size, parts.size) > TINY
    return np.eye(parts.max() + 1)[parts].T @ moves.T @ np.eye(features.max() + 1)[features] > 0


def is_one_to_one(found, gates=1):
    """Returns whether each part reaches one feature, and as many parts reach each feature as there are gates."""
    return bool(np.all(found.sum(1) == 1) and np.all(found.sum(0) == gates))


def units_are_features(row, measured, out_axis, batch_axis):
    """Returns whether each column of each matrix makes one feature of the outputs."""
    features = places(measured.outputs, row.units)
    units = places(measured.shape, batch_axis, out_axis)
    return is_one_to_one(reach(measured.jacobian, features, units), row.gates)


def groups_are_parts(row, measured, group_axis, batch_axis):
    """Returns whether each group of weights makes one part of the outputs, or meets one part of the inputs."""
    groups = places(measured.shape, batch_axis, group_axis)
    if row.of_inputs:
        mixed = measured.mixed.reshape(groups.size, -1).T
        parts = places(measured.mixed.shape[len(measured.shape) :], row.removed)
        return is_one_to_one(reach(mixed, parts, groups))
    parts = places(measured.outputs, row.units if row.removed is None else row.removed)
    return is_one_to_one(reach(measured.jacobian, parts, groups), row.gates)


def share_inputs(row, measured):
    """Returns whether the units of each matrix see the same inputs.

    The derivative of a feature with respect to the weights of its unit is what they are multiplied by, up to a factor.
    """
    features, matrices = places(measured.outputs, row.units), places(measured.shape, row.batch_axis)
    units = places(measured.shape, row.batch_axis, row.out_axis)
    reached = reach(measured.jacobian, features, units).argmax(1)
    jacobian = measured.jacobian.reshape(features.size, units.size)
    first = {}
    for unit, feature in enumerate(reached):
        inputs = jacobian[np.ix_(features == feature, units == unit)]
        lengths = np.linalg.norm(inputs, axis=1, keepdims=True)
        inputs = inputs / np.where(lengths > TINY, lengths, 1)
        others = first.setdefault(matrices[units == unit][0], inputs)
        if np.max(np.abs(np.abs(np.sum(others * inputs, axis=1)) - (lengths[:, 0] > TINY))) > 1e-4:
            return False
    return True


def is_default(axis, batch_axis, rank):
    return batch_axis == () and axis in (-1, rank - 1)


@every_layer
def test_units_and_groups_are_those_of_the_layer(rows):
    """Each unit makes one feature, each group is one part, and the default does so where the table says so."""
    layer = rows[0].make()
    path, kernel = next(iter(kernels(rows[0], layer.tree).items()))
    measured = measure(layer, path, kernel, any(row.of_inputs for row in rows))
    for row in rows:
        assert sizes(row.shape) == kernel.shape
        if row.out_axis is not None:
            assert units_are_features(row, measured, row.out_axis, row.batch_axis)
            assert share_inputs(row, measured) == row.shares_inputs
            default = is_default(row.out_axis, row.batch_axis, kernel.ndim)
            assert units_are_features(row, measured, -1, ()) == default
        assert groups_are_parts(row, measured, row.group_axis, row.group_batch)
        default = is_default(row.group_axis, row.group_batch, kernel.ndim)
        assert groups_are_parts(row, measured, -1, ()) == default


# A schedule has no value yet, so that `explain` need not trace the penalties.
STRENGTH = optax.constant_schedule(0.5)


@every_layer
def test_rules_see_these_units_and_groups(rows):
    """`explain` has the numbers of matrices, units and groups that the table has."""
    tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), eqx.filter(rows[0].make().tree, eqx.is_array))
    for row in rows:
        for shape, seen in _seen(row, tree, GroupLasso(STRENGTH, row.group_axis, batch_axis=row.group_batch)):
            groups = _count(shape, row.group_axis, row.group_batch)
            assert seen == f"{groups} groups of {math.prod(shape) // groups}"
        if row.out_axis is not None:
            units = OrthogonalRegularizer(STRENGTH, "columns", out_axis=row.out_axis, batch_axis=row.batch_axis)
            for shape, seen in _seen(row, tree, units):
                matrices, columns = _count(shape, row.batch_axis), _count(shape, row.out_axis)
                word = "matrix" if matrices == 1 else "matrices"
                assert seen == f"{matrices} {word} {math.prod(shape) // matrices // columns}×{columns}"


def _seen(row, tree, regularizer):
    """Returns the shapes of the kernels that a rule meets, with what it sees in them."""
    shapes = {path: kernel.shape for path, kernel in kernels(row, tree).items()}
    met = {found.path: found.seen for found in Rules((row.pattern, regularizer)).explain(tree).rows if found.patterns}
    assert set(met) == set(shapes)
    return [(shapes[path], seen) for path, seen in met.items()]


def _count(shape, *given):
    return math.prod(shape[axis] for axis in counted(given, len(shape)))


TABLES = {"Flax linen": LINEN, "Flax NNX": NNX, "Equinox": EQUINOX, "Haiku": HAIKU, "Gemma": GEMMA}


@pytest.mark.parametrize("library", TABLES)
def test_the_page_has_the_table(library):
    assert_shown("layouts.md", f"## {library}\n\n{markdown(TABLES[library])}\n")
