"""Law 6: a penalty, a prox or a transform of arrays that are divided over a mesh does what it does on one device.

The values are those of the NumPy references, and gradients keep the sharding of their parameters. Arrays lie on an
Explicit mesh, on an Auto mesh with and without `jax.set_mesh`, or are shards inside `jax.shard_map`.
"""

import contextlib
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
from cases import KERNELS, MADE, ONE, half_sum_of_squares
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_laws import sample

import jaxreg
from jaxreg import GroupLasso, OrthogonalRegularizer, Rules, _plans, diagnostics, penalties

MESHES = {
    kind: jax.make_mesh((4, 2), ("d", "m"), axis_types=(kind, kind)) for kind in (AxisType.Explicit, AxisType.Auto)
}
EXPLICIT, AUTO = MESHES.values()
PLACES = {"explicit": (EXPLICIT, True), "auto": (AUTO, True), "auto, no mesh set": (AUTO, False)}
BOTH = ("d", "m")
KEY = jax.random.key(5)


def within(place):
    mesh, is_set = PLACES[place]
    return jax.set_mesh(mesh) if is_set else contextlib.nullcontext()


def specs_of(rank):
    """Every axis divided by one mesh axis and by both, every two axes by one each, and none."""
    for axis in range(rank):
        yield P(*(None,) * axis, "d")
        yield P(*(None,) * axis, BOTH)
    for one, other in itertools.permutations(range(rank), 2):
        names = [None] * rank
        names[one], names[other] = "d", "m"
        yield P(*names)
    yield P()


def divisible(shape):
    """A shape of the same rank, whose sizes all devices divide."""
    return tuple(8 if len(shape) > 3 else 8 * (1 + axis % 2) for axis in range(len(shape)))


def crossed(subjects, per_subject=2):
    """Each subject with some places and specs, so that all of these take turns over the subjects."""
    turns = {}
    for subject in subjects:
        rank = len(getattr(subject, "shape", (0, 0)))
        every = turns.setdefault(rank, itertools.cycle(itertools.product(specs_of(rank), PLACES)))
        for _ in range(per_subject):
            spec, place = next(every)
            yield pytest.param(subject, spec, place, id=f"{subject}-{spec}-{place}")


