"""Corners in which planted faults lived, because no law reaches them."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxreg
from jaxreg import L1, L1L2, L2, OrthogonalRegularizer, Rules, diagnostics, penalties, prox

# A group that overflows counts for nothing under a strength of 0, and an option reaches what it is for.


def test_a_group_strength_of_zero_ignores_what_overflows():
    x = jnp.full((3, 2), 3e38)
    assert penalties.sparse_group_lasso(x, l1=0.0, group=0.0) == 0.0
    assert not np.any(jax.grad(lambda x: penalties.sparse_group_lasso(x, l1=0.0, group=0.0))(x))


@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
@pytest.mark.parametrize("penalty", [penalties.frame_potential, penalties.orthogonal])
def test_precision_reaches_the_products(penalty, shape):
    for precision in (jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT):
        jaxpr = jax.make_jaxpr(jax.grad(lambda x, p=precision: penalty(x, precision=p)))(jnp.ones(shape))
        assert f"Precision.{precision.name}" in str(jaxpr) or (
            precision.name == "DEFAULT" and "HIGHEST" not in str(jaxpr)
        )


# Proxes.


def test_the_prox_of_a_half_power_of_large_weights():
    """Far above the threshold, y + τ/(2√y) = x."""
    with jax.enable_x64(True):
        x = jnp.asarray([1e5, 1e6, 1e8, 1e10])
        found = np.asarray(prox.l_half(x, 1.0))
        np.testing.assert_allclose(found + 1 / (2 * np.sqrt(found)), x, rtol=1e-14)
        assert np.all(found < np.asarray(x))


def test_the_prox_of_a_power_of_two_thirds_of_large_weights():
    """Far above the threshold, y + ⅔τ/∛y = x."""
    with jax.enable_x64(True):
        x = jnp.asarray([1e5, 1e6, 1e8, 1e10])
        found = np.asarray(prox.l_two_thirds(x, 1.0))
        np.testing.assert_allclose(found + 2 / (3 * np.cbrt(found)), x, rtol=1e-14)
        assert np.all(found < np.asarray(x))


def test_the_prox_of_a_power_of_two_thirds_at_its_threshold():
    """It jumps from 0 to half the weight."""
    for step in (1e-30, 1e-3, 1.0, 1e30):
        threshold = 2 * (2 / 3 * step) ** 0.75
        x = np.float32(threshold) * np.float32([1 - 1e-6, 1 + 1e-6])
        below, above = np.asarray(prox.l_two_thirds(jnp.asarray(x), step))
        assert below == 0
        np.testing.assert_allclose(above, x[1] / 2, rtol=1e-5)


@pytest.mark.parametrize("name", ["group_mcp", "group_scad"])
def test_groups_whose_norm_is_beyond_float32_stay_as_they_are(name):
    x = jnp.full((9, 2), 1.5e38)
    value, gradient = jax.value_and_grad(getattr(penalties, name))(x)
    np.testing.assert_allclose(value, getattr(penalties, name)(jnp.full((9, 2), 10.0)))
    assert not np.any(gradient)
    moved, pull = jax.vjp(lambda x: getattr(prox, name)(x, 0.5), x)
    np.testing.assert_array_equal(moved, x)
    np.testing.assert_array_equal(pull(jnp.ones((9, 2)))[0], np.ones((9, 2)))


@pytest.mark.parametrize("name", ["group_lasso", "sparse_group_lasso", "hinged_norm", "group_mcp", "group_scad"])
def test_the_derivative_of_a_prox_of_the_largest_groups(name):
    """Weights whose double is beyond float32. Very large groups are moved by nothing that counts."""
    x = jnp.array([[2e38, 1.0], [1e38, 2.0]])
    pull = jax.vjp(lambda x: getattr(prox, name)(x, 0.5), x)[1](jnp.array([[1.0, 0.0], [0.0, 0.0]]))[0]
    assert np.all(np.isfinite(pull))
    # The hinge halves a group far beyond its threshold at this step.
    np.testing.assert_allclose(pull[0, 0], 0.5 if name == "hinged_norm" else 1.0, rtol=1e-5)


def test_scad_at_the_step_at_which_it_stops_to_be_convex():
    x = jnp.array([-5.0, -2.0, 0.1, 1.5, 3.0])
    for step in (1.0, jnp.ones(5)):
        slope = jax.vmap(jax.grad(lambda x, s: prox.scad(x, s, a=2.0)))(x, jnp.broadcast_to(jnp.asarray(step), (5,)))
        assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("function", [prox.nuclear, prox.spectral])
def test_the_derivative_of_a_singular_prox_does_not_depend_on_the_scale(function):
    rng = np.random.default_rng(0)
    x, dx = (jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for _ in range(2))
    _, expected = jax.jvp(lambda x: function(x, 0.5), (x,), (dx,))
    for scale in (1e-5, 1e-4, 1e5):
        _, found = jax.jvp(lambda x, c=scale: function(x, 0.5 * c), (x * scale,), (dx,))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_singular_value_that_is_rounding_has_no_direction():
    """What LAPACK's rank takes for 0: the length of a side times eps, relative to the largest."""
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(1000, 2)))
    x = jnp.asarray(u * [1.0, 2e-5], jnp.float32)
    np.testing.assert_allclose(jax.grad(penalties.nuclear)(x)[:, 1], np.zeros(1000), atol=1e-4)


