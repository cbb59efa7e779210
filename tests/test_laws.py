"""The laws of design, over the table of cases."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CUSTOM, PENALTIES, REGULARIZERS
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxreg

both = pytest.mark.parametrize("case", [(c, s) for c in PENALTIES for s in c.shapes], ids=lambda cs: f"{cs[0]}-{cs[1]}")
each = pytest.mark.parametrize("case", PENALTIES, ids=str)
regularizers = pytest.mark.parametrize("case", REGULARIZERS, ids=str)


@functools.cache
def graded(case):
    """The value and the gradient, compiled once for each shape."""
    return jax.jit(jax.value_and_grad(case.penalty))


@functools.cache
def curved(case):
    return jax.jit(jax.hessian(case.penalty))


def sample(shape, dtype=np.float64, seed=0):
    """Values away from the kink at 0."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.choice([-1.0, 1.0], shape) * rng.uniform(0.2, 2.0, shape)).astype(dtype)


def finite_differences(function, x, step=1e-6):
    gradient = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        change = np.zeros_like(x)
        change[place] = step
        gradient[place] = (function(x + change) - function(x - change)) / (2 * step)
    return gradient


# Law 1: the value is that of a NumPy reference, the gradient that of finite differences of the reference.


@both
def test_value_and_gradient_in_float64(case):
    case, shape = case
    x = sample(shape)
    with jax.enable_x64(True):
        value, gradient = graded(case)(jnp.asarray(x))
        assert value.dtype == gradient.dtype == jnp.float64
        np.testing.assert_allclose(value, case.reference(x), rtol=1e-13)
        np.testing.assert_allclose(gradient, finite_differences(case.reference, x), rtol=1e-6, atol=1e-8)


@both
def test_value_and_gradient_in_float32(case):
    case, shape = case
    x = sample(shape, np.float32)
    value, gradient = graded(case)(jnp.asarray(x))
    assert value.dtype == gradient.dtype == jnp.float32
    np.testing.assert_allclose(value, case.reference(x), rtol=1e-6)
    exact = finite_differences(case.reference, x.astype(np.float64))
    np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-6)


@each
def test_orthogonal_gradient_is_orthogonal_to_each_vector(case):
    """A scale-invariant penalty does not change along x."""
    if not case.scale_invariant:
        x = jnp.asarray(sample(case.shapes[-1], np.float32))
        assert float(jnp.vdot(jax.grad(case.penalty)(x), x)) > 0.1
        return
    x = jnp.asarray(sample(case.shapes[0], np.float32))
    assert abs(float(jnp.vdot(jax.grad(case.penalty)(x), x))) < 1e-6


# Law 2: every way of calling gives the same value, and every derivative exists.


@both
def test_transforms_agree(case):
    case, shape = case
    stack = jnp.stack([jnp.asarray(sample(shape, np.float32, seed)) for seed in range(3)])
    eager = [case.penalty(x) for x in stack]
    jitted = jax.jit(case.penalty)
    one_by_one = jax.lax.scan(lambda carry, x: (carry, case.penalty(x)), 0, stack)[1]
    for values in ([jitted(x) for x in stack], jax.jit(jax.vmap(case.penalty))(stack), one_by_one):
        np.testing.assert_allclose(values, eager, rtol=2e-6)


