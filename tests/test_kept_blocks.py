"""Penalties of extreme singular values by a block of vectors, which may be kept from step to step."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references as ref
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits
from test_shards import AUTO, BOTH, PLACES, close, in_shards, within

import jaxreg
from jaxreg import SRIP, Rules, Spectral, penalties

KEPT = {"srip": SRIP(1.0, kept=True), "spectral": Spectral(1.0, kept=True)}
REFERENCES = {"srip": ref.srip, "spectral": ref.spectral}
MATRIX = {"rows": (0,), "columns": (1,)}
kinds = pytest.mark.parametrize("kind", KEPT)


def with_values(values, rows, seed=0):
    """A matrix with these singular values."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(size, len(values))))[0] for size in (rows, len(values)))
    return ((u * np.asarray(values)) @ v.T).astype(np.float32)


def spread(largest, count=40):
    """Singular values, of which a block finds the extreme ones in some steps."""
    return largest * np.concatenate([[1.0, 0.9, 0.8], np.linspace(0.5, 0.1, count - 3)])


def spanned(memory):
    """The projections on what the vectors of blocks span."""
    memory = np.asarray(memory)
    return memory @ np.swapaxes(memory, 1, 2)


def after(regularizer, x, steps):
    def step(memory, _):
        return regularizer.updated(x, memory), None

    return jax.jit(lambda x: jax.lax.scan(step, regularizer.init(x), length=steps)[0])(jnp.asarray(x))


@kinds
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (16, 40), (1, 7)])
def test_a_kept_block_of_few_dimensions_is_exact(kind, shape):
    """The block spans everything, so value, gradient and second derivatives are those of the decomposition."""
    kept, exact = KEPT[kind], {"srip": SRIP(1.0), "spectral": Spectral(1.0)}[kind]
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=shape), rng.normal(size=shape)
    with jax.enable_x64(True):
        memory = kept.init(jnp.asarray(rng.normal(size=shape)))
        value, gradient = jax.value_and_grad(kept)(jnp.asarray(x), memory=memory)
        np.testing.assert_allclose(value, REFERENCES[kind](x[None], **MATRIX)[0], rtol=1e-12)
        np.testing.assert_allclose(gradient, jax.grad(exact)(x), rtol=1e-9, atol=1e-11)
        along = [
            jax.jvp(jax.grad(function), (jnp.asarray(x),), (jnp.asarray(v),))[1]
            for function in (functools.partial(kept, memory=memory), exact)
        ]
        slopes = [np.asarray(jax.grad(exact)(jnp.asarray(x + step * v))) for step in (1e-6, -1e-6)]
    np.testing.assert_allclose(along[0], along[1], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(along[0], (slopes[0] - slopes[1]) / 2e-6, rtol=1e-5, atol=1e-6)


@kinds
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 3.0, 1e15, 1e30])
def test_a_kept_block_finds_the_extreme_singular_value(kind, scale):
    x = with_values(spread(scale), 70)
    kept = KEPT[kind]
    memory = after(kept, x, 30)
    value, gradient = jax.value_and_grad(kept)(jnp.asarray(x), memory=memory)
    with np.errstate(over="ignore"):
        exact = np.float32(REFERENCES[kind](np.float64(x)[None], **MATRIX)[0])
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    if kind == "spectral" or scale >= 1:
        u, s, vt = np.linalg.svd(np.float64(x))
        expected = np.outer(u[:, 0], vt[0]) * (2 * s[0] if kind == "srip" else 1)
        close(gradient, expected, rtol=1e-4)


def test_the_smallest_singular_value_may_be_the_farthest():
    x = with_values(np.concatenate([[0.1, 0.3], np.linspace(0.8, 1.1, 38)]), 70)
    for value, gradient in (
        jax.value_and_grad(KEPT["srip"])(jnp.asarray(x), memory=after(KEPT["srip"], x, 30)),
        jax.value_and_grad(functools.partial(penalties.srip, steps=30))(jnp.asarray(x)),
    ):
        np.testing.assert_allclose(value, 1 - 0.01, rtol=1e-5)
        u, s, vt = np.linalg.svd(np.float64(x), full_matrices=False)
        close(gradient, -2 * s[-1] * np.outer(u[:, -1], vt[-1]), rtol=1e-3)


