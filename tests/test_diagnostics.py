"""Cosines and mutual coherence against NumPy, and the counts of weights and units that are exactly zero."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxreg.diagnostics import (
    cosines,
    dead_units,
    effective_rank,
    mutual_coherence,
    sparsity,
    sparsity_table,
    spectrum_table,
)

X = np.random.default_rng(0).normal(size=(4, 3, 5))


def by_hand(rows):
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return units @ units.T


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_cosines(mode):
    flat = X.reshape(12, 5)
    expected = by_hand(flat if mode == "rows" else flat.T)
    np.testing.assert_allclose(cosines(X, mode=mode), expected, atol=1e-6)
    off = np.abs(expected - np.diag(np.diag(expected)))
    np.testing.assert_allclose(mutual_coherence(X, mode=mode), off.max(), rtol=1e-5)


@pytest.mark.parametrize("mode", ["rows", "columns"])
@pytest.mark.parametrize("axis", [0, (0,)])
def test_batches(mode, axis):
    expected = np.stack([by_hand(x if mode == "rows" else x.T) for x in X])
    np.testing.assert_allclose(cosines(X, mode=mode, batch_axis=axis), expected, atol=1e-6)
    off = np.abs(expected) * (1 - np.eye(expected.shape[-1]))
    np.testing.assert_allclose(mutual_coherence(X, mode=mode, batch_axis=axis), off.max(), rtol=1e-5)


def test_awkward_points():
    zero_row = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(cosines(zero_row), [[0, 0], [0, 1]], atol=1e-7)
    assert mutual_coherence(jnp.ones((1, 3))) == 0
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        chex.assert_type(mutual_coherence(jnp.ones((2, 3), dtype)), jnp.float32)
        chex.assert_type(cosines(jnp.ones((2, 3), dtype)), jnp.float32)
    # A cosine is linear in a row whose norm is below 1e-7, with the slope 1/1e-7.
    slope = jax.grad(lambda x: cosines(x)[0, 1])(jnp.array([[1.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(slope[1], [1e7, 0.0], rtol=1e-6)


PARAMS = {
    "conv": {"kernel": jnp.ones((2, 1, 3, 4)).at[..., 1].set(0.0), "bias": jnp.array([0.0, 1.0, 0.0, -0.0])},
    "dense": {"kernel": jnp.array([[0.0, 1e-30, 0.0], [0.0, 0.0, 0.0]], jnp.bfloat16)},
    "steps": 3,
}


def test_sparsity_counts_exact_zeros():
    shares = jax.jit(sparsity)(PARAMS)
    assert {path: float(share) for path, share in shares.items()} == {
        "conv/bias": 0.75,
        "conv/kernel": 0.25,
        "dense/kernel": pytest.approx(5 / 6),
    }
    by_unit = jax.jit(lambda tree: sparsity(tree, group_axis=-1))(PARAMS)
    assert {path: float(share) for path, share in by_unit.items()} == {
        "conv/kernel": 0.25,
        "dense/kernel": pytest.approx(2 / 3),
    }
    assert float(sparsity({"w": jnp.zeros((3, 2, 4))}, group_axis=(0, 2))["w"]) == 1.0
    assert float(sparsity({"w": jnp.zeros((0, 4))})["w"]) == 0.0


def test_dead_units_are_a_tree():
    dead = jax.jit(dead_units)(PARAMS | {"steps": jnp.arange(3)})
    np.testing.assert_array_equal(dead["conv"]["kernel"], [False, True, False, False])
    np.testing.assert_array_equal(dead["dense"]["kernel"], [True, False, True])
    assert dead["conv"]["bias"] is None
    assert dead["steps"] is None
    np.testing.assert_array_equal(dead_units({"w": PARAMS["dense"]["kernel"]}, group_axis=0)["w"], [False, True])
    box = dead_units({"kernel": nn.Partitioned(jnp.zeros((2, 3)), names=(None, None))})["kernel"]
    np.testing.assert_array_equal(box.value, [True] * 3)
    places = dead_units({"w": jnp.zeros((2, 3, 4)).at[0, 0, 0].set(1.0)}, group_axis=(0, 2))["w"]
    np.testing.assert_array_equal(places, np.arange(8).reshape(2, 4) > 0)


STACK = jnp.ones((3, 2, 4)).at[0, :, 1].set(0.0).at[1:, :, 2].set(0.0).at[2, 0].set(0.0)


def test_stacked_layers():
    """A unit of one layer in a stack is one index of its layer and its unit; a unit of the whole is dead in all."""
    trees = {"stack": {"kernel": STACK}}
    by_layer = [dead_units({"kernel": layer})["kernel"] for layer in STACK]
    np.testing.assert_array_equal(dead_units(trees, group_axis=(0, -1))["stack"]["kernel"], by_layer)
    np.testing.assert_array_equal(dead_units(trees)["stack"]["kernel"], np.all(by_layer, axis=0))
    shares = np.mean([sparsity({"kernel": layer}, group_axis=-1)["kernel"] for layer in STACK])
    np.testing.assert_allclose(sparsity(trees, group_axis=(0, -1))["stack/kernel"], shares, rtol=1e-6)
    np.testing.assert_allclose(
        sparsity(trees)["stack/kernel"], np.mean([sparsity({"k": layer})["k"] for layer in STACK]), rtol=1e-6
    )
    chex.assert_shape(dead_units(trees, group_axis=(0, -1))["stack"]["kernel"], (3, 4))
    chex.assert_type(dead_units(trees)["stack"]["kernel"], bool)
    text = str(sparsity_table(trees, group_axis=(0, -1)))
    assert "(0, 1), (1, 2), (2, 2)" in text
    assert text.split()[-7:] == ["all", "24", "9", "37.5%", "12", "3", "25.0%"]


@pytest.mark.parametrize("mode", ["rows", "columns"])
@pytest.mark.parametrize(("out_axis", "order"), [(-1, (0, 1, 2)), (1, (0, 2, 1)), (2, (0, 1, 2)), (-2, (0, 2, 1))])
def test_cosines_of_stacked_layers(out_axis, order, mode):
    """The layers of a stack are compared within themselves, whichever axis has the columns."""
    layers = [jnp.asarray(layer) for layer in X.transpose(order)]
    found = cosines(X, mode=mode, out_axis=out_axis, batch_axis=0)
    chex.assert_trees_all_close(list(found), [cosines(layer, mode=mode) for layer in layers], atol=1e-6)
    expected = [by_hand(layer if mode == "rows" else layer.T) for layer in X.transpose(order)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    coherence = mutual_coherence(X, mode=mode, out_axis=out_axis, batch_axis=0)
    np.testing.assert_allclose(coherence, max(mutual_coherence(layer, mode=mode) for layer in layers), rtol=1e-5)


def test_an_nnx_model_has_shares_and_its_state_has_dead_units():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert float(sparsity(model)["bias"]) == 1.0
    np.testing.assert_array_equal(dead_units(nnx.state(model))["kernel"][...], [False] * 3)
    with pytest.raises(TypeError, match=r"`tree` must hold arrays, got an nnx.Module"):
        dead_units(model)


def test_the_table_shows_what_is_dead():
    text = str(sparsity_table(PARAMS))
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["conv/kernel"] == ["conv/kernel", "float32[2,1,3,4]", "24", "6", "25.0%", "4", "1", "25.0%", "1"]
    assert lines["dense/kernel"][-5:] == ["3", "2", "66.7%", "0,", "2"]
    assert lines["conv/bias"][1:] == ["float32[4]", "4", "3", "75.0%"]
    assert lines["all"] == ["all", "34", "14", "41.2%", "7", "3", "42.9%"]
    runs = str(sparsity_table({"w": jnp.ones((1, 60)).at[0, 1::2].set(0.0).at[0, 10:20].set(0.0)}))
    assert "1, 3, 5, 7, 9-19, 21, 23, 25, 27, 29 and 15 more" in runs
    heads = jnp.ones((2, 2, 3)).at[0, :, 1].set(0).at[1, :, 2].set(0)
    assert "(0, 1), (1, 2)" in str(sparsity_table({"w": heads}, group_axis=(0, 2)))
    assert "all" in str(sparsity_table({}))


@pytest.mark.parametrize("function", [sparsity, dead_units, sparsity_table])
def test_an_axis_that_does_not_fit_names_the_path(function):
    function({"vector": jnp.ones(2)}, group_axis=2)  # A vector has no groups, so that any axis fits it.
    with pytest.raises(ValueError, match=r"at `a/w`: `group_axis` must lie in \[-2, 2\) for rank 2, got \(2,\)"):
        function({"a": {"w": jnp.ones((2, 2))}}, group_axis=2)


@pytest.mark.parametrize("function", [sparsity, dead_units, sparsity_table])
def test_shapes_without_values_are_an_error(function):
    shapes = jax.eval_shape(lambda: {"a": {"w": jnp.ones((2, 2))}})
    with pytest.raises(TypeError, match=r"`tree` must hold values, got the shape float32\[2,2\] at `a/w`"):
        function(shapes)


# Spectra.


def ranks_by_hand(matrix):
    """The stable and the effective rank of a matrix by their formulas."""
    s = np.linalg.svd(matrix, compute_uv=False)
    shares = s / s.sum()
    shares = shares[shares > 1e-15]
    return np.sum(s**2) / s[0] ** 2, np.prod(shares**-shares)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 5e37])
def test_the_effective_rank(scale):
    x = (scale * X).astype(np.float32)
    expected = ranks_by_hand(X.reshape(12, 5))[1]
    for function in (effective_rank, jax.jit(effective_rank)):
        rank = function(x)
        chex.assert_shape(rank, ())
        np.testing.assert_allclose(rank, expected, rtol=1e-5)
    by_batch = effective_rank(x, batch_axis=0)
    np.testing.assert_allclose(by_batch, [ranks_by_hand(layer)[1] for layer in X], rtol=1e-5)
    turned = effective_rank(x, out_axis=(0, 1), batch_axis=())
    np.testing.assert_allclose(turned, expected, rtol=1e-5)


def test_awkward_effective_ranks():
    np.testing.assert_allclose(effective_rank(jnp.diag(jnp.array([2.0, 2.0, 2.0, 0.0]))), 3, rtol=1e-6)
    assert effective_rank(jnp.zeros((3, 4))) == 0
    assert effective_rank(jnp.zeros((0, 4))) == 0
    np.testing.assert_allclose(effective_rank(jnp.ones((1, 4))), 1, rtol=1e-6)
    for bad in (np.nan, np.inf):
        found = effective_rank(jnp.stack([jnp.eye(3), jnp.eye(3).at[0, 1].set(bad)]), batch_axis=0)
        np.testing.assert_allclose(found, [3.0, np.nan], rtol=1e-6)
    chex.assert_type(effective_rank(jnp.eye(3, dtype=jnp.bfloat16)), jnp.float32)
    with pytest.raises(ValueError, match=r"`x` must have rank >= 2 to be seen as a matrix, got float32\[3\]"):
        effective_rank(jnp.ones(3))
    with pytest.raises(ValueError, match=r"`out_axis` must lie in \[-2, 2\)"):
        effective_rank(jnp.ones((3, 3)), out_axis=2)
    with pytest.raises(TypeError, match="`x` must be a real floating-point array"):
        effective_rank(jnp.ones((3, 3), int))


@pytest.mark.parametrize(("out_axis", "order"), [(-1, (0, 1, 2)), (1, (0, 2, 1))])
def test_the_table_of_spectra(out_axis, order):
    tree = {"stack": {"kernel": jnp.asarray(X), "bias": jnp.ones(5)}, "zero": jnp.zeros((1, 2, 3)), "steps": 3}
    made = spectrum_table(tree, out_axis=out_axis, batch_axis=0)
    assert [row.path for row in made.rows] == ["stack/kernel", "zero"]
    row, zero = made.rows
    for i, layer in enumerate(np.float64(jnp.asarray(X)).transpose(order)):
        s = np.linalg.svd(layer, compute_uv=False)
        stable, effective = ranks_by_hand(layer)
        numbers = [s[0], s[-1], s[0] / s[-1], stable, effective, np.linalg.norm(layer)]
        np.testing.assert_allclose([column[i] for column in row[3:]], numbers, rtol=1e-10)
    assert row.seen == f"4 matrices {X.transpose(order).shape[1]}×{X.transpose(order).shape[2]}"
    assert [float(column[0]) for column in zero[3:]] == [0, 0, np.inf, 0, 0, 0]
    line = next(line for line in str(made).splitlines() if line.startswith("stack/kernel"))
    assert f"{row.largest.min():.4g} to {row.largest.max():.4g}" in line
    assert f"{row.effective_rank.min():.4g} to {row.effective_rank.max():.4g}" in line


def test_spectra_that_are_not_finite_or_of_low_rank():
    made = spectrum_table({"a": jnp.stack([jnp.eye(3), jnp.full((3, 3), jnp.nan)])}, batch_axis=0)
    assert "1 and nan" in str(made)
    low = spectrum_table(np.outer(np.arange(1.0, 5.0), np.ones(3)))
    assert str(low).splitlines()[-1].startswith("the array")
    (row,) = low.rows
    assert row.smallest[0] == 0
    assert row.condition[0] == np.inf
    np.testing.assert_allclose([row.stable_rank[0], row.effective_rank[0]], 1, rtol=1e-12)
    (row,) = spectrum_table(1e30 * jnp.eye(3)).rows
    np.testing.assert_allclose([row.norm[0], row.stable_rank[0]], [3**0.5 * 1e30, 3.0], rtol=1e-6)


def test_faults_of_the_table_of_spectra():
    with pytest.raises(ValueError, match=r"at `a/w`: `out_axis` must lie in \[-2, 2\) for rank 2, got \(2,\)"):
        spectrum_table({"a": {"w": jnp.ones((2, 2))}}, out_axis=2)
    with pytest.raises(ValueError, match=r"`tree` must hold a floating-point array of rank >= 2, got none"):
        spectrum_table({"bias": jnp.ones(3)})
    with pytest.raises(TypeError, match=r"`tree` must have values, got the shape float32\[2,2\]"):
        spectrum_table({"w": jax.ShapeDtypeStruct((2, 2), jnp.float32)})
    with pytest.raises(TypeError, match="`tree` must have values, got traced"):
        jax.jit(lambda tree: spectrum_table(tree).rows[0].norm)({"w": jnp.ones((2, 2))})


@pytest.mark.parametrize("value", [3, None])
def test_a_table_of_something_else_names_the_tree(value):
    with pytest.raises((TypeError, ValueError), match="`tree` must"):
        spectrum_table(value)