@both
def test_all_derivatives(case):
    case, shape = case

    @jax.jit
    def derivatives(x, v):
        gradient = jax.grad(case.penalty)
        forward = jax.jvp(case.penalty, (x,), (v,))[1], jax.jacfwd(case.penalty)(x)
        twice = jax.grad(lambda x: jnp.vdot(gradient(x), v))(x), jax.jvp(gradient, (x,), (v,))[1]
        return gradient(x), forward, jnp.tensordot(jax.hessian(case.penalty)(x), v, x.ndim), twice

    with jax.enable_x64(True):
        x, v, step = sample(shape), sample(shape, seed=1), 1e-6
        gradient, (slope, jacobian), product, (reverse, mixed) = jax.tree.map(np.asarray, derivatives(x, v))
        higher, lower = np.asarray(derivatives(x + step * v, v)[0]), np.asarray(derivatives(x - step * v, v)[0])
    difference = (case.reference(x + step * v) - case.reference(x - step * v)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(jacobian, gradient, rtol=1e-12, atol=1e-14)
    for second in (product, reverse, mixed):
        np.testing.assert_allclose(second, (higher - lower) / (2 * step), rtol=1e-5, atol=1e-7)


# Law 3: sums accumulate in float32 at least.


@both
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_low_precision_is_float32_of_the_upcast_input(case, dtype):
    case, shape = case
    x = jnp.asarray(sample(shape, np.float32)).astype(dtype)
    value, gradient = graded(case)(x)
    wide_value, wide_gradient = graded(case)(x.astype(jnp.float32))
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    assert value == wide_value
    np.testing.assert_array_equal(gradient, wide_gradient.astype(dtype))
    np.testing.assert_allclose(value, case.reference(np.asarray(x, np.float64)), rtol=1e-6)


@pytest.mark.parametrize("name", ["l1", "l2"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_long_sums_in_low_precision(name, dtype):
    x = jnp.full((1000, 300), 1.5, dtype)  # the sums are beyond float16, and too fine for bfloat16
    assert getattr(jaxreg.penalties, name)(x) == (450_000.0 if name == "l1" else 675_000.0)


# Law 4: finite at every awkward point, and the right subgradient there.

AWKWARD = {
    "zeros": lambda x: 0 * x,
    "a zero row": lambda x: np.concatenate([0 * x[:1], x[1:]]),
    "a zero column": lambda x: np.concatenate([0 * x[..., :1], x[..., 1:]], -1),
    "one row": lambda x: x[:1],
    "one column": lambda x: x[..., :1],
    "no rows": lambda x: x[:0],
    "no columns": lambda x: x[..., :0],
    "repeated rows": lambda x: np.repeat(x[:1], 3, 0),
    "a tiny row": lambda x: np.concatenate([1e-30 * x[:1], x[1:]]),
    "a denormal row": lambda x: np.concatenate([1e-42 * x[:1], x[1:]]).astype(np.float32),
}


@both
@pytest.mark.parametrize("kind", AWKWARD)
def test_awkward_points_are_finite_and_right(case, kind):
    case, shape = case
    x = AWKWARD[kind](sample(shape, np.float32)) if shape else np.float32(0.0)
    value, gradient = graded(case)(jnp.asarray(x))
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(value, case.reference(np.asarray(x)), rtol=1e-6, atol=1e-30)
    if "tiny" not in kind and "denormal" not in kind:  # whose second derivative is beyond float32
        assert np.all(np.isfinite(curved(case)(jnp.asarray(x))))


@each
def test_a_zero_array_is_not_pushed(case):
    if not case.at_zero:
        assert np.any(jax.grad(case.penalty)(jnp.zeros(case.shapes[-1])) != 0)
        return
    for shape in case.shapes:
        np.testing.assert_array_equal(jax.grad(case.penalty)(jnp.zeros(shape)), np.zeros(shape))


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_a_zero_vector_has_no_gradient_and_no_effect(mode):
    x = sample((4, 4), np.float32)
    x[1] = 0.0
    x = x if mode == "rows" else x.T
    gradient = jax.grad(lambda x: jaxreg.penalties.orthogonal(x, mode=mode))(jnp.asarray(x))
    gradient = gradient if mode == "rows" else gradient.T
    np.testing.assert_array_equal(gradient[1], np.zeros(4))
    assert np.all(np.abs(gradient[jnp.array([0, 2, 3])]) > 0)


@each
@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e38])
def test_extreme_scales(case, scale):
    for shape in case.shapes:
        x = sample(shape, np.float32)
        value, gradient = graded(case)(jnp.asarray(x * np.float32(scale)))
        if not case.scale_invariant and scale > 1e30:  # the sum and the gradient are beyond float32
            continue
        assert np.all(np.isfinite(gradient))
        if case.name == "l2":  # the square of 1e30 is beyond float32, the gradient is not
            np.testing.assert_allclose(gradient, 2 * x * np.float32(scale), rtol=1e-6)
        if case.squares and scale > 1:
            continue
        exact = case.reference(x.astype(np.float64) * scale)
        np.testing.assert_allclose(value, exact, rtol=2e-6, atol=1e-35)
        if case.scale_invariant and scale == 1e30:  # the gradient at 1e38 is below the normal numbers
            np.testing.assert_allclose(value, case.penalty(jnp.asarray(x)), rtol=2e-6)
            expected = jax.grad(case.penalty)(jnp.asarray(x))
            np.testing.assert_allclose(gradient * np.float32(scale), expected, rtol=1e-4, atol=1e-7)


# Regularizers: the same laws through the strengths.


@regularizers
def test_regularizer_value_and_gradients(case):
    x = sample((4, 3), np.float32)
    regularizer = case.make(*case.strengths)
    exact = case.reference(x.astype(np.float64), *case.strengths)
    value = regularizer(jnp.asarray(x))
    assert value.shape == ()
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=2e-6)
    gradient = jax.grad(regularizer)(jnp.asarray(x))
    slope = finite_differences(lambda x: case.reference(x, *case.strengths), x.astype(np.float64))
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


@regularizers
def test_gradient_with_respect_to_the_strengths(case):
    x = sample((4, 3), np.float32)
    strengths = np.array(case.strengths, np.float64)
    learned = jax.grad(lambda strengths: case.make(*strengths)(jnp.asarray(x)))([jnp.float32(s) for s in strengths])
    exact = finite_differences(lambda s: case.reference(x.astype(np.float64), *s), strengths)
    np.testing.assert_allclose(learned, exact, rtol=1e-5)


