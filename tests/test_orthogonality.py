"""Orthogonality beyond the table of cases: known optimal frames, forms that coincide, and closed forms."""

import functools
import itertools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references as ref
from test_laws import sample

import jaxreg
from jaxreg import penalties, prox
from jaxreg._regularizers import _orthogonality

GOLDEN = (1 + 5**0.5) / 2
ICOSAHEDRON = np.array(
    [(0, 1, GOLDEN), (0, 1, -GOLDEN), (1, GOLDEN, 0), (1, -GOLDEN, 0), (GOLDEN, 0, 1), (-GOLDEN, 0, 1)]
)


def test_soft_orthogonality_without_the_square():
    x = sample((2, 5, 3))
    made = jaxreg.SoftOrthogonal(0.3, batch_axis=0, squared=False)
    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(made))(jnp.asarray(x))
    view = {"rows": (1,), "columns": (2,), "batch": (0,)}
    np.testing.assert_allclose(value, 0.3 * ref.soft_orthogonal(x[None], **view, squared=False)[0], rtol=1e-13)
    np.testing.assert_allclose(gradient, 0.3 * ref.gradient_of_soft_orthogonal(x, **view, squared=False), rtol=1e-12)
    assert not made.has_prox
    with pytest.raises(NotImplementedError, match="no prox"):
        made.prox(jnp.asarray(x), 0.1)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4, 4)])
@pytest.mark.parametrize("squared", [True, False])
def test_orthonormal_vectors_are_the_minimum(shape, squared):
    with jax.enable_x64(True):
        q = np.linalg.qr(sample((max(shape), min(shape))))[0]
        q = jnp.asarray(q if shape[0] >= shape[1] else q.T)
        value, gradient = jax.value_and_grad(functools.partial(penalties.soft_orthogonal, squared=squared))(q)
        assert value < (1e-28 if squared else 1e-14)
        assert np.all(np.isfinite(gradient))
        np.testing.assert_allclose(prox.soft_orthogonal(q, 0.7), q, atol=1e-14)


def test_a_step_of_soft_orthogonality_is_one_of_newton_and_schulz():
    x = jnp.asarray(sample((6, 4), np.float32)) / 4
    stepped = x - 0.125 * jax.grad(penalties.soft_orthogonal)(x)
    expected = x @ (1.5 * np.eye(4, dtype=np.float32) - 0.5 * x.T @ x)
    np.testing.assert_allclose(stepped, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [0.0, 1e-30, 1e-3, 0.25, 0.3, 1e3, 1e30, 1e300])
def test_the_prox_of_soft_orthogonality_solves_its_cubic(step):
    """Each singular value is the largest real root, by NumPy."""
    s = np.array([1e-3, 0.5, 1.0, 3.0, 1e4])
    with jax.enable_x64(True):
        found = np.sort(np.diagonal(prox.soft_orthogonal(jnp.diag(jnp.asarray(s)), step)))
    roots = [np.roots([4 * step, 0, 1 - 4 * step, -value]) if step else np.array([value]) for value in s]
    expected = [np.max(root[np.abs(root.imag) < 1e-4 * np.abs(root)].real) for root in roots]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_prox_of_soft_orthogonality_at_the_largest_step():
    np.testing.assert_allclose(prox.soft_orthogonal(2 * jnp.eye(2), 1e38), np.eye(2), rtol=1e-6)


def test_the_prox_of_soft_orthogonality_expands_somewhere():
    """The penalty is not convex: near 0 singular values are driven apart."""
    near, nearer = (prox.soft_orthogonal(jnp.asarray([[s]], jnp.float32), 0.3) for s in (0.02, 0.01))
    assert near - nearer > 0.015


def test_p_frames_are_the_other_penalties_of_angles():
    x = jnp.asarray(sample((4, 6), np.float32))
    np.testing.assert_allclose(penalties.p_frame(x, p=1), penalties.orthogonal(x), rtol=1e-6)
    np.testing.assert_allclose(penalties.p_frame(x, p=2), penalties.frame_potential(x), rtol=1e-6)


def test_products_of_unit_vectors_are_cosines():
    x = sample((4, 6), np.float32)
    units = jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))
    np.testing.assert_allclose(penalties.off_diagonal(units), 12 * penalties.frame_potential(jnp.asarray(x)), rtol=1e-5)