def close(found, expected, rtol=1e-5, atol=1e-30):
    """In norm, because the rounding of a sum is relative to its terms."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert np.linalg.norm(found - expected) <= rtol * np.linalg.norm(expected) + atol


SHIPPED = [v for v in KERNELS if v.shape and v.case.penalty.__module__.startswith("jaxreg")]


@functools.cache
def gradient_in_float64(case):
    """The gradient on one device, which other tests hold to finite differences."""
    with jax.enable_x64(True):
        return np.asarray(
            jax.jit(jax.grad(case.penalty))(jnp.asarray(sample(divisible(case.shape), np.float32), float))
        )


# Penalties and proxes by themselves.


@pytest.mark.parametrize(("case", "spec", "place"), list(crossed(SHIPPED)))
def test_penalties(case, spec, place):
    x = sample(divisible(case.shape), np.float32)
    function = jax.jit(jax.value_and_grad(case.penalty))
    sharding = NamedSharding(PLACES[place][0], spec)
    with within(place):
        value, gradient = function(jax.device_put(x, sharding))
    np.testing.assert_allclose(value, case.reference_at(x), rtol=3e-6)
    close(gradient, gradient_in_float64(case))
    assert case.case.flat or gradient.sharding.is_equivalent_to(sharding, x.ndim)


@pytest.mark.parametrize(
    ("case", "spec", "place"),
    list(crossed([v for v in SHIPPED if v.case.prox is not None], per_subject=1)),
)
def test_proxes(case, spec, place):
    x = sample(divisible(case.shape), np.float32)
    sharding = NamedSharding(PLACES[place][0], spec)
    steps = [np.float32(case.case.steps[0])]
    if case.case.steps_for_each:
        steps.append((case.case.steps[0] * np.exp(sample(x.shape, seed=1))).astype(np.float32))
    for step in steps:
        function = jax.jit(case.prox)
        with within(place):
            found = function(jax.device_put(x, sharding), jax.device_put(step, sharding) if step.ndim else step)
        np.testing.assert_allclose(found, function(x, step), rtol=2e-5, atol=3e-6)
        assert found.sharding.is_equivalent_to(sharding, x.ndim)


@pytest.mark.parametrize("spec", [P("d"), P(None, BOTH), P("m", "d"), P()], ids=str)
@pytest.mark.parametrize("place", ["explicit", "auto"])
def test_outside_of_jit(place, spec):
    x = sample((16, 24), np.float32)
    with within(place):
        placed = jax.device_put(x, NamedSharding(PLACES[place][0], spec))
        for case in SHIPPED:
            if len(case.shape) == 2 and case in ONE:
                np.testing.assert_allclose(case.penalty(placed), case.reference_at(x), rtol=3e-6)
                if case.case.prox is not None:
                    found = case.prox(placed, case.case.steps[0])
                    np.testing.assert_allclose(found, case.prox(x, case.case.steps[0]), rtol=2e-5, atol=3e-6)
                    assert found.sharding.is_equivalent_to(placed.sharding, 2)


SIZES = [(61, 8), (8, 61), (5, 3), (1, 16), (16, 1), (1, 1)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_sizes_that_no_mesh_divides(shape, place):
    """They may be inside of a program on an Auto mesh. On an Explicit one they are on all devices."""
    x = sample(shape, np.float32)
    mesh = PLACES[place][0]
    for case in SHIPPED:
        if len(case.layout.view) != 3 or case not in ONE:
            continue

        def graded(x, case=case):
            if mesh is AUTO:
                x = jax.lax.with_sharding_constraint(x, NamedSharding(AUTO, P("d", "m")))
            return jax.value_and_grad(case.penalty)(x)

        with within(place):
            value, gradient = jax.jit(graded)(jax.device_put(x, NamedSharding(mesh, P())))
        np.testing.assert_allclose(value, case.reference_at(x), rtol=3e-6, atol=1e-12)
        # The gradient of the angles between numbers is 0.
        close(gradient, jax.grad(case.penalty)(jnp.asarray(x)), atol=1e-6 if x.shape[1] == 1 else 1e-30)


@pytest.mark.parametrize("shape", [(61, 8), (5, 3), (3, 5)], ids=str)
def test_a_smooth_maximum_counts_no_vectors_that_fill_a_mesh(shape):
    x = sample(shape, np.float32)
    function = functools.partial(penalties.mutual_coherence, sharpness=2.0)
    with within("auto"):
        value, gradient = jax.jit(jax.value_and_grad(function))(jax.device_put(x, NamedSharding(AUTO, P())))
    np.testing.assert_allclose(value, references.coherence(x[None], (0,), (1,), sharpness=2.0)[0], rtol=3e-6)
    close(gradient, jax.grad(function)(jnp.asarray(x)))


ON_MATRICES = {
    "orthogonal": penalties.orthogonal,
    "frame_potential": penalties.frame_potential,
    "frame_potential of columns": functools.partial(penalties.frame_potential, mode="columns"),
    "mutual_coherence": penalties.mutual_coherence,
    "smooth mutual_coherence": functools.partial(penalties.mutual_coherence, sharpness=20.0),
    "off_diagonal": penalties.off_diagonal,
    "soft_orthogonal": penalties.soft_orthogonal,
    "srip": penalties.srip,
    "nuclear": penalties.nuclear,
    "spectral": penalties.spectral,
}


@pytest.mark.parametrize("place", ["explicit", "auto"])
@pytest.mark.parametrize("function", ON_MATRICES.values(), ids=ON_MATRICES)
def test_transformations_compose(function, place):
    """Value, gradient, forward mode, second derivatives, `vmap`, `scan`, `checkpoint` and `cond`, of divided rows."""
    x = jnp.asarray(sample((8, 3), np.float32))
    sharding = NamedSharding(PLACES[place][0], P("d"))
    direction = jnp.asarray(sample((8, 3), np.float32, seed=2))

    def along(x, direction):
        return jax.jvp(function, (x,), (direction,))[1]

    def curved(x, direction):
        return jax.jvp(jax.grad(function), (x,), (direction,))[1]

    def reverse_over_reverse(x, direction):
        return jax.grad(lambda x: jnp.sum(jax.grad(function)(x) * direction))(x)

    def stepped(x, direction):
        def step(x, _):
            value, gradient = jax.value_and_grad(jax.checkpoint(function))(x)
            return x - 0.1 * gradient, value

        return jax.lax.scan(step, x, None, length=2)

    def chosen(x, direction):
        return jax.lax.cond(jnp.sum(x) > 0, function, lambda x: 2 * function(x), x)

    def mapped(x, direction):
        return jax.vmap(jax.value_and_grad(function))(jnp.stack([x, direction]))

    for program in (along, curved, reverse_over_reverse, stepped, chosen, mapped):
        expected = jax.jit(program)(x, direction)
        with within(place):
            found = jax.jit(program)(jax.device_put(x, sharding), jax.device_put(direction, sharding))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5, err_msg=program.__name__)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
@pytest.mark.parametrize("name", ["orthogonal", "frame_potential", "spectral"])
def test_low_precision(name, dtype):
    x = jnp.asarray(sample((32, 16), np.float32)).astype(dtype)
    value, gradient = jax.jit(jax.value_and_grad(ON_MATRICES[name]))(jax.device_put(x, NamedSharding(AUTO, P("d"))))
    expected, expected_gradient = jax.value_and_grad(ON_MATRICES[name])(x)
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    close(gradient.astype(jnp.float32), expected_gradient.astype(jnp.float32), rtol=0.01)


AS_CLASSES = {
    "orthogonal": OrthogonalRegularizer,
    "frame_potential": jaxreg.FramePotential,
    "frame_potential of columns": functools.partial(jaxreg.FramePotential, mode="columns"),
    "mutual_coherence": jaxreg.MutualCoherence,
    "smooth mutual_coherence": functools.partial(jaxreg.MutualCoherence, sharpness=20.0),
    "off_diagonal": jaxreg.OffDiagonal,
    "soft_orthogonal": jaxreg.SoftOrthogonal,
    "srip": jaxreg.SRIP,
    "nuclear": jaxreg.Nuclear,
    "spectral": jaxreg.Spectral,
    "linf": jaxreg.LInf,
    "group_lasso": GroupLasso,
}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", AS_CLASSES)
def test_what_is_not_finite_shows(name, bad):
    function = ON_MATRICES.get(name) or getattr(penalties, name)
    x = jax.device_put(sample((16, 8), np.float32), NamedSharding(AUTO, P("d")))
    x = x.at[3, 2].set(bad)
    assert not np.isfinite(jax.jit(function)(x))
    known = Rules((r"", AS_CLASSES[name](1.0))).with_specs(P("d"))
    assert not np.isfinite(in_shards(known, P("d"), P())(x))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("name", ["orthogonal", "frame_potential"])
def test_scales(name, scale):
    x = sample((16, 8), np.float32)
    function = jax.jit(ON_MATRICES[name])
    found = function(jax.device_put(np.float32(scale) * x, NamedSharding(AUTO, P("d"))))
    # Vectors below Keras's least length of 1e-7 are not normalised.
    expected = function(jnp.asarray(np.float32(scale) * x))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# The ring.


def sum_of_signs(x):
    """The gradient of the mean |cosine| of rows by its formula, in float64."""
    x = np.asarray(x, np.float64)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    units = x / lengths
    signs = np.sign(units @ units.T)
    np.fill_diagonal(signs, 0)
    sums = 2 * signs @ units / (len(x) * (len(x) - 1))
    return (sums - units * np.sum(sums * units, axis=1, keepdims=True)) / lengths


@pytest.mark.parametrize("devices", [2, 3, 5, 8])
@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_the_ring_for_every_number_of_devices(devices, mode):
    mesh = jax.make_mesh((devices,), ("d",), devices=jax.devices()[:devices])
    x = sample((devices * 70, 48), np.float32)
    spec = P("d") if mode == "rows" else P(None, "d")
    placed = jax.device_put(x if mode == "rows" else x.T, NamedSharding(mesh, spec))
    value, gradient = jax.jit(jax.value_and_grad(functools.partial(penalties.orthogonal, mode=mode)))(placed)
    units = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    cosines = np.abs(units @ units.T)
    expected = (cosines.sum() - np.trace(cosines)) / (len(x) * (len(x) - 1))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(functools.partial(penalties.orthogonal, mode=mode))(placed), expected, rtol=1e-6)
    close(gradient if mode == "rows" else gradient.T, sum_of_signs(x))


def test_the_ring_block_by_block(monkeypatch):
    """The blocks of a device are so small that there are many, and a ragged one."""
    sizes = _plans.TABLE["cpu"]._replace(dense=8, dense_if_long=8, thirds=0, blocks=(8,))
    monkeypatch.setitem(_plans.TABLE, "cpu", sizes)
    jax.clear_caches()
    for n in (8 * 21, 8 * 24):
        x = sample((n, 6), np.float32)
        value, gradient = jax.jit(jax.value_and_grad(penalties.orthogonal))(
            jax.device_put(x, NamedSharding(EXPLICIT, P(BOTH)))
        )
        reference = next(v for v in ONE if v.case.penalty is penalties.orthogonal)
        np.testing.assert_allclose(value, reference.reference_at(x), rtol=1e-6)
        close(gradient, sum_of_signs(x))
    jax.clear_caches()


def collectives(text):
    kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    return {kind: sum(f" {kind}(" in line or f" {kind}-start(" in line for line in text.split("\n")) for kind in kinds}


@pytest.mark.parametrize("place", ["explicit", "auto"])
@pytest.mark.parametrize("spec", [P(BOTH), P(None, BOTH), P("d", "m")], ids=str)
def test_nothing_is_gathered(spec, place):
    mesh = PLACES[place][0]
    x = jax.ShapeDtypeStruct((2048, 256), jnp.float32, sharding=NamedSharding(mesh, spec))
    with within(place):
        program = jax.jit(jax.value_and_grad(penalties.orthogonal)).lower(x).compile()
    found = collectives(program.as_text())
    assert found["all-gather"] == 0
    assert found["collective-permute"] > 0
    # The kernel of one device has 0.25 MiB. Without the ring, the whole has 2 MiB and its Gram matrix 16.
    assert program.memory_analysis().temp_size_in_bytes < 2.5 * 2**20


def test_replicated_and_stacked_kernels_are_divided():
    one = jax.jit(jax.value_and_grad(penalties.orthogonal)).lower(jax.ShapeDtypeStruct((2048, 256), jnp.float32))
    one = one.compile().memory_analysis().temp_size_in_bytes
    stacked = functools.partial(penalties.orthogonal, batch_axis=0)
    for function, shape, spec in ((penalties.orthogonal, (2048, 256), P()), (stacked, (8, 2048, 256), P(BOTH))):
        x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(EXPLICIT, spec))
        program = jax.jit(jax.value_and_grad(function)).lower(x).compile()
        assert program.memory_analysis().temp_size_in_bytes < 1.2 * one
        assert (collectives(program.as_text())["collective-permute"] == 0) == (spec != P())


# Subspace iteration.


@pytest.mark.parametrize("spec", [P("d"), P(None, BOTH), P("m", "d")], ids=str)
def test_singular_values_that_meet(spec):
    """More of them meet than the iteration follows, or some, or none differs from 0."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 16)))[0] for n in (24, 16))
    for values in (np.ones(16), [3.0] * 3 + [1.0] * 13, [3.0] + [3.0 - 1e-4] + [1.0] * 14, np.zeros(16)):
        x = ((u * values) @ v.T).astype(np.float32)
        found, gradient = jax.jit(jax.value_and_grad(penalties.spectral))(
            jax.device_put(x, NamedSharding(EXPLICIT, spec))
        )
        np.testing.assert_allclose(found, np.max(values), rtol=1e-6)
        top = np.isclose(values, np.max(values), rtol=1e-6) & (np.max(values) > 0)
        expected = (u * top) @ v.T / max(np.sum(top), 1)
        np.testing.assert_allclose(gradient, expected, atol=0.03 if values[1] == 3.0 - 1e-4 else 1e-5)