@kinds
def test_the_estimate_is_never_above(kind):
    """It is a norm in the span of the block, and its gradient is that with the block held."""
    x = np.random.default_rng(0).normal(size=(60, 40)).astype(np.float32) / 6
    kept, exact = KEPT[kind], REFERENCES[kind](np.float64(x)[None], **MATRIX)[0]
    for steps in (0, 1, 3):
        memory = after(kept, x, steps)
        value, gradient = jax.value_and_grad(kept)(jnp.asarray(x), memory=memory)
        assert 0.5 * exact < value < exact * (1 + 1e-6)
        v = np.random.default_rng(1).normal(size=x.shape)
        with jax.enable_x64(True):
            ahead, behind = (float(kept(jnp.asarray(x + h * v), memory=memory.astype(float))) for h in (1e-5, -1e-5))
        np.testing.assert_allclose(np.vdot(gradient, v), (ahead - behind) / 2e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [2, 10, 20])
def test_cold_steps_come_nearer(steps):
    x = np.random.default_rng(0).normal(size=(60, 40)).astype(np.float32) / 6
    exact = ref.srip(np.float64(x)[None], **MATRIX)[0]
    value = penalties.srip(jnp.asarray(x), steps=steps)
    assert exact * (1 - 0.5 / steps) < value <= exact * (1 + 1e-6)


@kinds
def test_a_block_stays_whole_where_a_takes_vectors_to_zero(kind):
    """XᵀX − I is 0 for orthonormal columns, and XᵀX for zeros. The block is orthonormal all the same."""
    for x in (np.eye(60, 40), np.zeros((60, 40)), np.eye(60, 40) * (np.arange(40) < 5), 1.5 * np.eye(60, 40)):
        x = jnp.asarray(x, jnp.float32)
        memory = after(KEPT[kind], x, 3)
        np.testing.assert_allclose(memory[0].T @ memory[0], np.eye(16), atol=1e-5)
        value, gradient = jax.value_and_grad(KEPT[kind])(x, memory=memory)
        np.testing.assert_allclose(value, REFERENCES[kind](np.float64(x)[None], **MATRIX)[0], atol=1e-5)
        assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(jax.grad(KEPT[kind])(0 * x, memory=memory), 0 * x)


@kinds
def test_what_is_not_finite_shows_and_is_not_kept(kind):
    x = jnp.asarray(with_values(spread(1.0), 70))
    memory = KEPT[kind].init(x)
    for bad in (np.nan, np.inf):
        value, gradient = jax.value_and_grad(KEPT[kind])(x.at[3, 2].set(bad), memory=memory)
        assert not np.isfinite(value)
        assert np.isnan(gradient[3, 2])
        np.testing.assert_array_equal(KEPT[kind].updated(x.at[3, 2].set(bad), memory), memory)


@kinds
def test_kernels_of_any_rank_and_low_precision(kind):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(30, 2, 3, 20)), jnp.float32)
    kept = {"srip": SRIP, "spectral": Spectral}[kind](1.0, kept=True, out_axis=(0,), batch_axis=1)
    memory = kept.init(x)
    chex.assert_shape(memory, (2, 30, 16))
    parts = [x[:, i].reshape(30, 60) for i in range(2)]
    value, gradient = jax.value_and_grad(kept)(x, memory=memory)
    found = [jax.value_and_grad(KEPT[kind])(part, memory=memory[i : i + 1]) for i, part in enumerate(parts)]
    np.testing.assert_allclose(value, sum(v for v, _ in found), rtol=1e-5)
    for i, (_, of_part) in enumerate(found):
        close(gradient[:, i].reshape(30, 60), of_part)
    low = x.astype(jnp.bfloat16)
    chex.assert_type([kept.init(low), kept(low, memory=memory), kept.updated(low, memory)], jnp.float32)
    chex.assert_type(jax.grad(kept)(low, memory=memory), jnp.bfloat16)
    assert kept.init(jnp.zeros((30, 2, 0))).shape == (2, 0, 0)
    assert kept(jnp.zeros((30, 2, 0)), memory=jnp.zeros((2, 0, 0))) == 0


def test_memory_is_not_differentiated():
    x = jnp.asarray(with_values(spread(1.0), 70))
    for kept in KEPT.values():
        assert not np.any(jax.grad(lambda memory, kept=kept: kept(x, memory=memory))(kept.init(x)))
        with_init = jax.grad(lambda x, kept=kept: kept(x, memory=kept.init(x)))(x)
        close(with_init, jax.grad(kept)(x, memory=kept.init(x)))