def descended(function, shape, seed, steps=4000, rate=0.03):
    """Where Adam with a rate that decays ends, from random vectors, in float64."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(seed).normal(size=shape))
        tx = optax.adam(optax.cosine_decay_schedule(rate, steps))

        def step(state, _):
            x, inner = state
            updates, inner = tx.update(jax.grad(function)(x), inner)
            return (optax.apply_updates(x, updates), inner), None

        return np.asarray(jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), None, length=steps)[0][0])(x))


def cosines(x):
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.abs(units @ units.T)[~np.eye(len(x), dtype=bool)]


OF_ANGLES = [
    penalties.orthogonal,
    penalties.frame_potential,
    penalties.p_frame,
    penalties.mutual_coherence,
    functools.partial(penalties.mutual_coherence, sharpness=5),
    penalties.off_diagonal,
]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("penalty", OF_ANGLES)
def test_what_is_not_finite_shows_in_a_single_vector(penalty, bad):
    value, gradient = jax.value_and_grad(penalty)(jnp.asarray([[1.0, bad, 3.0]]))
    assert not np.isfinite(value)
    assert not np.all(np.isfinite(gradient))
    value, gradient = jax.value_and_grad(penalty)(jnp.asarray([[1.0, 1e38, 3.0]]))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("p", [1.5, 1.9, 2.5])
def test_second_derivatives_of_powers(p):
    """Forward over reverse, and reverse over reverse, are differences of the gradient."""
    x, v, step = sample((3, 4)), sample((3, 4), seed=1), 1e-6
    gradient = jax.grad(functools.partial(penalties.p_frame, p=p))
    with jax.enable_x64(True):
        difference = (gradient(jnp.asarray(x + step * v)) - gradient(jnp.asarray(x - step * v))) / (2 * step)
        forward = jax.jvp(gradient, (jnp.asarray(x),), (jnp.asarray(v),))[1]
        backward = jax.vjp(gradient, jnp.asarray(x))[1](jnp.asarray(v))[0]
        np.testing.assert_allclose(forward, difference, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(backward, difference, rtol=1e-5, atol=1e-8)


@pytest.mark.standard_promotion
def test_the_icosahedron_is_least_for_p_of_4():
    np.testing.assert_allclose(penalties.p_frame(jnp.asarray(ICOSAHEDRON, jnp.float32)), 1 / 25, rtol=1e-6)
    x = descended(penalties.p_frame, (6, 3), 0)
    np.testing.assert_allclose(cosines(x), 1 / 5**0.5, atol=1e-6)


@pytest.mark.standard_promotion
@pytest.mark.parametrize(("n", "d", "least"), [(3, 2, 1 / 2), (4, 3, 1 / 3), (6, 5, 1 / 5), (6, 3, 1 / 5**0.5)])
def test_coherence_descends_to_equiangular_frames(n, d, least):
    """By the smooth maximum and then by the maximum. The best of three starts, since there are local minima."""

    def best(seed):
        smooth = descended(functools.partial(penalties.mutual_coherence, sharpness=50), (n, d), seed)
        sharp = descended(functools.partial(penalties.mutual_coherence, sharpness=3000), smooth.shape, seed, rate=0.003)
        return min(cosines(smooth).max(), cosines(sharp).max())

    found = min(best(seed) for seed in range(3))
    assert least - 1e-9 <= found <= least + 1e-3


def test_pairs_at_the_maximum_share_the_gradient():
    """Three pairs have the same cosine, and what each asks of a vector cancels what another one asks."""
    angles = np.array([0.0, 2.0, 4.0]) * np.pi / 3
    x = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1), jnp.float32)
    np.testing.assert_allclose(penalties.mutual_coherence(x), 0.5, rtol=1e-6)
    gradient = jax.grad(penalties.mutual_coherence)(x)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


@pytest.mark.parametrize("sharpness", [None, 30])
@pytest.mark.parametrize("n", [1023, 1025, 2500])
def test_coherence_in_blocks(n, sharpness):
    """Blocks overlap where they do not divide the vectors, and no pair counts twice."""
    x = np.random.default_rng(n).normal(size=(n, 16)).astype(np.float32)
    value, gradient = jax.jit(jax.value_and_grad(functools.partial(penalties.mutual_coherence, sharpness=sharpness)))(x)
    units = np.asarray(x, np.float64) / np.linalg.norm(np.asarray(x, np.float64), axis=1, keepdims=True)
    gram = units @ units.T
    np.fill_diagonal(gram, 0)
    pairs = ~np.eye(n, dtype=bool)
    if sharpness is None:
        expected, weight = np.abs(gram).max(), np.abs(gram) == np.abs(gram).max()
    else:
        weight = np.exp(sharpness * np.abs(gram)) * pairs
        expected = np.log(np.sum(weight)) / sharpness
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    of_units = 2 * (weight * np.sign(gram) / weight.sum()) @ units
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    exact = (of_units - units * np.sum(units * of_units, 1, keepdims=True)) / lengths
    assert np.linalg.norm(gradient - exact) <= 1e-4 * np.linalg.norm(exact)


def matrix_of(kernel, places, stride):
    """The convolution of a periodic image with a kernel (space..., in, out) as a matrix, entry by entry."""
    *sizes, inputs, outputs = kernel.shape
    images = np.zeros((*[places * stride] * len(sizes), inputs))
    rows = []
    for place in itertools.product(range(places), repeat=len(sizes)):
        for filter_ in range(outputs):
            row = images.copy()
            for offset in np.ndindex(*sizes):
                spot = tuple((p * stride + o) % (places * stride) for p, o in zip(place, offset, strict=True))
                row[spot] += kernel[(*offset, slice(None), filter_)]
            rows.append(row.ravel())
    return np.array(rows)


@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        ((3, 3, 2, 2), 1),
        ((3, 3, 3, 2), 1),
        ((2, 2, 3, 3), 1),
        ((4, 3, 2, 2), 1),
        ((3, 3, 2, 4), 2),
        ((4, 4, 1, 3), 2),
        ((2, 2, 2, 5), 2),
        ((3, 5, 1, 2), 3),
        ((4, 2, 1, 6), 3),
        ((5, 2, 3), 2),
        ((2, 2, 2, 2, 2), 1),
    ],
    ids=str,
)
def test_convolutions_are_those_of_the_explicit_matrix(shape, stride):
    kernel = np.random.default_rng([stride, *shape]).normal(size=shape)
    places = 7 if len(shape) < 5 else 4
    rows = matrix_of(kernel, places, stride)
    exact = np.sum((rows @ rows.T - np.eye(len(rows))) ** 2) / places ** (len(shape) - 2)
    with jax.enable_x64(True):
        found = penalties.conv_orthogonal(jnp.asarray(kernel), stride=stride)
        with_torchs_axes = penalties.conv_orthogonal(
            jnp.asarray(np.moveaxis(kernel, (-1, -2), (0, 1))), stride=stride, in_axis=1, out_axis=0
        )
    np.testing.assert_allclose(found, exact, rtol=1e-11)
    np.testing.assert_allclose(with_torchs_axes, exact, rtol=1e-11)


def test_more_filters_than_rows_compare_the_columns():
    """The form of the rows less that of the columns is the number of filters that are too many."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 5))
    rows = matrix_of(kernel, 6, 1)
    columns = np.sum((rows.T @ rows - np.eye(rows.shape[1])) ** 2) / 36
    np.testing.assert_allclose(np.sum((rows @ rows.T - np.eye(len(rows))) ** 2) / 36 - columns, 3, rtol=1e-9)
    with jax.enable_x64(True):
        np.testing.assert_allclose(penalties.conv_orthogonal(jnp.asarray(kernel)), columns, rtol=1e-11)
        strided = np.random.default_rng(1).normal(size=(2, 2, 1, 7))
        rows = matrix_of(strided, 6, 2)
        columns = np.sum((rows.T @ rows - np.eye(rows.shape[1])) ** 2) / 36
        np.testing.assert_allclose(penalties.conv_orthogonal(jnp.asarray(strided), stride=2), columns, rtol=1e-11)
        # A kernel that is smaller than the stride does not reach all inputs.
        small = np.random.default_rng(2).normal(size=(1, 3, 2, 9))
        rows = matrix_of(small, 6, 2)
        columns = rows.T @ rows
        reached = np.diagonal(columns) > 0
        assert reached.sum() == 36 * 2 * 2
        columns = np.sum((columns - np.diag(1.0 * reached)) ** 2) / 36
        np.testing.assert_allclose(penalties.conv_orthogonal(jnp.asarray(small), stride=2), columns, rtol=1e-11)