# Shards inside `jax.shard_map`.


def in_shards(function, in_specs, out_specs, mesh=AUTO, **options):
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(in_specs,), out_specs=out_specs, **options))


class Widest(jaxreg.Regularizer):
    """A penalty of which nothing is known, with a prox that is not one of its weights each."""

    factor: float = 0.1

    def __call__(self, x):
        return self.factor * jnp.max(jnp.abs(x)) ** 3

    def prox(self, x, step):
        return x * jnp.max(jnp.abs(x))


FURTHER = {
    "a sample": OrthogonalRegularizer(1.0, sample=7),
    "a class": Widest(),
    "a scaled class": 2.0 * Widest(),
    "a sum": Widest() + 2.0 * GroupLasso(1.0) + jaxreg.L1(0.5),
    "a function": half_sum_of_squares,
    "a weighted group": GroupLasso(1.0, 0, size_weighted=True),
    "columns": OrthogonalRegularizer(1.0, "columns"),
    "two": jaxreg.L1(0.5) + jaxreg.L2(0.5),
}
REGULARIZERS = {str(made): made.make() for made in MADE if not made.case.flat} | FURTHER
EVERY_SPEC = [P("d"), P(None, BOTH), P("m", "d"), P(BOTH), P()]


def turns_of(subjects, kinds=tuple(MESHES)):
    every = itertools.cycle(itertools.product(EVERY_SPEC, kinds))
    for name, subject in subjects.items():
        for _ in range(2):
            spec, kind = next(every)
            yield pytest.param(subject, spec, kind, id=f"{name}-{spec}-{kind}")


