"""Penalties of two arrays, against NumPy in float64: values, gradients, small sides, meshes and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxreg
from jaxreg import penalties


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def product_l2(a, b):
    return np.sum((a @ b) ** 2)


def norm_weighted_l1(x, decoder):
    lengths = np.sqrt(np.sum(decoder.reshape(len(decoder), -1) ** 2, axis=1))
    return np.sum(np.abs(x) * lengths) / (x.size // x.shape[-1])


def barlow(x, y, lam=5e-3, epsilon=1e-5):
    """By the correlation of each pair of features."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    value = 0.0
    for i in range(x.shape[1]):
        for j in range(x.shape[1]):
            covariance = np.mean((x[:, i] - x[:, i].mean()) * (y[:, j] - y[:, j].mean()))
            found = covariance / np.sqrt((x[:, i].var() + epsilon) * (y[:, j].var() + epsilon))
            value += (1 - found) ** 2 if i == j else lam * found**2
    return value


CASES = {
    "thin factors": (penalties.product_l2, product_l2, (6, 2), (2, 7)),
    "thick factors": (penalties.product_l2, product_l2, (3, 5), (5, 4)),
    "layers of factors": (penalties.product_l2, product_l2, (3, 8, 2), (3, 2, 9)),
    "codes": (penalties.norm_weighted_l1, norm_weighted_l1, (4, 5), (5, 3)),
    "codes of words": (penalties.norm_weighted_l1, norm_weighted_l1, (2, 3, 5), (5, 2, 2)),
    "two views": (penalties.barlow, barlow, (7, 3), (7, 3)),
    "two views of few samples": (penalties.barlow, barlow, (4, 6), (4, 6)),
    "two views of words": (penalties.barlow, functools.partial(barlow, lam=0.3), (3, 4, 5), (3, 4, 5)),
}
OPTIONS = {"two views of words": {"lam": 0.3}}
over_cases = pytest.mark.parametrize("name", CASES)


def made(name, dtype=float):
    function, reference, first, second = CASES[name]
    x, y = numbers(*first).astype(dtype), numbers(*second, seed=1).astype(dtype)
    return functools.partial(function, **OPTIONS.get(name, {})), reference, x, y


@over_cases
def test_values_and_gradients(name):
    function, reference, x, y = made(name)
    with jax.enable_x64(True):
        value, gradients = jax.jit(jax.value_and_grad(function, (0, 1)))(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(value, reference(x, y), rtol=1e-10)
    for place, gradient in enumerate(gradients):

        def of_one(points, place=place):
            return np.array([reference(point, y) if place == 0 else reference(x, point) for point in points])

        expected = references.finite_differences(of_one, (x, y)[place], 1e-5)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)


@over_cases
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=str)
def test_narrow_dtypes(name, dtype):
    function, reference, x, y = made(name)
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    value, gradients = jax.value_and_grad(function, (0, 1))(x, y)
    assert value.dtype == jnp.float32
    assert {gradient.dtype for gradient in gradients} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(value, reference(np.asarray(x, float), np.asarray(y, float)), rtol=1e-5)


@over_cases
def test_transforms(name):
    """jit, vmap and second derivatives both ways."""
    function, _, x, y = made(name)
    with jax.enable_x64(True):
        x, y = jnp.asarray(x), jnp.asarray(y)
        np.testing.assert_allclose(jax.vmap(function)(x[None], y[None])[0], function(x, y), rtol=1e-12)
        forward = jax.jacfwd(jax.grad(function))(x, y)
        np.testing.assert_allclose(forward, jax.jacrev(jax.grad(function))(x, y), rtol=1e-8, atol=1e-10)


@over_cases
def test_zeros_and_empty_arrays(name):
    function, _, x, y = made(name, np.float32)
    for first, second in ((x * 0, y), (x, y * 0), (x * 0, y * 0)):
        value, gradients = jax.value_and_grad(function, (0, 1))(jnp.asarray(first), jnp.asarray(second))
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    if name == "two views":
        assert function(jnp.zeros((0, 3)), jnp.zeros((0, 3))) == 0
    if name == "codes":
        assert function(jnp.zeros((0, 5)), y) == 0
    if name == "thin factors":
        assert function(jnp.zeros((6, 0)), jnp.zeros((0, 7))) == 0


@over_cases
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows(name, value):
    function, _, x, y = made(name, np.float32)
    for place in (0, 1):
        arrays = [x.copy(), y.copy()]
        arrays[place].flat[3] = value
        assert not np.isfinite(function(*arrays))