@kinds
def test_in_sums_and_rules_and_under_jit(kind):
    """A multiple, a sum with other penalties, a schedule and a scan keep the block as it is kept alone."""
    x = jnp.asarray(with_values(spread(2.0), 70))
    kept = KEPT[kind]
    rules = Rules((r"w", 0.5 * kept + jaxreg.L2(0.1)), (r"v", (lambda count: 0.1 * count) * kept))
    params = {"w": x, "v": x.T}
    memory = rules.init(params)
    value = rules.at(3)(params, memory=memory)
    alone = kept(x, memory=kept.init(x))
    np.testing.assert_allclose(value, 0.8 * alone + 0.1 * jnp.sum(jnp.square(x)), rtol=1e-5)
    assert "kept=True" in str(rules.explain(params))

    def step(memory, _):
        return rules.updated(params, memory), None

    memory = jax.lax.scan(step, memory, length=3)[0]
    np.testing.assert_allclose(spanned(memory["w"][0]), spanned(after(kept, x, 3)), atol=1e-5)


SPECS = [P("d"), P(None, "d"), P("d", "m"), P(None, BOTH), P()]


@kinds
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_on_a_mesh(kind, spec, place):
    x = with_values(spread(2.0), 64)
    kept = KEPT[kind]

    @jax.jit
    def steps(x, other):
        memory = kept.updated(other, kept.init(x))
        return memory, *jax.value_and_grad(kept)(x, memory=memory)

    expected = steps(x, 0.9 * x)
    sharding = NamedSharding(PLACES[place][0], spec)
    with within(place):
        memory, value, gradient = steps(*jax.device_put((x, 0.9 * x), sharding))
    assert memory.sharding.is_fully_replicated
    np.testing.assert_allclose(spanned(memory), spanned(expected[0]), atol=1e-5)
    np.testing.assert_allclose(value, expected[1], rtol=1e-5)
    close(gradient, expected[2], rtol=1e-4)
    assert gradient.sharding.is_equivalent_to(sharding, 2)


@kinds
@pytest.mark.parametrize("spec", [P("d"), P(None, "d"), P("d", "m")], ids=str)
def test_inside_of_shard_map(kind, spec):
    x = jax.device_put(with_values(spread(2.0), 64), NamedSharding(AUTO, spec))
    rules = Rules((r"kernel", KEPT[kind]))
    expected = rules.init({"kernel": jnp.asarray(x)})
    known = rules.with_specs(spec)

    def made(x):
        return known.updated({"kernel": x}, known.init({"kernel": x}))["kernel"]

    def graded(x):
        return jax.grad(lambda x: known({"kernel": x}, memory=known.init({"kernel": x})))(x)

    memory = in_shards(made, spec, P())(x)
    following = rules.updated({"kernel": jnp.asarray(x)}, expected)["kernel"]
    np.testing.assert_allclose(spanned(memory), spanned(following), atol=1e-5)
    single = jax.grad(lambda x: rules({"kernel": x}, memory=expected))(jnp.asarray(x))
    close(in_shards(graded, spec, spec)(x), single, rtol=1e-4)
    with pytest.raises(ValueError, match="with_specs"):
        in_shards(lambda x: rules.init({"kernel": x})["kernel"], spec, P())(x)


@pytest.mark.parametrize("spec", [P("d"), P(None, "d"), P("d", "m")], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_cold_steps_on_a_mesh(place, spec):
    x = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32) / 6
    function = jax.jit(jax.value_and_grad(penalties.srip))
    expected = function(x)
    with within(place):
        value, gradient = function(jax.device_put(x, NamedSharding(PLACES[place][0], spec)))
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    close(gradient, expected[1], rtol=1e-4)


@kinds
def test_a_compiler_shares_the_product_of_the_call_and_the_next_block(kind):
    """Both have X times the block. Together they take one product of X with it, and one of Xᵀ."""
    x = jnp.asarray(with_values(spread(1.0), 70))
    kept = KEPT[kind]
    memory = kept.init(x)

    def flops(function):
        return jax.jit(function).lower(x, memory).compile().cost_analysis()["flops"]

    def call(x, memory):
        return jax.value_and_grad(kept)(x, memory=memory)

    alone = flops(call) + flops(kept.updated)
    together = flops(lambda x, memory: (call(x, memory), kept.updated(x, memory)))
    assert together < alone - 2 * 70 * 40 * 16
    transform = jaxreg.add_penalty_gradients(Rules((r"", kept)))
    state = transform.init(x)
    in_step = jax.jit(transform.update).lower(x, state, x).compile().cost_analysis()["flops"]
    assert in_step < together + 10 * x.size