@pytest.mark.parametrize(("regularizer", "spec", "kind"), list(turns_of(REGULARIZERS)))
def test_rules_with_specs(regularizer, spec, kind):
    """The penalty of the whole, its gradient, and the prox, with scalar steps and with one for each weight."""
    x = sample((16, 24, 4) if isinstance(regularizer, jaxreg.ConvOrthogonal) else (16, 24), np.float32)
    params = {"layer": {"kernel": x}}
    rules = Rules((r"kernel$", regularizer))
    specs = {"layer": spec}  # a prefix
    graded = jax.jit(jax.value_and_grad(lambda p: rules(p, key=KEY)))
    expected, expected_gradients = graded(params)
    known = rules.with_specs(specs)
    placed = jax.device_put(params, NamedSharding(MESHES[kind], spec))
    value, gradients = in_shards(
        jax.value_and_grad(lambda p: known(p, key=KEY)), specs, (P(), specs), mesh=MESHES[kind]
    )(placed)
    np.testing.assert_allclose(value, expected, rtol=3e-6)
    close(gradients["layer"]["kernel"], expected_gradients["layer"]["kernel"])
    if not rules.regularizers[0].has_prox:
        return
    found = in_shards(lambda p: known.prox(p, 0.3), specs, specs, mesh=MESHES[kind])(placed)
    np.testing.assert_allclose(
        found["layer"]["kernel"], rules.prox(params, 0.3)["layer"]["kernel"], rtol=2e-5, atol=3e-6
    )
    if rules.regularizers[0].has_metric_prox:
        steps = np.exp(sample((16, 24), np.float32, seed=3)) / 3
        both = {"p": placed, "steps": jax.device_put(steps, NamedSharding(MESHES[kind], spec))}
        each = in_shards(
            lambda both: known.prox(both["p"], lambda path, leaf: both["steps"]),
            {"p": specs, "steps": spec},
            specs,
            mesh=MESHES[kind],
        )(both)
        np.testing.assert_allclose(
            each["layer"]["kernel"], rules.prox(params, steps)["layer"]["kernel"], rtol=2e-5, atol=3e-6
        )


TREE = {
    "qkv": sample((8, 4, 16), np.float32),
    "out": sample((4, 16, 8), np.float32, seed=1),
    "conv": sample((3, 3, 8, 16), np.float32, seed=2),
    "stack": sample((4, 8, 16), np.float32, seed=3),
    "again": sample((4, 8, 16), np.float32, seed=4),
    "bias": sample((16,), np.float32, seed=5),
}
SPECS = {
    "qkv": P("d", "m"),
    "out": P("m", None, "d"),
    "conv": P(None, None, "m", "d"),
    "stack": P("d", None, "m"),
    "again": P("d", None, "m"),
    "bias": P("d"),
}
RULES = Rules(
    (r"qkv", OrthogonalRegularizer(1.0, "columns", out_axis=(1, 2))),
    (r"out", jaxreg.FramePotential(1.0, out_axis=-1)),
    (r"conv", GroupLasso(1.0) + OrthogonalRegularizer(0.5, "columns")),
    (r"stack|again", OrthogonalRegularizer(1.0, batch_axis=0)),
    (r"bias", jaxreg.LInf(0.5)),
)


def placed_tree(mesh):
    return {name: jax.device_put(x, NamedSharding(mesh, SPECS[name])) for name, x in TREE.items()}


@pytest.mark.parametrize("place", PLACES)
def test_rules_of_a_tree(place):
    """Kernels of every rank. Equal kernels are taken together."""
    graded = jax.jit(lambda p: (RULES.breakdown(p), RULES.by_rule(p), jax.grad(RULES)(p)))
    expected = graded(TREE)
    with within(place):
        tree = placed_tree(PLACES[place][0])
        found = graded(tree)
        explained = {row.path: row for row in RULES.explain(tree).rows}
    chex.assert_trees_all_close(jax.device_get(found[:2]), jax.device_get(expected[:2]), rtol=3e-6)
    for name, gradient in found[2].items():
        close(gradient, expected[2][name])
        assert gradient.sharding.is_equivalent_to(tree[name].sharding, gradient.ndim)
    for row in RULES.explain(TREE).rows:
        assert explained[row.path].seen == row.seen
        np.testing.assert_allclose(explained[row.path].penalty, row.penalty, rtol=3e-6)


def test_rules_of_a_tree_in_shards():
    def of_shards(tree):
        seen = {row.path: row.seen for row in RULES.with_specs(SPECS).explain(tree).rows}
        assert seen == {row.path: row.seen for row in RULES.explain(TREE).rows}
        rules = RULES.with_specs(SPECS)
        return rules.breakdown(tree), rules.by_rule(tree), jax.grad(rules)(tree)

    expected = jax.jit(lambda p: (RULES.breakdown(p), RULES.by_rule(p), jax.grad(RULES)(p)))(TREE)
    found = in_shards(of_shards, SPECS, (P(), P(), SPECS))(TREE)
    chex.assert_trees_all_close(jax.device_get(found[:2]), jax.device_get(expected[:2]), rtol=3e-6)
    for name, gradient in found[2].items():
        close(gradient, expected[2][name])