def test_factors_of_very_different_size():
    a, b = numbers(6, 2).astype(np.float32), numbers(2, 7, seed=1).astype(np.float32)
    value, gradients = jax.value_and_grad(penalties.product_l2, (0, 1))(jnp.asarray(a * 1e30), jnp.asarray(b * 1e-30))
    np.testing.assert_allclose(value, product_l2(a.astype(float), b.astype(float)), rtol=1e-5)
    # The gradient of the small factor is beyond float32.
    np.testing.assert_allclose(gradients[0], 2 * (a @ b) @ b.T * 1e-30, rtol=1e-4)


@pytest.mark.parametrize("shapes", [((3, 2), (2, 5)), ((30, 1), (1, 50))], ids=str)
@pytest.mark.parametrize(("large", "small"), [(1e11, 1e-13), (2e12, 1e-12), (1e25, 1e-25)])
def test_factors_of_unequal_size(shapes, large, small):
    for sizes in ((large, small), (small, large)):
        a, b = (np.full(shape, size, np.float32) for shape, size in zip(shapes, sizes, strict=True))
        value, gradients = jax.jit(jax.value_and_grad(penalties.product_l2, (0, 1)))(a, b)
        a, b = a.astype(float), b.astype(float)
        np.testing.assert_allclose(value, product_l2(a, b), rtol=1e-5)
        np.testing.assert_allclose(gradients[0], 2 * (a @ b) @ b.T, rtol=1e-5)
        np.testing.assert_allclose(gradients[1], 2 * a.T @ (a @ b), rtol=1e-5)


def test_two_views_of_large_features():
    x = np.array([[1e38, 1], [-1e38, 2], [1e38, 1], [-1e38, 5]], np.float32)
    value, gradient = jax.jit(jax.value_and_grad(penalties.barlow))(x, x)
    np.testing.assert_allclose(value, barlow(x.astype(float), x.astype(float)), rtol=1e-4)
    assert np.all(np.isfinite(gradient))


MESHES = [jax.make_mesh((8,), ("d",), axis_types=(kind,)) for kind in (AxisType.Explicit, AxisType.Auto)]


@pytest.mark.parametrize("mesh", MESHES, ids=["explicit", "auto"])
@pytest.mark.parametrize("spec", [P("d"), P(None, "d")], ids=str)
@pytest.mark.parametrize(
    ("function", "reference", "first", "second"),
    [
        (penalties.product_l2, product_l2, (16, 8), (8, 16)),
        (penalties.product_l2, product_l2, (64, 8), (8, 64)),
        (penalties.norm_weighted_l1, norm_weighted_l1, (16, 8), (8, 16)),
        (penalties.barlow, barlow, (16, 8), (16, 8)),
        (penalties.barlow, barlow, (8, 16), (8, 16)),
    ],
)
def test_arrays_on_a_mesh(mesh, spec, function, reference, first, second):
    x, y = numbers(*first).astype(np.float32), numbers(*second, seed=1).astype(np.float32)
    expected = jax.grad(function, (0, 1))(jnp.asarray(x), jnp.asarray(y))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(array, NamedSharding(mesh, spec)) for array in (x, y)]
        value, gradients = jax.jit(jax.value_and_grad(function, (0, 1)))(*placed)
    np.testing.assert_allclose(value, reference(x.astype(float), y.astype(float)), rtol=2e-5)
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=2e-4, atol=1e-5 * np.max(np.abs(other)))


@pytest.mark.parametrize("shape", [(16, 4), (16, 24), (16, 3, 4)], ids=str)
def test_two_views_whose_batch_is_divided(shape):
    """The statistics are those of the whole batch, and so are the gradients."""
    x, y = numbers(*shape).astype(np.float32), numbers(*shape, seed=1).astype(np.float32)

    @functools.partial(jax.shard_map, mesh=MESHES[1], in_specs=P("d"), out_specs=(P(), P("d")))
    def graded(x, y):
        return jax.value_and_grad(lambda x, y: penalties.barlow(x, y, lam=0.1, axis_name="d"), (0, 1))(x, y)

    value, gradients = jax.jit(graded)(x, y)
    np.testing.assert_allclose(value, barlow(x.astype(float), y.astype(float), lam=0.1), rtol=1e-5)
    expected = jax.grad(functools.partial(penalties.barlow, lam=0.1), (0, 1))(jnp.asarray(x), jnp.asarray(y))
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-6)
    parts = jax.shard_map(penalties.barlow, mesh=MESHES[1], in_specs=P("d"), out_specs=P())
    with pytest.raises(ValueError, match="`x` must be a whole array"):
        parts(x, y)


