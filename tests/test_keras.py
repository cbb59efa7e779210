"""Keras 3 on its JAX backend as the oracle for its four regularizers, and where Keras fails and jaxreg does not."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import jaxreg

pytestmark = pytest.mark.standard_promotion

PAIRS = {
    "L1": (jaxreg.L1(0.3), lambda: keras.regularizers.L1(0.3)),
    "L2": (jaxreg.L2(0.3), lambda: keras.regularizers.L2(0.3)),
    "L1L2": (jaxreg.L1L2(0.3, 0.2), lambda: keras.regularizers.L1L2(0.3, 0.2)),
    "orthogonal rows": (
        jaxreg.OrthogonalRegularizer(0.3, "rows"),
        lambda: keras.regularizers.OrthogonalRegularizer(0.3, "rows"),
    ),
    "orthogonal columns": (
        jaxreg.OrthogonalRegularizer(0.3, "columns"),
        lambda: keras.regularizers.OrthogonalRegularizer(0.3, "columns"),
    ),
}
pairs = pytest.mark.parametrize("name", PAIRS)


def sample(shape, kind="random"):
    x = np.random.default_rng([len(kind), *shape]).normal(size=shape)
    if kind == "repeated rows":
        x[1] = x[0]
    if kind == "tiny row":
        x[1] *= 1e-9
    if kind == "wide range":
        x *= np.logspace(-3, 3, shape[0])[:, None]
    return x


@pairs
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5), (40, 30)], ids=str)
@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
def test_values_and_gradients_are_those_of_keras(name, shape, x64):
    ours, make = PAIRS[name]
    # Keras holds some of its strengths in float32; ours are compared with just that number.
    theirs = make()
    both = [jax.jit(jax.value_and_grad(f)) for f in (type(ours).from_config(theirs.get_config()), theirs)]
    for kind in ("random", "repeated rows", "tiny row", "wide range"):
        with jax.enable_x64(x64):
            x = jnp.asarray(sample(shape, kind))
            (value, gradient), (expected, slope) = (f(x) for f in both)
            assert value.dtype == x.dtype
            rtol = 1e-10 if x64 else 2e-6
            np.testing.assert_allclose(value, expected, rtol=rtol, err_msg=kind)
            largest = np.abs(np.asarray(slope)).max()
            atol = largest * (1e-10 if x64 else 2e-5)
            np.testing.assert_allclose(gradient, slope, rtol=rtol, atol=atol, err_msg=kind)


@pairs
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_low_precision_is_keras_in_float32(name, dtype):
    ours, make = PAIRS[name]
    x = jnp.asarray(sample((6, 5)), jnp.float32).astype(dtype)
    np.testing.assert_allclose(ours(x), make()(x.astype(jnp.float32)), rtol=2e-6)


def keras_orthogonal(mode="rows"):
    return keras.regularizers.OrthogonalRegularizer(0.5, mode)


# Each of these asserts that Keras still fails, so that the claim cannot go stale unnoticed.


@pytest.mark.parametrize(("mode", "shape"), [("rows", (1, 3)), ("columns", (3, 1))])
def test_one_vector_has_no_pair(mode, shape):
    x = jnp.ones(shape)
    with np.errstate(all="ignore"):
        assert np.isnan(_keras_or_nan(keras_orthogonal(mode), x))
    value, gradient = jax.value_and_grad(jaxreg.OrthogonalRegularizer(0.5, mode))(x)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros(shape))


def _keras_or_nan(regularizer, x):
    """Keras divides by a Python 0 here: an exception or NaN, by version."""
    try:
        return float(regularizer(x))
    except ZeroDivisionError:
        return float("nan")


def test_a_zero_row_has_no_gradient():
    x = jnp.array([[0.0, 0.0], [1.0, 2.0], [3.0, -1.0]])
    assert np.isnan(jax.grad(keras_orthogonal())(x)[0]).all()
    gradient = jax.grad(jaxreg.OrthogonalRegularizer(0.5))(x)
    np.testing.assert_array_equal(gradient[0], np.zeros(2))
    assert np.isfinite(gradient).all()


def test_a_zero_weight_is_not_pushed_by_l1():
    x = jnp.array([0.0, 1.0])
    assert jax.grad(keras.regularizers.L1(0.5))(x)[0] != 0
    np.testing.assert_array_equal(jax.grad(jaxreg.L1(0.5))(x), [0.0, 0.5])


def test_long_sums_in_low_precision():
    half = jnp.full((70_000,), 1.5, jnp.float16)
    assert np.isinf(keras.regularizers.L2(1.0)(half))
    assert jaxreg.L2(1.0)(half) == 70_000 * 2.25
    brain = jnp.full((259_080,), 1.01, jnp.bfloat16)
    exact = np.square(np.asarray(brain, np.float64)).sum()
    assert abs(float(keras.regularizers.L2(1.0)(brain)) / exact - 1) > 1e-3
    assert abs(float(jaxreg.L2(1.0)(brain)) / exact - 1) < 1e-6


def test_strengths_may_be_traced():
    x = jnp.array([1.0, 2.0])
    with pytest.raises((ValueError, TypeError)):
        jax.grad(lambda s: keras.regularizers.L2(s)(x))(0.1)
    assert jax.grad(lambda s: jaxreg.L2(s)(x))(0.1) == 5.0


def test_convolution_kernels_work():
    x = jnp.asarray(sample((12, 5))).reshape(2, 2, 3, 5)
    with pytest.raises(ValueError, match="rank 2"):
        keras_orthogonal("columns")(x)
    ours = jaxreg.OrthogonalRegularizer(0.5, "columns")(x)
    np.testing.assert_allclose(ours, keras_orthogonal("columns")(x.reshape(12, 5)), rtol=1e-6)


def test_a_regularizer_is_an_argument_of_jit():
    x = jnp.array([1.0, 2.0])
    with pytest.raises(TypeError):
        jax.jit(lambda r, x: r(x))(keras.regularizers.L2(0.1), x)
    assert jax.jit(lambda r, x: r(x))(jaxreg.L2(0.1), x) == 0.5


# Names and configs, both ways.


@pairs
def test_configs_are_read_both_ways(name):
    ours, make = PAIRS[name]
    theirs = make()
    assert jaxreg.get(keras.regularizers.serialize(theirs)).get_config() == theirs.get_config()
    assert jaxreg.deserialize(keras.regularizers.serialize(theirs)).get_config() == theirs.get_config()
    again = keras.regularizers.deserialize(jaxreg.serialize(ours))
    assert type(again) is type(theirs)
    assert again.get_config() == theirs.get_config()
    assert type(keras.regularizers.get(jaxreg.serialize(ours))) is type(theirs)


@pairs
def test_objects_of_keras_become_ours_with_their_strengths(name):
    ours, make = PAIRS[name]
    found = jaxreg.get(make())
    assert type(found) is type(ours)
    np.testing.assert_allclose(jax.tree.leaves(found), jax.tree.leaves(ours), rtol=1e-6)
    assert jax.tree.leaves(jaxreg.Rules((r"", make()))) == jax.tree.leaves(found)


@pytest.mark.parametrize("name", ["l1", "L1", "l2", "L2", "OrthogonalRegularizer", "orthogonal_regularizer"])
def test_a_name_has_the_defaults_that_it_has_in_keras(name):
    found, theirs = jaxreg.get(name), keras.regularizers.get(name)
    assert type(found).__name__ == type(theirs).__name__
    for key, value in theirs.get_config().items():
        assert found.get_config()[key] == pytest.approx(value)


@pytest.mark.parametrize("name", ["l1l2", "L1L2", "l1_l2"])
def test_the_elastic_net_has_the_defaults_that_keras_documents(name):
    """Keras itself gives zeros, or does not know the name."""
    assert "the default values used are `l1=0.01` and `l2=0.01`" in keras.regularizers.L1L2.__doc__
    assert jaxreg.get(name).get_config() == {"l1": 0.01, "l2": 0.01}


def test_the_documented_example_with_an_activity():
    layer = keras.layers.Dense(
        5,
        kernel_initializer="ones",
        kernel_regularizer=keras.regularizers.L1(0.01),
        activity_regularizer=keras.regularizers.L2(0.01),
    )
    x = 2.0 * jnp.ones((5, 5))
    layer(x)
    params = {"Dense_0": {"kernel": jnp.ones((5, 5))}}
    outputs = {"Dense_0": {"__call__": (x @ params["Dense_0"]["kernel"],)}}
    kernel = jaxreg.Rules((r"kernel$", jaxreg.L1(0.01)))(params)
    activity = jaxreg.activity_penalty(jaxreg.Rules((r"__call__", jaxreg.L2(0.01))), outputs, batch_size=x.shape[0])
    assert float(kernel) == pytest.approx(0.25)
    assert float(activity) == pytest.approx(5.0)
    assert float(kernel + activity) == pytest.approx(float(sum(layer.losses)))