def test_only_blocks_are_moved():
    x = jax.ShapeDtypeStruct((2048, 256), jnp.float32, sharding=NamedSharding(AUTO, P("d", "m")))
    text = jax.jit(jax.value_and_grad(penalties.srip)).lower(x).compile().as_text()
    sizes = [
        int(np.prod([int(n) for n in shape.split(",") if n], initial=1))
        for shape in re.findall(r"f32\[([\d,]*)\][^ ]* (?:all-gather|all-reduce|all-to-all|collective-permute)", text)
    ]
    assert sizes
    assert max(sizes) <= 2048 * 16


# Training.


def exact_srip(x):
    """The penalty by a decomposition in each step."""
    x = x if x.shape[0] >= x.shape[1] else x.T
    return jnp.max(jnp.abs(jnp.linalg.eigvalsh(x.T @ x - jnp.eye(x.shape[1]))))


DIGITS = load_digits(return_X_y=True)


@functools.partial(jax.jit, static_argnums=0)
def trained(rules, seed):
    """A network of 64 × 128 and 128 × 96 weights that learns digits for 300 steps of Adam, under a penalty."""
    keys = jax.random.split(jax.random.key(seed), 4)
    images, labels = jnp.asarray(DIGITS[0] / 16, jnp.float32), jnp.asarray(DIGITS[1])
    params = {
        "first": jax.random.normal(keys[0], (64, 128)) / 8,
        "second": jax.random.normal(keys[1], (128, 96)) / 128**0.5,
        "head": jax.random.normal(keys[2], (96, 10)) / 10,
    }

    def loss(params, chosen):
        hidden = jax.nn.relu(jax.nn.relu(images[chosen] @ params["first"]) @ params["second"])
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["head"], labels[chosen]).mean()

    tx = optax.chain(jaxreg.add_penalty_gradients(rules), optax.adam(1e-3))

    def step(carry, key):
        params, state = carry
        chosen = jax.random.randint(key, (64,), 0, len(images))
        updates, state = tx.update(jax.grad(loss)(params, chosen), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(keys[3], 300))
    return params["first"], params["second"]


def trained_norms(penalty, seed):
    found = trained(Rules((r"first|second", penalty)), seed)
    return np.array([ref.srip(np.float64(kernel)[None], **MATRIX)[0] for kernel in found])


@pytest.mark.standard_promotion
def test_one_application_a_step_trains_as_exact_gradients_do():
    """The norm of XᵀX − I after training lies within 5 % of that under exact gradients, for five seeds."""

    def by_decomposition(x):
        return 0.1 * exact_srip(x)

    free = trained_norms(SRIP(0.0), 0)
    for seed in range(5):
        exact, kept = (trained_norms(penalty, seed) for penalty in (by_decomposition, SRIP(0.1, kept=True)))
        assert np.all(exact < free / 4)
        np.testing.assert_allclose(kept, exact, rtol=0.05)


def test_a_kept_spectral_norm_has_no_prox():
    assert Spectral().has_prox
    assert not KEPT["spectral"].has_prox
    with pytest.raises(NotImplementedError, match="has no prox in closed form"):
        KEPT["spectral"].prox(jnp.eye(3), 0.1)


def test_refusals():
    x = jnp.ones((5, 3))
    for kept in KEPT.values():
        assert kept.has_memory
        assert kept.renews_memory
        with pytest.raises(ValueError, match=r"`memory` must .* of shape \(1, 3, 3\) for float32\[5,3\], got None"):
            kept(x)
        with pytest.raises(ValueError, match=r"`memory` must be the block .*got float32\[1,3,2\]"):
            kept(x, memory=jnp.ones((1, 3, 2)))
        with pytest.raises(ValueError, match=r"`memory` must be the block .*got float32\[5,3\]"):
            kept.updated(x, x)
        with pytest.raises(ValueError, match=r"at `w`, under rule 0 .*`memory` must be given"):
            Rules((r"w", kept))({"w": x})
        for call in (kept.init, functools.partial(kept, memory=x), functools.partial(kept.updated, memory=x)):
            with pytest.raises(ValueError, match="rank >= 2"):
                call(x[0])
            with pytest.raises(TypeError, match="`x` must be a real floating-point array, got"):
                call("x")
    for cls in (SRIP, Spectral):
        assert not cls().has_memory
        assert cls().init(x) == ()
        with pytest.raises(ValueError, match=r"`memory` must be None without `kept=True`, got float32\[5,3\]"):
            cls()(x, memory=x)
        with pytest.raises(TypeError, match="`kept` must be a bool, got int 1"):
            cls(kept=1)