@pytest.mark.parametrize("filters", [3, 8])
def test_a_shortcut_of_a_residual_network_is_a_matrix(filters):
    """A kernel of one place at stride 2, as it stands beside blocks: no copies overlap."""
    matrix = np.random.default_rng(filters).normal(size=(4, filters))
    with jax.enable_x64(True):
        found = penalties.conv_orthogonal(jnp.asarray(matrix[None, None]), stride=2)
        np.testing.assert_allclose(found, penalties.soft_orthogonal(jnp.asarray(matrix)), rtol=1e-12)
        q = jnp.asarray(np.linalg.qr(matrix)[0])[None, None]
        assert abs(penalties.conv_orthogonal(q, stride=2)) < 1e-20


def test_options_of_numpy_are_those_of_python():
    """They are static, and go into configs."""
    made = [
        jaxreg.PFrame(p=np.int64(4)),
        jaxreg.PFrame(p=np.float32(3)),
        jaxreg.MutualCoherence(sharpness=np.float32(20)),
        jaxreg.ConvOrthogonal(stride=np.int64(2)),
    ]
    again = [jaxreg.deserialize(json.loads(json.dumps(jaxreg.serialize(one)))) for one in made]
    assert list(map(repr, again)) == list(map(repr, made))
    assert made[0] == jaxreg.PFrame(p=4)