def test_equal_kernels_share_their_collectives():
    kernel = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(EXPLICIT, P("d", "m")))
    rules = Rules((r"kernel", OrthogonalRegularizer(1.0)))

    def number(count):
        tree = {f"kernel{i}": kernel for i in range(count)}
        return collectives(jax.jit(jax.value_and_grad(rules)).lower(tree).compile().as_text())

    assert number(6) == number(1)
    assert sum(number(1).values()) > 0


def test_regularizers_in_boxes_and_in_nnx():
    """The specs of NNX come as a state of them, and those of a tree of boxes without these."""

    class Model(nnx.Module):
        def __init__(self):
            self.fc = nnx.Linear(16, 24, rngs=nnx.Rngs(0), param_dtype=jnp.float32)

    state = nnx.state(Model(), nnx.Param)
    rules = Rules((r"kernel$", OrthogonalRegularizer(1.0)), (r"bias$", None))
    specs = jax.tree.map(lambda x: P("d") if x.ndim == 2 else P(), state)
    found = jax.jit(
        jax.shard_map(rules.with_specs(specs), mesh=AUTO, in_specs=(specs,), out_specs=P()),
    )(state)
    np.testing.assert_allclose(found, rules(state), rtol=3e-6)


# Data parallel training: the documented loss.


@pytest.mark.parametrize("spec", [P(), P("d")], ids=str)
def test_the_documented_loss(spec):
    """`pmean(local_loss) + rules(params)` has the gradient of the loss of the whole batch plus the penalty."""
    rules = Rules((r"kernel$", GroupLasso(0.5) + OrthogonalRegularizer(0.3)))
    params = {"kernel": sample((16, 8), np.float32)}
    data = sample((32, 16), np.float32, seed=7)

    def predicted(params, data):
        kernel = params["kernel"]
        if spec == P("d"):
            kernel = jax.lax.all_gather(kernel, "d", tiled=True, to="invarying")
        return jnp.mean(jnp.square(data @ kernel))

    def loss(params, data):
        return jax.lax.pmean(predicted(params, data), BOTH) + rules.with_specs(spec)(params)

    def whole(params):
        return jnp.mean(jnp.square(data @ params["kernel"])) + rules(params)

    found, gradients = jax.jit(
        jax.shard_map(jax.value_and_grad(loss), mesh=AUTO, in_specs=(spec, P(BOTH)), out_specs=(P(), spec))
    )(params, data)
    expected, expected_gradients = jax.value_and_grad(whole)(params)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    close(gradients["kernel"], expected_gradients["kernel"])


TRANSFORMS = {
    "add_penalty_gradients": lambda rules: optax.chain(
        jaxreg.add_penalty_gradients(rules, key=KEY), optax.scale_by_adam(), optax.scale(-0.1)
    ),
    "decoupled": lambda rules: jaxreg.decoupled(optax.adam(0.1), rules, 0.1, key=KEY),
    "proximal_sgd": lambda rules: jaxreg.proximal_sgd(0.1, rules, key=KEY),
    "proximal_adam": lambda rules: jaxreg.proximal_adam(0.1, rules, key=KEY),
    "euclidean": lambda rules: jaxreg.proximal(optax.adam(0.1), rules, 0.1, metric="euclidean", key=KEY),
}
SMOOTH = Rules(
    (r"qkv", OrthogonalRegularizer(1.0, "columns", out_axis=(1, 2), sample=7)),
    (r"out", jaxreg.FramePotential(1.0)),
    (r"conv", GroupLasso(1.0)),
    (r"stack|again", OrthogonalRegularizer(1.0, batch_axis=0)),
    (r"bias", jaxreg.L2(0.5)),
)
PROXED = Rules(
    (r"qkv", GroupLasso(0.5, (1, 2))),
    (r"out", jaxreg.SparseGroupLasso(0.5)),
    (r"conv", GroupLasso(0.5, -2)),
    (r"stack", jaxreg.L1(0.5)),
    (r"bias", jaxreg.L1(0.5)),
    strict=False,
)
NOT_SEPARATE = Rules(
    (r"qkv", jaxreg.Nuclear(0.5)), (r"out", jaxreg.Spectral(0.5)), (r"conv", jaxreg.LInf(0.5)), strict=False
)


def rules_for(name):
    if name in ("add_penalty_gradients", "decoupled"):
        return SMOOTH
    return NOT_SEPARATE if name in ("euclidean", "proximal_sgd") else PROXED


GRADIENTS = {name: 0.3 * sample(x.shape, np.float32, seed=9) for name, x in TREE.items()}


def two_steps(tx, params, gradients):
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, optax.tree.get(state, "penalty"), updates


@functools.cache
def known_steps(name):
    """The parameters and the penalty after two steps on one device."""
    return jax.jit(functools.partial(two_steps, TRANSFORMS[name](rules_for(name))))(TREE, GRADIENTS)[:2]