@pytest.mark.parametrize("function", [penalties.product_l2, penalties.norm_weighted_l1])
@pytest.mark.parametrize("varies", [0, 1])
def test_a_part_of_an_array_is_refused(function, varies):
    specs = [P(), P()]
    specs[varies] = P("d")
    name = {penalties.product_l2: ("a", "b"), penalties.norm_weighted_l1: ("x", "decoder")}[function][varies]
    shapes = [(16, 8), (8, 16)]
    shapes[varies] = tuple(8 * size if axis == 0 else size for axis, size in enumerate(shapes[varies]))
    parts = jax.shard_map(function, mesh=MESHES[1], in_specs=tuple(specs), out_specs=P())
    with pytest.raises(ValueError, match=f"`{name}` must be a whole array"):
        parts(jnp.ones(shapes[0]), jnp.ones(shapes[1]))


def test_thin_factors_are_not_multiplied_out():
    text = jax.jit(jax.grad(penalties.product_l2, (0, 1))).lower(jnp.ones((300, 4)), jnp.ones((4, 500))).as_text()
    assert "300x500" not in text
    assert "4x4" in text


def test_every_placement_takes_a_function_of_a_tree():
    """The penalty of all pairs of a tree, found by path, in the loss, coupled, decoupled."""
    tree = {
        "one": {"a": jnp.ones((3, 1)), "b": jnp.ones((1, 2))},
        "two": {"a": jnp.ones((2, 1)), "b": jnp.ones((1, 2))},
    }

    def rules(tree):
        return 0.5 * sum(penalties.product_l2(layer["a"], layer["b"]) for layer in tree.values())

    assert rules(tree) == 5.0
    zeros = jax.tree.map(jnp.zeros_like, tree)
    for transform in (
        optax.chain(jaxreg.add_penalty_gradients(rules), optax.sgd(0.1)),
        jaxreg.decoupled(optax.sgd(0.1), rules, 0.1),
    ):
        updates, _ = transform.update(zeros, transform.init(tree), tree)
        np.testing.assert_allclose(updates["one"]["a"], np.full((3, 1), -0.1 * 2), rtol=1e-6)


REFUSED = [
    (lambda: penalties.product_l2(jnp.ones((3, 2)), jnp.ones((3, 2))), ValueError, r"`a` and `b` must have shapes"),
    (lambda: penalties.product_l2(jnp.ones(3), jnp.ones(3)), ValueError, r"`a` and `b` must have shapes"),
    (lambda: penalties.product_l2(jnp.ones((2, 3, 1)), jnp.ones((3, 1, 2))), ValueError, r"`a` and `b` must have"),
    (lambda: penalties.product_l2(jnp.ones((3, 2)), jnp.ones((2, 3), int)), TypeError, "`b` must be a real"),
    (lambda: penalties.product_l2({}, jnp.ones((2, 3))), TypeError, "`a` must be a real"),
    (lambda: penalties.product_l2(jnp.ones((3, 2)), jnp.ones((2, 3)), precision="x"), ValueError, "`precision`"),
    (lambda: penalties.norm_weighted_l1(jnp.ones((3, 2)), jnp.ones((3, 2))), ValueError, "`decoder` must have as many"),
    (lambda: penalties.norm_weighted_l1(jnp.ones(()), jnp.ones((3, 2))), ValueError, "`decoder` must have as many"),
    (lambda: penalties.norm_weighted_l1(jnp.ones(3), jnp.ones((3, 2)), group_axis=2), ValueError, "`group_axis` must"),
    (lambda: penalties.norm_weighted_l1(jnp.ones(3), jnp.ones((3, 2)), group_axis=(0, 1)), ValueError, "`decoder`"),
    (lambda: penalties.barlow(jnp.ones((3, 2)), jnp.ones((2, 2))), ValueError, "`x` and `y` must have one shape"),
    (lambda: penalties.barlow(jnp.ones(3), jnp.ones(3)), ValueError, "`x` and `y` must have one shape"),
    (lambda: penalties.barlow(jnp.ones((3, 2)), jnp.ones((3, 2)), lam=-1.0), ValueError, "`lam` must be finite"),
    (lambda: penalties.barlow(jnp.ones((3, 2)), jnp.ones((3, 2)), epsilon=0.0), ValueError, "`epsilon` must be finite"),
    (lambda: penalties.barlow(jnp.ones((3, 2)), jnp.ones((3, 2)), axis_name="d"), ValueError, "`axis_name` must name"),
    (lambda: penalties.barlow(jnp.ones((3, 2)), None), TypeError, "`y` must be a real floating-point array, got None"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