@regularizers
@pytest.mark.parametrize(
    "kind",
    [float, np.float32, lambda v: jnp.asarray(v, jnp.float32), lambda v: jnp.asarray(v, jnp.bfloat16)],
    ids=["Python", "NumPy", "float32", "bfloat16"],
)
def test_strengths_of_every_type_without_retracing(case, kind):
    x = jnp.asarray(sample((4, 3), np.float32))
    count = []

    @jax.jit
    def penalty(regularizer, x):
        count.append(1)
        return regularizer(x).astype(jnp.float32)

    with jax.numpy_dtype_promotion("standard"):  # what subclasses of a user multiply with is theirs
        for factor in (0.5, 1.0, 0.25):
            strengths = [kind(factor * s) for s in case.strengths]
            value = penalty(case.make(*strengths), x)
            exact = case.reference(np.asarray(x, np.float64), *(float(s) for s in strengths))
            np.testing.assert_allclose(value, exact, rtol=2e-6)
    assert len(count) == 1


@regularizers
def test_strengths_are_swept_by_vmap(case):
    x = jnp.asarray(sample((4, 3), np.float32))
    made = [case.make(*(factor * float(s) for s in case.strengths)) for factor in (0.0, 1.0, 2.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *made)
    values = jax.jit(jax.vmap(lambda r: r(x)))(stacked)
    np.testing.assert_allclose(values, [r(x) for r in made], rtol=2e-6)


@regularizers
def test_regularizer_is_an_ordinary_pytree(case):
    regularizer = case.make(*map(float, case.strengths))
    leaves, treedef = jax.tree.flatten(regularizer)
    assert set(map(float, case.strengths)) <= set(leaves)
    assert jax.tree.leaves(jax.tree.map(jnp.negative, regularizer)) == [-leaf for leaf in leaves]
    hollow = treedef.unflatten([object()] * len(leaves))
    assert jax.tree.structure(hollow) == treedef
    assert jax.tree.structure(jax.eval_shape(lambda r: r, regularizer)) == treedef
    assert jax.tree.leaves(jax.jit(lambda r: r)(regularizer)) == [jnp.float32(leaf) for leaf in leaves]
    assert hash(treedef) == hash(jax.tree.structure(case.make(*map(float, case.strengths))))


@regularizers
def test_config_round_trip(case):
    regularizer = case.make(*map(float, case.strengths))
    x = jnp.asarray(sample((4, 3), np.float32))
    config = jaxreg.serialize(regularizer)
    assert list(config) == ["module", "class_name", "config", "registered_name"]
    again = jaxreg.deserialize(json.loads(json.dumps(config)), custom_objects=CUSTOM)
    assert repr(again) == repr(regularizer)
    assert jax.tree.leaves(again) == jax.tree.leaves(regularizer)
    assert again(x) == regularizer(x)
    if "function" not in case.name:
        assert repr(type(regularizer).from_config(regularizer.get_config())) == repr(regularizer)


@pytest.mark.parametrize("strength", [0.0, np.float32(0.0), jnp.zeros(())], ids=["Python", "NumPy", "jax"])
@pytest.mark.parametrize("make", [jaxreg.L1, jaxreg.L2, lambda s: jaxreg.L1L2(s, s), lambda s: s * jaxreg.L2(1.0)])
def test_a_strength_of_zero_contributes_exactly_nothing(strength, make):
    huge = jnp.full((5,), 1e38, jnp.float32)  # its sum and its squares overflow
    value, gradient = jax.value_and_grad(lambda x: make(strength)(x))(huge)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros(5))


def test_a_strength_of_zero_can_be_learned():
    slope = jax.grad(lambda s: jaxreg.L2(s)(jnp.array([1.0, 2.0])))(0.0)
    assert slope == 5.0


# Law 6: sharded arrays give the same value, and a gradient that keeps their sharding.


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
@pytest.mark.parametrize("case", [c for c in PENALTIES if c.shards], ids=str)
@pytest.mark.parametrize(
    "spec", [PartitionSpec("d"), PartitionSpec(None, "d"), PartitionSpec(("d", "m"), None)], ids=str
)
def test_sharded_elementwise_penalties(case, axis_type, spec):
    mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(axis_type, axis_type))
    x = sample((16, 24), np.float32)
    expected, expected_gradient = graded(case)(jnp.asarray(x))
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, spec))
        value, gradient = graded(case)(placed)
        through = jax.jit(jax.value_and_grad(jaxreg.L1L2(0.1, 0.2)))(placed)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)
    assert gradient.sharding.is_equivalent_to(placed.sharding, x.ndim)
    assert through[1].sharding.is_equivalent_to(placed.sharding, x.ndim)
    np.testing.assert_allclose(through[0], jaxreg.L1L2(0.1, 0.2)(jnp.asarray(x)), rtol=1e-6)