@pytest.mark.standard_promotion
@pytest.mark.parametrize("place", ["explicit", "auto"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name, place):
    tx = TRANSFORMS[name](rules_for(name))
    expected, expected_penalty = known_steps(name)
    mesh = PLACES[place][0]
    with within(place):
        params = placed_tree(mesh)
        gradients = {name: jax.device_put(x, params[name].sharding) for name, x in GRADIENTS.items()}
        state = jax.jit(tx.init)(params)
        step = jax.jit(lambda gradients, state, params: tx.update(gradients, state, params))
        for _ in range(2):
            updates, state = step(gradients, state, params)
            params = jax.jit(optax.apply_updates)(params, updates)
    for key, new in params.items():
        np.testing.assert_allclose(new, expected[key], rtol=1e-4, atol=1e-5)
        assert updates[key].sharding.is_equivalent_to(NamedSharding(mesh, SPECS[key]), updates[key].ndim)
    np.testing.assert_allclose(optax.tree.get(state, "penalty"), expected_penalty, rtol=1e-5)


@pytest.mark.standard_promotion
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_in_shards(name):
    expected, expected_penalty = known_steps(name)
    known = TRANSFORMS[name](rules_for(name).with_specs(SPECS))

    def of_shards(params, gradients):
        return two_steps(known, params, gradients)[:2]

    found, penalty = jax.jit(
        jax.shard_map(of_shards, mesh=AUTO, in_specs=(SPECS, SPECS), out_specs=(SPECS, P())),
    )(TREE, GRADIENTS)
    for key, new in found.items():
        np.testing.assert_allclose(new, expected[key], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(penalty, expected_penalty, rtol=1e-5)


# Diagnostics.


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("spec", [P("d"), P(None, BOTH), P("m", "d"), P()], ids=str)
def test_diagnostics(spec, place):
    x = sample((16, 24), np.float32)
    x[:, 3] = 0.0
    with within(place):
        placed = jax.device_put(x, NamedSharding(PLACES[place][0], spec))
        for mode in ("rows", "columns"):
            units = x if mode == "rows" else x.T
            norms = np.linalg.norm(units.astype(np.float64), axis=1, keepdims=True)
            cosines = (units / np.maximum(norms, 1e-7)) @ (units / np.maximum(norms, 1e-7)).T
            found = jax.jit(functools.partial(diagnostics.cosines, mode=mode))(placed)
            np.testing.assert_allclose(found, cosines, atol=1e-6)
            coherence = jax.jit(functools.partial(diagnostics.mutual_coherence, mode=mode))(placed)
            np.fill_diagonal(cosines, 0)
            np.testing.assert_allclose(coherence, np.abs(cosines).max(), rtol=1e-6)
        tree = {"kernel": placed}
        np.testing.assert_array_equal(diagnostics.dead_units(tree)["kernel"], np.arange(24) == 3)
        np.testing.assert_allclose(diagnostics.sparsity(tree)["kernel"], 1 / 24, rtol=1e-6)
        assert "1 " in str(diagnostics.sparsity_table(tree))


# Errors.


def test_specs_are_checked():
    rules = Rules((r"kernel$", GroupLasso(1.0)), (r"bias$", jaxreg.L2(1.0)), strict=False)
    params = {"kernel": sample((16, 8), np.float32), "bias": sample((8,), np.float32)}

    def call(specs, **options):
        return in_shards(lambda p: rules.with_specs(specs)(p)[None], P("d"), P("d"), **options)(params)

    with pytest.raises(ValueError, match=r"at `kernel`, under rule 0 .*must have a spec for each shard.*\['bias'\]"):
        call({"bias": P("d")})
    with pytest.raises(ValueError, match=r"at `bias`, under rule 1 .*must have a spec for each shard.*\['kernel'\]"):
        call({"kernel": P("d")})
    with pytest.raises(ValueError, match=r"at `kernel`, .*does not vary over \['m'\]"):
        call({"kernel": P("d", "m"), "bias": P("d")})
    with pytest.raises(ValueError, match=r"at `kernel`, .*varies over \['d'\]"):
        call({"kernel": P(), "bias": P("d")})
    with pytest.raises(ValueError, match=r"at `bias`, .*no more dimensions than the array"):
        call({"kernel": P("d"), "bias": P("d", None)})
    with pytest.raises(ValueError, match=r"must name axes of the `jax.shard_map`, \['d', 'm'\], got \['x'\]"):
        call(P("x"))
    for spec in (P("d"), P()):
        with pytest.raises(ValueError, match="With check_vma=False JAX does not know which arrays are shards"):
            call(spec, check_vma=False)
    with pytest.raises(TypeError, match=r"got NamedSharding; take its `.spec`"):
        rules.with_specs(NamedSharding(AUTO, P("d")))
    with pytest.raises(TypeError, match="must hold names of mesh axes or None, got"):
        rules.with_specs(P(P.UNCONSTRAINED))
    with pytest.raises(
        TypeError, match=r"`specs` must hold a PartitionSpec for each parameter, got str 'd' at `kernel`"
    ):
        rules.with_specs({"kernel": "d"})
    with pytest.raises(TypeError, match="a config holds no specs"):
        rules.with_specs(P("d")).get_config()


def test_specs_stay_with_the_rules():
    rules = Rules((r"kernel$", GroupLasso(1.0))).with_specs({"kernel": P("d")})
    assert rules == Rules((r"kernel$", GroupLasso(1.0))).with_specs({"kernel": P("d")})
    assert (2.0 * rules).specs == rules.specs
    assert hash(rules) == hash(jax.tree.map(lambda leaf: leaf, rules))
    assert rules != Rules((r"kernel$", GroupLasso(1.0)))
    assert "with_specs" in repr(rules)
    # Outside of `jax.shard_map` arrays are whole.
    x = sample((16, 8), np.float32)
    np.testing.assert_allclose(rules({"kernel": x}), Rules((r"kernel$", GroupLasso(1.0)))({"kernel": x}))


def test_with_check_vma_false_arrays_are_whole():
    x = sample((16, 8), np.float32)
    found = in_shards(lambda x: GroupLasso(1.0)(x)[None], P(), P("d"), check_vma=False)(x)
    np.testing.assert_allclose(found, np.full(4, GroupLasso(1.0)(x)), rtol=1e-6)


# Activities.


def test_activities_of_a_divided_batch():
    outputs = {"a": sample((16, 8), np.float32), "b": sample((16, 4, 8), np.float32, seed=1)}
    for regularizer in (jaxreg.L2(0.1), GroupLasso(0.1), jaxreg.LInf(0.1)):
        rules = Rules((r"", regularizer))

        def local(outputs, rules=rules):
            size = outputs["a"].shape[0]
            return jaxreg.activity_penalty(rules, outputs, batch_size=size, axis_name=BOTH)

        expected, expected_gradient = jax.value_and_grad(
            lambda outputs, rules=rules: jaxreg.activity_penalty(rules, outputs, batch_size=16)
        )(outputs)
        found, gradient = in_shards(jax.value_and_grad(local), P(BOTH), (P(), P(BOTH)))(outputs)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        chex.assert_trees_all_close(jax.device_get(gradient), jax.device_get(expected_gradient), rtol=1e-5)


def test_axis_names_of_activities_are_checked():
    outputs = {"a": sample((16, 8), np.float32)}
    rules = Rules((r"", jaxreg.L2(0.1)))
    with pytest.raises(ValueError, match=r"`axis_name` must name axes of the `jax.shard_map` around it, \[\], got 'd'"):
        jaxreg.activity_penalty(rules, outputs, batch_size=16, axis_name="d")
    with pytest.raises(ValueError, match=r"`axis_name` .* \['d', 'm'\], got 'x'"):
        in_shards(lambda o: jaxreg.activity_penalty(rules, o, batch_size=2, axis_name="x"), P(BOTH), P())(outputs)
    with pytest.raises(TypeError, match="`axis_name` must be a str or a tuple of str, got"):
        jaxreg.activity_penalty(rules, outputs, batch_size=16, axis_name=["d"])
    with pytest.raises(ValueError, match="rules that have specs already"):
        jaxreg.activity_penalty(rules.with_specs(P("d")), outputs, batch_size=16, axis_name="d")
    with pytest.raises(TypeError, match=r"`rules` must be jaxreg.Rules with `axis_name`"):
        jaxreg.activity_penalty(lambda tree: jnp.zeros(()), outputs, batch_size=16, axis_name="d")


# What was found by use.


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_empty_arrays(place, shape):
    x = jnp.zeros(shape, jnp.float32)
    with within(place):
        placed = jax.device_put(x, NamedSharding(PLACES[place][0], P("d")))
        for name, function in ON_MATRICES.items():
            assert jax.jit(function)(placed) == 0
            known = Rules((r"", AS_CLASSES[name](1.0))).with_specs(P("d"))
            assert in_shards(known, P("d"), P(), mesh=PLACES[place][0])(placed) == 0


PARTLY = FURTHER | {"spectral": jaxreg.Spectral(1.0)}


@pytest.mark.parametrize("regularizer", PARTLY.values(), ids=PARTLY)
def test_some_axes_are_manual(regularizer):
    """The others are Explicit or Auto, and divide the shards further."""
    x = sample((16, 24), np.float32)
    rules = Rules((r"kernel$", regularizer))
    known = rules.with_specs(P("d"))
    expected, expected_gradient = jax.value_and_grad(lambda p: rules(p, key=KEY))({"kernel": x})
    for mesh in MESHES.values():
        with jax.set_mesh(mesh):
            value, gradient = jax.jit(
                jax.shard_map(
                    jax.value_and_grad(lambda p: known(p, key=KEY)),
                    in_specs=(P("d"),),
                    out_specs=(P(), P("d")),
                    axis_names={"d"},
                )
            )({"kernel": jax.device_put(x, NamedSharding(mesh, P("d", "m")))})
        np.testing.assert_allclose(value, expected, rtol=3e-6)
        close(gradient["kernel"], expected_gradient["kernel"])


@pytest.mark.parametrize("kinds", list(itertools.permutations(MESHES)), ids=str)
def test_meshes_of_both_kinds(kinds):
    mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=kinds)
    x = sample((16, 24), np.float32)
    for function in (*ON_MATRICES.values(), functools.partial(penalties.orthogonal, sample=7, key=KEY)):
        with jax.set_mesh(mesh):
            placed = jax.device_put(x, NamedSharding(mesh, P("d", "m")))
            value, gradient = jax.jit(jax.value_and_grad(function))(placed)
        np.testing.assert_allclose(value, function(x), rtol=3e-6)
        close(gradient, jax.grad(function)(jnp.asarray(x)))


@pytest.mark.parametrize("kind", MESHES, ids=str)
def test_axes_of_one_device(kind):
    """They divide nothing, but on an Explicit mesh they are in the type of an array."""
    mesh = jax.make_mesh((1, 1), ("d", "m"), axis_types=(kind, kind), devices=jax.devices()[:1])
    kernel = sample((8, 4, 16), np.float32)
    for function in (
        functools.partial(penalties.orthogonal, mode="columns", out_axis=(1, 2)),
        functools.partial(penalties.orthogonal, sample=5, key=KEY),
        penalties.frame_potential,
        penalties.nuclear,
        penalties.spectral,
        diagnostics.mutual_coherence,
    ):
        value, gradient = jax.jit(jax.value_and_grad(function))(
            jax.device_put(kernel, NamedSharding(mesh, P("d", "m")))
        )
        np.testing.assert_allclose(value, function(kernel), rtol=3e-6)
        close(gradient, jax.grad(function)(jnp.asarray(kernel)))


@pytest.mark.standard_promotion
@pytest.mark.parametrize("place", ["explicit", "auto"])
def test_the_metric_is_checked_beside_penalties_of_matrices(place):
    """The optimizer is run on small gradients, whose arrays all devices have."""
    inner = optax.chain(jaxreg.add_penalty_gradients(Rules((r"kernel$", OrthogonalRegularizer(1e-3)))), optax.adam(0.1))
    with within(place):
        params = {"kernel": jax.device_put(sample((16, 8), np.float32), NamedSharding(PLACES[place][0], P("d")))}
        jaxreg.proximal(inner, Rules((r"kernel$", jaxreg.L1(0.1))), 0.1).init(params)
        with pytest.raises(ValueError, match="its steps are 2 times as long"):
            jaxreg.proximal(inner, Rules((r"kernel$", jaxreg.L1(0.1))), 0.05).init(params)


@pytest.mark.parametrize("spec", [P("d"), P("d", None, "m"), P(BOTH), P(None, "d"), P()], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_stacks_that_are_mapped_over(place, spec):
    """Members of an ensemble, over which an axis of the mesh may be divided, too."""
    x = sample((8, 16, 24), np.float32)
    functions = {**ON_MATRICES, "group_lasso": penalties.group_lasso, "linf": penalties.linf}
    if spec == P("d", None, "m") and place == "explicit":
        del functions["spectral"]  # jax 0.12 cannot map its loop over an axis that an Explicit mesh divides
    for name, function in functions.items():
        graded = jax.jit(jax.vmap(jax.value_and_grad(function)))
        expected, expected_gradient = graded(x)
        with within(place):
            value, gradient = graded(jax.device_put(x, NamedSharding(PLACES[place][0], spec)))
        np.testing.assert_allclose(value, expected, rtol=3e-6, err_msg=name)
        close(gradient, expected_gradient)


@pytest.mark.parametrize("place", PLACES)
def test_equal_kernels_under_sums(place):
    """Those that share no exchange are taken one by one, so that a function of the user is not mapped over them."""

    @jax.custom_batching.custom_vmap
    def unmapped(x):
        return jnp.sum(x)

    @unmapped.def_vmap
    def _(size, is_mapped, x):
        raise AssertionError("it is mapped over")

    tree = {f"k{i}": sample((16, 8), np.float32, seed=i) for i in range(2)}
    for regularizer in (
        OrthogonalRegularizer(1.0) + GroupLasso(1.0),
        OrthogonalRegularizer(1.0) + unmapped,
        OrthogonalRegularizer(1.0) + 2.0 * jaxreg.FramePotential(1.0),
        jaxreg.Spectral(1.0),
    ):
        rules = Rules((r"k", regularizer))
        with within(place):
            placed = jax.device_put(tree, NamedSharding(PLACES[place][0], P("d")))
            for call in (rules, jax.jit(rules)):
                np.testing.assert_allclose(call(placed), rules(tree), rtol=3e-6)


def test_equal_kernels_on_other_devices():
    halves = [jax.sharding.Mesh(jax.devices()[i : i + 4], ("d",), axis_types=(AxisType.Auto,)) for i in (0, 4)]
    tree = {f"k{i}": sample((16, 8), np.float32, seed=i) for i in range(2)}
    placed = {
        name: jax.device_put(x, NamedSharding(m, P("d"))) for (name, x), m in zip(tree.items(), halves, strict=True)
    }
    rules = Rules((r"k", OrthogonalRegularizer(1.0)))
    chex.assert_trees_all_close(
        jax.device_get(rules.breakdown(placed)), jax.device_get(rules.breakdown(tree)), rtol=3e-6
    )


def test_the_largest_singular_value_gathers_in_a_branch_alone():
    kernel = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(EXPLICIT, P("d")))
    program = jax.jit(Rules((r"k", jaxreg.Spectral(1.0)))).lower({"k0": kernel, "k1": kernel}).compile().as_text()
    entry = program[program.index("ENTRY") :]
    assert "conditional(" in entry
    assert "all-gather" not in entry[: entry.index("\n}")]


@pytest.mark.parametrize("place", PLACES)
def test_kernels_of_one_shape_that_are_divided_differently(place):
    """Each gradient, and each prox, is divided as its own parameter, though all are traced once."""
    specs = {"a": P("d"), "b": P(None, "d"), "c": P("m", "d"), "d": P(), "e": P("d")}
    tree = {name: sample((16, 24), np.float32, seed=i) for i, name in enumerate(specs)}
    for regularizer in (OrthogonalRegularizer(1.0), jaxreg.Nuclear(0.1), jaxreg.Spectral(0.1), GroupLasso(0.1)):
        rules = Rules((r"", regularizer))
        with within(place):
            placed = {n: jax.device_put(x, NamedSharding(PLACES[place][0], specs[n])) for n, x in tree.items()}
            results = [jax.jit(jax.grad(rules))(placed)]
            if rules.regularizers[0].has_prox:
                results.append(jax.jit(functools.partial(rules.prox, step=0.5))(placed))
        for result in results:
            for name, x in result.items():
                assert x.sharding.is_equivalent_to(placed[name].sharding, 2), (regularizer, name)
        for name, gradient in jax.grad(rules)(tree).items():
            close(results[0][name], gradient)


@pytest.mark.parametrize("spec", [P("d", "m"), P(None, "m", "d"), P("m", None, "d"), P(None, BOTH)], ids=str)
@pytest.mark.parametrize(
    "regularizer",
    [
        OrthogonalRegularizer(1.0, "columns", out_axis=(1, 2), sample=7),
        GroupLasso(1.0, (1, 2), size_weighted=True),
        GroupLasso(1.0, 0, size_weighted=True),
        jaxreg.SparseGroupLasso(1.0, 1, l1=0.3),
    ],
    ids=str,
)
def test_kinds_of_several_axes(regularizer, spec):
    """Vectors are counted, and groups are weighted, as in the whole."""
    params = {"kernel": sample((8, 8, 16), np.float32)}
    rules = Rules((r"kernel$", regularizer))
    known = rules.with_specs(spec)
    value, gradient = in_shards(jax.value_and_grad(lambda p: known(p, key=KEY)), spec, (P(), spec))(params)
    expected, expected_gradient = jax.value_and_grad(lambda p: rules(p, key=KEY))(params)
    np.testing.assert_allclose(value, expected, rtol=3e-6)
    close(gradient["kernel"], expected_gradient["kernel"])
