"""Penalties of captured layer outputs, in linen and in NNX."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxreg import L2, DeCov, KLSparsity, Rules, VICRegCovariance, VICRegVariance, ZLoss, activity_penalty, penalties

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


# Penalties that are means over the batch by themselves.

MEANS = {
    "z_loss": (ZLoss, penalties.z_loss, references.z_loss),
    "kl_sparsity": (KLSparsity, penalties.kl_sparsity, references.kl_sparsity),
    "decov": (DeCov, penalties.decov, references.decov),
    "vicreg_covariance": (VICRegCovariance, penalties.vicreg_covariance, references.vicreg_covariance),
    "vicreg_variance": (VICRegVariance, penalties.vicreg_variance, references.vicreg_variance),
}


def outputs_of(*shape):
    return np.random.default_rng(0).uniform(0.05, 0.95, size=shape).astype(np.float32)


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("size", [8, np.int8(8), jnp.asarray(8)])
def test_means_are_not_divided_again(name, size):
    """Alone, in a sum with a penalty that is divided, in a multiple, and in a multiple of a sum."""
    cls, _, reference = MEANS[name]
    x = outputs_of(8, 5)
    mean = float(reference(x[None].astype(float), rows=(0,), columns=(1,))[0])
    squares = np.sum(x.astype(float) ** 2) / 8
    for regularizer, expected in (
        (cls(0.3), 0.3 * mean),
        (cls(0.3) + L2(0.1), 0.3 * mean + 0.1 * squares),
        (2.0 * cls(0.3), 0.6 * mean),
        (2.0 * (cls(0.3) + L2(0.1)), 0.6 * mean + 0.2 * squares),
    ):
        value = activity_penalty(Rules((r"", regularizer)), {"out": x}, batch_size=size)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert value.dtype == jnp.float32


@pytest.mark.parametrize("name", MEANS)
def test_functions_that_are_means_are_not_divided_again(name):
    _, function, reference = MEANS[name]
    x = outputs_of(8, 5)
    mean = float(reference(x[None].astype(float), rows=(0,), columns=(1,))[0])
    for penalty in (function, functools.partial(function, out_axis=1)):
        value = activity_penalty(Rules((r"", penalty)), {"out": x}, batch_size=8)
        np.testing.assert_allclose(value, mean, rtol=1e-5)


def test_the_curvature_of_a_collapsed_feature():
    """The variance term is smooth there: (γ − √(var + ε)) falls with the variance."""
    with jax.enable_x64(True):
        found = jax.hessian(lambda x: penalties.vicreg_variance(x, epsilon=0.01))(jnp.zeros((4, 1))).reshape(4, 4)
    np.testing.assert_allclose(found, -(np.eye(4) - 0.25) / (3 * 0.1), rtol=1e-6)


@pytest.mark.parametrize("name", ["decov", "vicreg_covariance"])
def test_covariances_of_many_large_samples_fit(name):
    x = np.empty((2**16, 8), np.float32)
    x[::2], x[1::2] = 1e8, -1e8
    with jax.enable_x64(True):
        exact = MEANS[name][1](jnp.asarray(x, float))
    np.testing.assert_allclose(MEANS[name][1](jnp.asarray(x)), exact, rtol=1e-5)
    np.testing.assert_allclose(exact, 56 * 1e32 / (2 if name == "decov" else 8), rtol=1e-3)


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("shape", [(16, 5), (8, 3, 4), (8, 24)], ids=str)
def test_statistics_are_those_of_the_whole_batch(name, shape):
    """Through `activity_penalty` and as a pure function, value and gradient, in a batch that eight devices divide."""
    cls, function, reference = MEANS[name]
    x = outputs_of(*shape)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    last = len(shape) - 1
    expected = float(reference(x[None].astype(float), rows=tuple(range(last)), columns=(last,))[0])
    slope = jax.grad(function)(jnp.asarray(x))
    rules = Rules((r"", cls(1.0)))

    def by_rules(x):
        return activity_penalty(rules, {"out": x}, batch_size=x.shape[0], axis_name="d")

    for local in (by_rules, lambda x: function(x, axis_name="d")):
        graded = jax.shard_map(jax.value_and_grad(local), mesh=mesh, in_specs=P("d"), out_specs=(P(), P("d")))
        value, gradient = jax.jit(graded)(x)
        np.testing.assert_allclose(value, expected, rtol=2e-5)
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="must be a whole array, got a shard"):
        jax.shard_map(function, mesh=mesh, in_specs=P("d"), out_specs=P())(x)


@pytest.mark.parametrize("name", MEANS)
def test_axis_names_of_functions_are_checked(name):
    with pytest.raises(ValueError, match=r"`axis_name` must name axes of the `jax.shard_map` around it"):
        MEANS[name][1](jnp.ones((4, 3)), axis_name="d")
    with pytest.raises(TypeError, match="`axis_name` must be a str or a tuple of str"):
        MEANS[name][1](jnp.ones((4, 3)), axis_name=3)


def test_a_feature_that_is_never_active_is_pulled_up():
    """Also where it always is. The slope at the bounds is that of the divergence there."""
    slope = jax.grad(lambda x: KLSparsity(1.0, rho=0.05)(x))
    rho, least, rest = 0.05, 0.01 * 0.05, 0.01 * 0.95
    np.testing.assert_allclose(slope(jnp.zeros((1, 1))), [[-rho / least + (1 - rho) / (1 - least)]], rtol=1e-5)
    np.testing.assert_allclose(slope(jnp.ones((1, 1))), [[-rho / (1 - rest) + (1 - rho) / rest]], rtol=1e-5)
    # With ρ = 1 only the first term is left.
    np.testing.assert_allclose(penalties.kl_sparsity(jnp.full((2, 1), 0.5), rho=1.0), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: penalties.kl_sparsity(x, rho=1.0))(jnp.full((1, 1), 0.5)), [[-2.0]])


def test_wide_outputs_take_the_products_of_samples():
    """No array of features by features is made where samples are fewer."""
    narrow, wide = (
        jax.jit(jax.grad(penalties.decov)).lower(jnp.ones(shape)).compile().memory_analysis().temp_size_in_bytes
        for shape in ((4096, 16), (16, 4096))
    )
    assert wide < 4 * narrow + 2**20


@pytest.mark.parametrize(
    ("shape", "options", "shown"),
    [
        ((20, 24), {}, "20 samples of 24"),
        ((4, 5, 6), {"out_axis": (1, 2)}, "4 samples of 30"),
        ((2, 20, 24), {"batch_axis": 0}, "2 times 20 samples of 24"),
    ],
)
def test_explain_shows_samples_and_features(shape, options, shown):
    assert shown in str(Rules((r"", DeCov(1.0, **options))).explain({"out": jnp.ones(shape)}))
