"""Penalties of captured layer outputs, in linen and in NNX."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxreg import L2, Rules, activity_penalty

RULES = Rules((r"Dense_0/__call__", L2(0.01)))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5, kernel_init=nn.initializers.ones)(x)
        return nn.Dense(1)(nn.relu(x))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 5, kernel_init=nnx.initializers.ones, rngs=rngs)

    def __call__(self, x):
        return jnp.sum(self.first(x))


X = 2.0 * jnp.ones((5, 5))


@pytest.mark.standard_promotion
def test_linen_intermediates():
    variables = Linen().init(jax.random.key(0), X)

    @jax.jit
    def penalty(params):
        _, captured = Linen().apply({"params": params}, X, capture_intermediates=True, mutable=["intermediates"])
        return activity_penalty(RULES, captured["intermediates"], batch_size=X.shape[0])

    value, gradient = jax.value_and_grad(penalty)(variables["params"])
    np.testing.assert_allclose(value, 5.0, rtol=1e-6)  # 0.01 · 25 · 10² / 5
    # The gradient of 0.01 · ‖XK‖² / 5 with respect to K is 0.02 · Xᵀ(XK) / 5.
    np.testing.assert_allclose(gradient["Dense_0"]["kernel"], np.full((5, 5), 0.02 * 5 * 2 * 10 / 5), rtol=1e-6)
    assert not np.any(gradient["Dense_1"]["kernel"])


@pytest.mark.standard_promotion
def test_nnx_captures():
    model = Nnx(nnx.Rngs(0))
    _, captured = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)(X)
    rules = Rules((r"^first/__call__/0$", L2(0.01)))
    np.testing.assert_allclose(activity_penalty(rules, captured, batch_size=5), 5.0, rtol=1e-6)


OUTPUTS = {"Dense_0": {"__call__": (10.0 * jnp.ones((5, 5)),)}}
EMPTY = {"Dense_0": {"__call__": (jnp.ones((0, 5)),)}}


def traced(size):
    """The penalty of OUTPUTS and of EMPTY where the batch size is a tracer."""
    return jax.jit(lambda n: (activity_penalty(RULES, OUTPUTS, batch_size=n), _of_empty(n)))(size)


def _of_empty(size):
    return activity_penalty(RULES, EMPTY, batch_size=size)


@pytest.mark.parametrize("size", [5, np.int64(5), np.int8(5), np.asarray(5), jnp.asarray(5), jnp.asarray(5, jnp.uint8)])
def test_batch_sizes(size):
    for value in (activity_penalty(RULES, OUTPUTS, batch_size=size), traced(size)[0]):
        chex.assert_shape(value, ())
        chex.assert_type(value, jnp.float32)
        assert value == 5.0


def test_a_large_batch_size():
    assert activity_penalty(RULES, OUTPUTS, batch_size=2**40) == np.float32(25.0 / 2**40)


@pytest.mark.parametrize("size", [0, np.int64(0), np.asarray(0), jnp.asarray(0)])
def test_an_empty_batch_has_the_penalty_0(size):
    """It has it whether the batch size is traced or not, and so does its gradient."""
    for value in (_of_empty(size), traced(size)[1]):
        chex.assert_type(value, jnp.float32)
        assert value == 0.0
    chex.assert_tree_all_finite(traced(size))
    slope = jax.grad(lambda x: activity_penalty(RULES, {"Dense_0": {"__call__": (x,)}}, batch_size=size))
    chex.assert_tree_all_finite((slope(jnp.ones((0, 5))), slope(jnp.ones((2, 5)))))


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (5.0, TypeError, "`batch_size` must be an integer, got float 5.0"),
        (True, TypeError, "`batch_size` must be an integer, got bool True"),
        (None, TypeError, "`batch_size` must be an integer, got None"),
        (jnp.ones(()), TypeError, r"`batch_size` must be an integer, got float32\[\]"),
        (jnp.arange(3), ValueError, r"`batch_size` must be a scalar, got int32\[3\]"),
        (-1, ValueError, "`batch_size` must be >= 0, got -1"),
        (np.int64(-3), ValueError, "`batch_size` must be >= 0, got -3"),
        (np.asarray(-3), ValueError, "`batch_size` must be >= 0, got -3"),
    ],
)
def test_errors(size, error, message):
    with pytest.raises(error, match=message):
        activity_penalty(RULES, OUTPUTS, batch_size=size)


def test_rules_must_be_callable():
    with pytest.raises(TypeError, match="`rules` must be a function from a tree to a scalar, got None"):
        activity_penalty(None, {}, batch_size=5)


def test_a_rule_that_meets_no_output_is_an_error():
    with pytest.raises(ValueError, match="met no parameter"):
        activity_penalty(RULES, {"Dense_1": {"__call__": (jnp.ones((5, 5)),)}}, batch_size=5)
