"""Cosines and mutual coherence against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.diagnostics import cosines, mutual_coherence

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
    assert mutual_coherence(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32
    # Below the least norm a cosine is linear in the row, with the slope 1/1e-7.
    slope = jax.grad(lambda x: cosines(x)[0, 1])(jnp.array([[1.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(slope[1], [1e7, 0.0], rtol=1e-6)