def test_a_step_is_multiplied_in_the_wider_precision():
    with jax.enable_x64(True):
        x = jnp.asarray([1.0, -2.0, 3.0], jnp.float64)
        found = L1(jnp.asarray(0.1, jnp.float64)).prox(x, jnp.asarray(0.1, jnp.float32))
        expected = np.sign(x) * (np.abs(x) - np.float64(np.float32(0.1)) * 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize("name", prox.__all__)
def test_a_step_of_another_shape_and_the_same_size_is_an_error(name):
    needed = {"anchor": "target", "weighted_l1": "weights"}
    options = {needed[name]: jnp.zeros((3, 1))} if name in needed else {}
    with pytest.raises(ValueError, match="`step` must be a scalar"):
        getattr(prox, name)(jnp.ones((3, 1)), jnp.ones(3), **options)


# Regularizers and rules.


def test_unflattened_numbers_are_not_checked():
    """A gradient, or an update, may have negative numbers."""
    x = jnp.array([1.0, -2.0])
    for regularizer in (L1L2(1.0, 1.0), jaxreg.SparseGroupLasso(1.0, l1=1.0), jaxreg.Huber(1.0)):
        negative = jax.tree.map(lambda value: -value, regularizer)
        assert np.isfinite(negative(x))


def test_a_saved_state_with_other_names_is_an_error():
    state = flax.serialization.to_state_dict(L2(0.1))
    for wrong in ({**state, "l1": 0.1}, {}):
        with pytest.raises(ValueError, match="the saved state of L2 must hold"):
            flax.serialization.from_state_dict(L2(0.2), wrong)


def test_random_keys_do_not_count_parameters_without_a_penalty():
    rules = Rules((r"bias$", None), (r"kernel$", OrthogonalRegularizer(0.1, sample=8)))
    kernel = jax.random.normal(jax.random.key(0), (64, 8))
    key = jax.random.key(1)
    few = {"b": {"kernel": kernel, "bias": jnp.ones(1)}}
    many = {"a": {"bias": jnp.ones(1), "free": jnp.ones(1)}, **few}
    np.testing.assert_array_equal(rules(few, key=key), rules(many, key=key))


def test_an_error_of_another_class_keeps_its_class():
    rules = Rules((r"kernel$", lambda x: jnp.sum(x) if jnp.sum(x) > 0 else 0.0))
    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        jax.jit(rules)({"kernel": jnp.ones(2)})
    assert any("at `kernel`, under rule 0" in note for note in caught.value.__notes__)


def test_rules_of_a_config_are_strict_unless_it_says_otherwise():
    config = {"pairs": Rules((r"never", L2())).get_config()["pairs"]}
    with pytest.raises(ValueError, match="met no parameter"):
        Rules.from_config(config)({"kernel": jnp.ones(2)})


def test_a_masked_subtree_may_end_in_the_whole_path_of_another_leaf():
    tree = {"encoder": optax.MaskedNode(), "kernel": jnp.ones(2)}
    assert Rules((r"encoder/kernel$", L2()), (r"^kernel", None))(tree) == 0.0


def test_explain_shows_penalties_that_are_all_zero():
    assert "penalty" in str(Rules((r"kernel$", L2())).explain({"kernel": jnp.zeros(2)}))


# Transforms and diagnostics.


@pytest.mark.standard_promotion
def test_the_cap_is_for_adam_alone():
    params = {"w": jnp.array([50.0])}
    for metric in (None, "euclidean"):
        tx = jaxreg.proximal(optax.sgd(0.1), Rules(("w", L1(100.0))), 0.1, metric=metric)
        updates, _ = tx.update({"w": jnp.zeros(1)}, tx.init(params), params)
        np.testing.assert_allclose(updates["w"], [-10.0])


def test_cosines_keep_a_batch_of_one():
    assert diagnostics.cosines(jnp.ones((1, 3, 2)), batch_axis=0).shape == (1, 3, 3)
    assert diagnostics.cosines(jnp.ones((3, 2))).shape == (3, 3)