def orthogonal_matrix(n, seed):
    return np.linalg.qr(np.random.default_rng([n, seed]).normal(size=(n, n)))[0]


def convolved(a, b):
    """The kernel of one convolution after another."""
    found = np.zeros((a.shape[0] + b.shape[0] - 1, a.shape[1] + b.shape[1] - 1, a.shape[2], b.shape[3]))
    for i, j in np.ndindex(*a.shape[:2]):
        for k, m in np.ndindex(*b.shape[:2]):
            found[i + k, j + m] += a[i, j] @ b[k, m]
    return found


def orthogonal_kernel(size, channels):
    """A product of small convolutions with projections, which are orthogonal at stride 1."""
    kernel = orthogonal_matrix(channels, 0)[None, None]
    for step in range(size - 1):
        for axis in (0, 1):
            basis = orthogonal_matrix(channels, 2 * step + axis + 1)[:, : channels // 2]
            projection = basis @ basis.T
            pair = np.stack([projection, np.eye(channels) - projection])
            kernel = convolved(kernel, np.expand_dims(pair, 1 - axis))
    return kernel


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_orthogonal_convolutions_have_the_penalty_zero(size):
    kernel = orthogonal_kernel(size, 4)
    assert kernel.shape == (size, size, 4, 4)
    with jax.enable_x64(True):
        for part in (kernel, kernel[..., :3], kernel[..., :3, :]):  # fewer filters, and fewer inputs
            assert abs(penalties.conv_orthogonal(jnp.asarray(part))) < 1e-20


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("filters", [3, 8])
def test_orthogonal_convolutions_at_a_stride(stride, filters):
    """A kernel of the size of the stride is a matrix. One that is wider by zeros is no other map."""
    inputs = 2 * stride**2
    matrix = orthogonal_matrix(inputs, stride)[:, :filters]
    kernel = matrix.reshape(stride, stride, 2, filters)
    wider = np.pad(kernel, ((0, 1), (1, 0), (0, 0), (0, 0)))
    with jax.enable_x64(True):
        for one in (kernel, wider):
            assert abs(penalties.conv_orthogonal(jnp.asarray(one), stride=stride)) < 1e-20
        other = np.random.default_rng(0).normal(size=kernel.shape)
        expected = penalties.soft_orthogonal(jnp.asarray(other))
        np.testing.assert_allclose(penalties.conv_orthogonal(jnp.asarray(other), stride=stride), expected, rtol=1e-12)


def test_explain_shows_the_kernels_of_a_convolution():
    rules = jaxreg.Rules((r"kernel$", jaxreg.ConvOrthogonal(0.1, batch_axis=0)))
    shown = str(rules.explain({"conv": {"kernel": jnp.ones((5, 3, 3, 16, 32))}}))
    assert "5 kernels 3×3, 16 → 32" in shown


X = jnp.ones((3, 2, 2))
CONV_ERRORS = {
    "rank": (lambda: penalties.conv_orthogonal(jnp.eye(3)), "`x` must have rank >= 3"),
    "same": (lambda: penalties.conv_orthogonal(X, in_axis=-1), "must be two axes"),
    "several": (lambda: penalties.conv_orthogonal(X, out_axis=(1, 2)), "`out_axis` must be one axis"),
    "shared": (lambda: penalties.conv_orthogonal(X, batch_axis=1), "`in_axis` and `batch_axis` must"),
    "space": (lambda: penalties.conv_orthogonal(X, batch_axis=0), "leaves no axis"),
    "range": (lambda: penalties.conv_orthogonal(X, in_axis=5), r"`in_axis` must lie in \[-3, 3\)"),
}


@pytest.mark.parametrize("name", ["in_axis", "out_axis", "batch_axis"])
def test_axes_of_convolutions_are_ints(name):
    for bad in (0.0, "0", None, True):
        for call in (jaxreg.ConvOrthogonal, functools.partial(penalties.conv_orthogonal, X)):
            with pytest.raises(TypeError, match=f"`{name}` must be an int or a tuple of ints"):
                call(**{name: bad})


@pytest.mark.parametrize(("call", "message"), CONV_ERRORS.values(), ids=CONV_ERRORS)
def test_axes_of_convolutions_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_guide_names_every_regularizer_of_this_kind():
    page = (pathlib.Path(__file__).parents[1] / "examples" / "guides" / "orthogonality.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)", page, re.MULTILINE))
    assert rows == set(_orthogonality.__all__)
    with_prox = set(re.findall(r"^\| `(\w+).*\| yes \| [^|]*\|$", page, re.MULTILINE))
    assert with_prox == {name for name in rows if getattr(jaxreg, name)().has_prox}
