"""Constraints in rules: projected steps of every optimizer, sums with penalties, and where a constraint is an error."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import EACH_CONSTRAINT, KEPT
from flax import nnx
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, Lasso
from test_stated_problem import ALIASES, CURVATURE, LAM, PARAMS, RATE, RIGHT, TARGET, solve

import jaxreg
from jaxreg import L1, L1L2, L2, AdaptiveL1, Anchor, GroupLasso, Huber, Rules, constraints, proximal
from jaxreg.constraints import Box, Constraint, KeepNorm, KeepZeros, MaxNorm, NonNeg, UnitNorm

# Optimizers of optax mix dtypes, and some warn that they are deprecated.
pytestmark = [pytest.mark.standard_promotion, pytest.mark.filterwarnings("ignore")]


# Every optimizer.

EVERYTHING = {
    "w": jnp.array([3.0, -2.0, 0.05, 0.5, -0.02, 3.0]),
    "matrix": jnp.array([[1.0, -2.0, 0.3], [0.5, 4.0, -0.3]]),
    "free": jnp.ones(2),
}
PROJECTED = Rules((r"^w$", Box(-0.5, 0.3)), (r"matrix", MaxNorm(0.7)))
EXTRA = {"value": jnp.float32(1.0)}


def is_inside(params):
    w, matrix = np.asarray(params["w"], np.float64), np.asarray(params["matrix"], np.float64)
    inside = (w >= np.float32(-0.5)).all() and (w <= np.float32(0.3)).all()
    return inside and np.linalg.norm(matrix, axis=0).max() <= 0.7 * (1 + 1e-6)


def _check_refusal(name, error, words):
    assert name not in RIGHT
    assert re.search(words, str(error))


@pytest.mark.parametrize("name", ALIASES)
def test_the_sets_hold_after_every_step_of_every_optimizer(name):
    """No learning rate is needed. An optimizer that keeps what it saw at other weights is refused."""
    try:
        inner = ALIASES[name](0.1)
        inner.init(EVERYTHING)
    except (TypeError, ValueError):
        inner = ALIASES[name](RATE)
    tx = proximal(inner, PROJECTED)
    try:
        state = tx.init(EVERYTHING)
    except ValueError as error:
        _check_refusal(name, error, "line search|schedule_free")
        return
    params = EVERYTHING
    loss = lambda p: jnp.sum((p["w"] - 2.0) ** 2) + jnp.sum((p["matrix"] + 1.0) ** 2)  # noqa: E731
    for _ in range(4):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=loss(params), grad=grads, value_fn=loss, obj_fn=loss)
        params = optax.apply_updates(params, updates)
        assert is_inside(params)
    if name in RIGHT:
        assert (np.asarray(params["free"]) == 1).all() or name in ("adamw", "nadamw", "noisy_sgd")


@pytest.mark.parametrize(
    "make",
    [
        lambda rules: jaxreg.proximal_sgd(0.1, rules, momentum=0.9),
        lambda rules: jaxreg.proximal_adam(0.1, rules),
        lambda rules: jaxreg.proximal_adamw(0.1, rules),
        lambda rules: proximal(optax.adam(0.1), rules, metric="adam"),
        lambda rules: proximal(optax.adam(0.1), rules, metric="euclidean"),
        lambda rules: proximal(optax.inject_hyperparams(optax.adam)(0.1), rules),
        lambda rules: proximal(optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau()), rules),
        lambda rules: optax.MultiSteps(proximal(optax.adam(0.1), rules), 2),
        lambda rules: optax.apply_if_finite(proximal(optax.adam(0.1), rules), 2),
        lambda rules: optax.chain(optax.clip_by_global_norm(1.0), proximal(optax.lion(0.1), rules)),
    ],
)
def test_the_sets_hold_in_other_settings(make):
    tx = make(PROJECTED)
    params, state = EVERYTHING, tx.init(EVERYTHING)
    for step in range(4):
        grads = jax.tree.map(lambda x: x - 2.0, params)
        updates, state = tx.update(grads, state, params, value=jnp.float32(1.0))
        params = optax.apply_updates(params, updates)
        assert is_inside(params) or (isinstance(tx, optax.MultiSteps) and step == 0)


@pytest.mark.parametrize("case", EACH_CONSTRAINT, ids=str)
def test_every_constraint_holds_after_every_step(case):
    rng = np.random.default_rng(0)
    start = case.memory() if case.case.memory else rng.normal(size=case.shape)
    params = {"kernel": jnp.asarray(start, jnp.float32)}
    tx = proximal(optax.adam(0.3), Rules((r"kernel", case.make())))
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(6):
        grads = {"kernel": jnp.asarray(rng.normal(size=case.shape), jnp.float32)}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert case.outside(params["kernel"]) <= (1e-5 if case.case.decomposes else 2e-6)
    assert float(state.penalty) == 0.0


@pytest.mark.parametrize("inner", [optax.sgd, optax.adam, optax.lion], ids=lambda f: f.__name__)
def test_inside_the_set_steps_are_those_of_the_optimizer_to_the_bit(inner):
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)}
    rules = Rules((r"kernel", MaxNorm(1e3) if inner is not optax.sgd else Box(-1e3, 1e3)))
    tx, plain = proximal(inner(0.01), rules), inner(0.01)
    states, found = [tx.init(params), plain.init(params)], [params, params]
    for _ in range(20):
        grads = {"kernel": jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)}
        for i, one in enumerate((tx, plain)):
            updates, states[i] = jax.jit(one.update)(grads, states[i], found[i])
            found[i] = optax.apply_updates(found[i], updates)
    chex.assert_trees_all_equal(*found)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0, 3e3])
def test_the_first_step_leads_into_the_set_from_afar(scale, dtype):
    """No update of that dtype leads from 1000.123 to 0.1 exactly. The set holds nonetheless."""
    rng = np.random.default_rng(0)
    params = {
        "box": jnp.asarray(scale * rng.normal(size=400), dtype),
        "ball": jnp.asarray(scale * rng.normal(size=400), dtype),
    }
    lower, upper = np.asarray(jnp.asarray([-0.1, 0.7], dtype), np.float64)
    tx = proximal(optax.sgd(0.1), Rules((r"box", Box(-0.1, 0.7)), (r"ball", MaxNorm(0.3, group_axis=()))))
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=400), x.dtype), params)
    updates, state = tx.update(grads, tx.init(params), params)
    before = np.asarray(params["box"] - jnp.asarray(0.1, dtype) * grads["box"], np.float64)
    params = optax.apply_updates(params, updates)
    box, ball = (np.asarray(params[name], np.float64) for name in ("box", "ball"))
    assert box.min() >= lower
    assert box.max() <= upper
    outside = (before > upper) | (before < lower)
    ends = np.where(before > 0, upper, lower)[outside]
    np.testing.assert_allclose(box[outside], ends, atol=4 * scale * float(jnp.finfo(dtype).eps))
    assert outside.sum() > 50
    assert np.linalg.norm(ball) <= 0.3 * (1 + 4 * float(jnp.finfo(dtype).eps))
    again = tx.update(jax.tree.map(jnp.zeros_like, grads), state, params)[0]
    assert np.abs(np.asarray(again["box"], np.float64)).max() <= float(jnp.finfo(dtype).eps) * scale * 8


def test_a_frozen_parameter_is_not_projected():
    labels = {"w": "freeze", "matrix": "train", "free": "train"}
    inner = optax.partition({"train": optax.adam(0.1), "freeze": optax.set_to_zero()}, labels)
    with pytest.raises(ValueError, match="`inner` does not move `w`"):
        proximal(inner, PROJECTED).init(EVERYTHING)
    outside = optax.partition({"train": proximal(optax.adam(0.1), PROJECTED), "freeze": optax.set_to_zero()}, labels)
    updates, _ = outside.update(EVERYTHING, outside.init(EVERYTHING), EVERYTHING)
    assert not updates["w"].any()


# Sums with a closed form, at their solutions.


def train(tx, loss, params, steps):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p, s: jax.lax.scan(step, (p, s), length=steps)[0][0])(params, tx.init(params))


POSITIVE = {
    "lasso": (lambda alpha: L1(alpha), lambda alpha: Lasso(alpha=alpha, positive=True)),
    "elastic net": (
        lambda alpha: L1L2(l1=0.6 * alpha, l2=0.2 * alpha),
        lambda alpha: ElasticNet(alpha=alpha, l1_ratio=0.6, positive=True),
    ),
    "elastic net in parts": (
        lambda alpha: L1(0.6 * alpha) + 2.0 * L2(0.1 * alpha),
        lambda alpha: ElasticNet(alpha=alpha, l1_ratio=0.6, positive=True),
    ),
}


@pytest.mark.parametrize("metric", ["sgd", "adam"])
@pytest.mark.parametrize("problem", ["random", "diabetes"])
@pytest.mark.parametrize("name", POSITIVE)
def test_the_non_negative_lasso_of_scikit_learn(name, problem, metric):
    if problem == "random":
        rng = np.random.default_rng(3)
        features = rng.normal(size=(200, 60))
        weights = np.where(rng.uniform(size=60) < 0.5, rng.normal(size=60), 0.0)
        target, alpha = features @ weights + 0.5 * rng.normal(size=200), 0.1
    else:
        features, target = load_diabetes(return_X_y=True)
        features, target, alpha = features * np.sqrt(len(features)), (target - target.mean()) / target.std(), 0.1
    regularizer, model = POSITIVE[name]
    exact = model(alpha).set_params(fit_intercept=False, tol=1e-14, max_iter=1_000_000).fit(features, target).coef_
    rules = Rules((r"w", regularizer(alpha) + NonNeg()))
    with jax.enable_x64(True):
        hessian, slope = features.T @ features / len(features), features.T @ target / len(features)

        def loss(params):
            return params["w"] @ jnp.asarray(hessian) @ params["w"] / 2 - params["w"] @ jnp.asarray(slope)

        rate = 1 / np.linalg.eigvalsh(hessian).max()
        if metric == "sgd":
            tx, steps = jaxreg.proximal_sgd(rate, rules), 20_000
        else:
            steps = 40_000
            tx = jaxreg.proximal_adam(optax.cosine_decay_schedule(0.02, steps), rules)
        found = np.asarray(train(tx, loss, {"w": jnp.zeros(len(slope))}, steps)["w"])
    np.testing.assert_allclose(found, exact, atol=1e-10)
    np.testing.assert_array_equal(found == 0, exact == 0)
    assert 0 < (exact == 0).sum() < len(exact)


START = jnp.asarray([0.5, 0.0, 0.2, -0.4, 0.0, 1.0])
WITH_SET = {
    # The loss is ½ Σ d (w − t)², so each weight goes to the best point of its set by itself.
    "L1 + NonNeg": (L1(LAM) + NonNeg(), lambda w: np.maximum(soft(CURVATURE * w, LAM) / CURVATURE, 0)),
    "NonNeg + L1": (NonNeg() + L1(LAM), lambda w: np.maximum(soft(CURVATURE * w, LAM) / CURVATURE, 0)),
    "L2 + Box": (L2(0.4) + Box(-0.5, 0.9), lambda w: np.clip(CURVATURE * w / (CURVATURE + 0.8), -0.5, 0.9)),
    "twice L1 + Box": (
        2.0 * (L1(LAM / 2) + Box(-0.5, 0.9)),
        lambda w: np.clip(soft(CURVATURE * w, LAM) / CURVATURE, -0.5, 0.9),
    ),
    "Huber + NonNeg": (
        Huber(0.4, delta=0.5) + NonNeg(),
        lambda w: np.maximum(huber_minimum(w), 0),
    ),
    "Anchor + Box": (
        Anchor(0.5) + Box(-0.5, 0.9),
        lambda w: np.clip((CURVATURE * w + 0.5 * np.asarray(START)) / (CURVATURE + 0.5), -0.5, 0.9),
    ),
    "AdaptiveL1 + Box": (
        AdaptiveL1(LAM, epsilon=1.0) + Box(-0.5, 0.9),
        lambda w: np.clip(soft(CURVATURE * w, LAM / (np.abs(START) + 1)) / CURVATURE, -0.5, 0.9),
    ),
    "L1 + KeepZeros": (
        L1(LAM) + KeepZeros(),
        lambda w: np.where(np.asarray(START) != 0, soft(CURVATURE * w, LAM) / CURVATURE, 0),
    ),
    "a scheduled L1 + NonNeg": (
        L1(lambda count: LAM) + NonNeg(),
        lambda w: np.maximum(soft(CURVATURE * w, LAM) / CURVATURE, 0),
    ),
}


def soft(x, threshold):
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0)


def huber_minimum(w):
    inner = CURVATURE * w / (CURVATURE + 0.4 / 0.5)
    return np.where(np.abs(inner) <= 0.5, inner, w - np.sign(w) * 0.4 / CURVATURE)


@pytest.mark.parametrize("name", WITH_SET)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "around sgd", "around adam", "adam's metric"])
def test_sums_reach_the_minimum_in_the_set(name, optimizer):
    regularizer, minimum = WITH_SET[name]
    rules = Rules((r"^w$", regularizer))
    tx = {
        "sgd": lambda: jaxreg.proximal_sgd(RATE, rules, momentum=0.5),
        "adam": lambda: jaxreg.proximal_adam(RATE, rules),
        "around sgd": lambda: proximal(optax.sgd(RATE), rules, RATE),
        "around adam": lambda: proximal(optax.nadam(RATE), rules, RATE),
        "adam's metric": lambda: proximal(optax.adam(RATE), rules, RATE, metric="adam"),
    }[optimizer]()
    assert regularizer.has_prox
    assert regularizer.has_metric_prox
    found = solve(tx, params=PARAMS | {"w": START})["w"]
    np.testing.assert_allclose(found, minimum(TARGET), atol=5e-3)
    assert ((np.asarray(found) == 0) == (minimum(TARGET) == 0)).all()


@pytest.mark.parametrize("name", ALIASES)
def test_a_sum_with_a_set_is_right_or_refused_under_every_optimizer(name):
    """Law 8 with a constraint and a schedule in one rule."""
    rules = Rules((r"^w$", L1(lambda count: LAM) + NonNeg()))
    expected = np.maximum(soft(CURVATURE * TARGET, LAM) / CURVATURE, 0)
    for rate in (RATE, 0.05):
        try:
            inner = ALIASES[name](rate)
            inner.init(PARAMS)
        except (TypeError, ValueError):
            continue  # it takes no schedule
        tx = proximal(inner, rules, rate)
        try:
            tx.init(PARAMS)
        except ValueError as error:
            _check_refusal(name, error, "`inner`")
            return
        np.testing.assert_allclose(solve(tx)["w"], expected, atol=5e-3)
        return
    pytest.fail("it could not be built")


def test_group_lasso_and_max_norm_of_the_same_groups():
    """Against many points of the set, and under SGD the minimum of a loss that is the same in all directions."""
    both = GroupLasso(0.4) + MaxNorm(1.1)
    assert both.has_prox
    assert not both.has_metric_prox
    rng = np.random.default_rng(0)
    for scale in (0.1, 1.0, 5.0):
        x = scale * rng.normal(size=(4, 3)).astype(np.float32)
        y = np.asarray(both.prox(jnp.asarray(x), 0.7), np.float64)
        points = y + 10 ** rng.uniform(-5, 0.5, (20_000, 1, 1)) * rng.normal(size=(20_000, 4, 3))
        norms = np.linalg.norm(points, axis=1, keepdims=True)
        points = points * np.minimum(1, 1.1 / norms)

        def objective(points, x=x):
            norms = np.linalg.norm(points, axis=-2)
            return np.sum((points - x) ** 2, axis=(-2, -1)) / 2 + 0.7 * 0.4 * norms.sum(axis=-1)

        assert objective(y) <= objective(points).min() + 1e-6
    target = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    rules = Rules((r"k", both))
    found = train(
        jaxreg.proximal_sgd(0.2, rules), lambda p: jnp.sum((p["k"] - target) ** 2) / 2, {"k": jnp.ones((4, 3))}, 300
    )
    norms = np.linalg.norm(target, axis=0)
    exact = target * np.minimum(np.maximum(1 - 0.4 / norms, 0), 1.1 / norms)
    np.testing.assert_allclose(found["k"], exact, atol=1e-5)
    for make in (
        lambda: jaxreg.proximal_adam(0.1, rules),
        lambda: proximal(optax.adam(0.1), rules, 0.1).init({"k": target}),
    ):
        with pytest.raises(ValueError, match=r"metric of Adam"):
            make()
    proximal(optax.adam(0.1), rules, 0.1, metric="euclidean").init({"k": target})


REFUSED = {
    "other groups": GroupLasso(0.1) + MaxNorm(group_axis=0),
    "another norm": GroupLasso(0.1) + UnitNorm(),
    "a norm and single weights": L1(0.1) + MaxNorm(),
    "two constraints": NonNeg() + MaxNorm(),
    "no convex penalty": jaxreg.L0(0.1) + NonNeg(),
    "a penalty without a prox": jaxreg.OrthogonalRegularizer(0.1) + NonNeg(),
    "penalties that do not add up": L1(0.1) + GroupLasso(0.1) + NonNeg(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_sums_are_refused_with_a_hint(name):
    assert not REFUSED[name].has_prox
    rules = Rules((r"kernel", REFUSED[name]))
    for call in (
        lambda: proximal(optax.sgd(0.1), rules, 0.1),
        lambda: rules.prox({"kernel": jnp.ones((2, 2))}, 0.1),
    ):
        with pytest.raises((ValueError, NotImplementedError), match=r"has no prox.*because"):
            call()


# Rules with constraints.


def test_rules_project_a_tree_at_hand():
    rules = Rules((r"^w$", Box(-0.5, 0.3)), (r"matrix", MaxNorm(0.7)))
    projected = rules.prox(EVERYTHING)
    assert is_inside(projected)
    assert projected["free"] is EVERYTHING["free"]
    chex.assert_trees_all_equal(rules.prox(projected), projected)
    chex.assert_trees_all_equal(rules.prox(EVERYTHING, 0.3), projected)
    chex.assert_trees_all_equal(jax.jit(rules.prox)(EVERYTHING), projected)
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    state = Rules((r"kernel", UnitNorm())).prox(nnx.state(model, nnx.Param))
    np.testing.assert_allclose(jnp.linalg.norm(state["kernel"][...], axis=0), 1, rtol=1e-6)


def test_where_a_constraint_is_an_error():
    for regularizer in (NonNeg(), L1(0.1) + NonNeg()):
        rules = Rules((r"free", L2(0.1)), (r"^w$", regularizer))
        for call in (
            lambda rules=rules: rules(EVERYTHING),
            lambda rules=rules: jax.grad(rules)(EVERYTHING),
            lambda rules=rules: jaxreg.add_penalty_gradients(rules),
            lambda rules=rules: jaxreg.decoupled(optax.sgd(0.1), rules, 0.1),
            lambda rules=rules: jaxreg.activity_penalty(rules, EVERYTHING, batch_size=3),
        ):
            with pytest.raises(
                TypeError, match=r"rule 1 .*constraint NonNeg\(\)\) has a constraint.*`jaxreg.proximal`"
            ):
                call()
    with pytest.raises(TypeError, match="has a constraint"):
        (L1(0.1) + NonNeg())(jnp.ones(3))
    with pytest.raises(TypeError, match=r"`learning_rate` must be a number, got None; rule 0 .* has a penalty"):
        proximal(optax.sgd(0.1), Rules((r"w", L1(0.1) + NonNeg())))
    with pytest.raises(TypeError, match="`learning_rate`"):
        proximal(optax.sgd(0.1), Rules((r"w", NonNeg()), (r"free", L1(0.1))))
    with pytest.raises(
        ValueError, match=r"at `free`, under rule 0.*`axis` must lie in \[-1, 1\) for rank 1, got \(-2,\)"
    ):
        proximal(optax.sgd(0.1), Rules((r"free", constraints.NM()))).init(EVERYTHING)
    with pytest.raises(TypeError, match="`step` must be given"):
        Rules((r"w", L1(0.1))).prox(EVERYTHING)
    with pytest.raises(ValueError, match="line search"):
        proximal(optax.lbfgs(), Rules((r"w", NonNeg()))).init(EVERYTHING)
    with pytest.raises(TypeError, match="`regularizer` must be a penalty"):
        type(2.0 * L1())(2.0, NonNeg())
    with pytest.raises(TypeError):
        True * NonNeg()


def test_breakdown_and_tables_count_a_constraint_as_nothing():
    rules = Rules((r"free", L2(0.1)), (r"^w$", L1(0.5) + Box(-0.5, 0.3)), (r"matrix", MaxNorm(0.7)))
    costs = rules.breakdown(EVERYTHING)
    assert set(costs) == set(EVERYTHING)
    assert costs["matrix"] == 0
    np.testing.assert_allclose(costs["w"], 0.5 * np.abs(EVERYTHING["w"]).sum(), rtol=1e-6)
    assert rules.by_rule(EVERYTHING)[2] == 0
    found = rules.explain(EVERYTHING)
    rows = {row.path: row for row in found.rows}
    exact = np.asarray(EVERYTHING["w"], np.float64) - np.clip(EVERYTHING["w"], -0.5, 0.3)
    np.testing.assert_allclose(rows["w"].distance, np.linalg.norm(exact), rtol=1e-6)
    norms = np.linalg.norm(EVERYTHING["matrix"], axis=0)
    np.testing.assert_allclose(rows["matrix"].distance, np.linalg.norm(np.maximum(norms - 0.7, 0)), rtol=1e-6)
    assert rows["free"].distance is None
    text = str(found)
    assert "constraint MaxNorm(max_value=0.7)" in text
    assert "L1(l1=0.5) + constraint Box(lower=-0.5, upper=0.3)" in text
    assert "distance" in text
    assert "3 groups of 2" in text
    shapes = str(rules.explain(jax.eval_shape(lambda: EVERYTHING)))
    assert "constraint MaxNorm" in shapes
    kept = Rules((r"matrix", KeepNorm()))
    assert {row.distance for row in kept.explain(EVERYTHING).rows} == {None}
    memory = kept.init(EVERYTHING)
    moved = jax.tree.map(lambda x: 2 * x, EVERYTHING)
    far = {row.path: row.distance for row in kept.explain(moved, memory=memory).rows}["matrix"]
    np.testing.assert_allclose(far, np.linalg.norm(EVERYTHING["matrix"]), rtol=1e-5)


def test_multiples_names_and_configs():
    rules = Rules((r"^w$", "non_neg"), (r"matrix", {"class_name": "MaxNorm", "config": {"max_value": 0.7}}))
    assert rules.regularizers == (NonNeg(), MaxNorm(0.7))
    assert 3.0 * rules == rules
    both = Rules((r"^w$", L1(0.5) + Box(-0.5, 0.3)), (r"matrix", constraints.NM(1, 3, axis=-1)))
    assert Rules.from_config(both.get_config()) == both
    assert (2.0 * both).regularizers[0] == 2.0 * L1(0.5) + Box(-0.5, 0.3)
    assert sum([NonNeg(), L1(0.1)]) == NonNeg() + L1(0.1)
    assert jax.tree.leaves(both) == [0.5, -0.5, 0.3]


class Rounded(Constraint):
    """A set of the user's own, with a memory."""

    spacing: float = 0.5

    def init(self, x):
        return jnp.max(jnp.abs(x))

    def __call__(self, x, *, memory):
        return jnp.round(x / (self.spacing * memory)) * self.spacing * memory


class Wrong(Constraint):
    def __call__(self, x):
        return jnp.sum(x)


def test_constraints_of_the_users_own():
    rules = Rules((r"matrix", 2.0 * Rounded(0.25)))
    tx = proximal(optax.adam(0.1), rules)
    state = tx.init(EVERYTHING)
    assert state.memory["matrix"] == 4.0
    updates, _ = jax.jit(tx.update)(EVERYTHING, state, EVERYTHING)
    found = optax.apply_updates(EVERYTHING, updates)["matrix"]
    np.testing.assert_array_equal(found, np.round(found))
    assert jax.tree.leaves(Rounded(0.25)) == [0.25]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Rounded().spacing = 1.0
    with pytest.raises(TypeError, match=r"at `w`.*must return float32\[6\], got float32\[\]"):
        Rules((r"^w$", Wrong())).prox(EVERYTHING)
    with pytest.raises(NotImplementedError, match=r"must define `__call__"):
        type("Empty", (Constraint,), {})()(jnp.ones(2))
    made = jaxreg.deserialize(jaxreg.serialize(Rounded(0.25)), {"Rounded": Rounded})
    assert made == Rounded(0.25)


@pytest.mark.parametrize("name", sorted({case.name for case in KEPT if case.numbers}))
def test_constraints_sweep_by_vmap(name):
    (case,) = [case for case in EACH_CONSTRAINT if case.case.name == name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=case.shape), jnp.float32)
    alone = [case.make(**{key: value * factor for key, value in case.case.numbers.items()}) for factor in (1.0, 0.5)]
    together = jax.tree.map(lambda *numbers: jnp.asarray(numbers, jnp.float32), *alone)
    swept = jax.vmap(lambda constraint: constraint(x))(together)
    for found, constraint in zip(swept, alone, strict=True):
        chex.assert_trees_all_close(found, constraint(x), rtol=1e-5, atol=1e-6)


def test_what_stands_in_the_wrong_place():
    for call, words in (
        (lambda: L1(L2(0.1)), "`l1` must be a number"),
        (lambda: MaxNorm(L2(0.1)), "`max_value` must be a number"),
        (lambda: type(2.0 * L1())(L2(0.1), L1()), "`scale` must be a number"),
        (lambda: -1.0 * NonNeg(), "`scale` must be finite and >= 0"),
        (lambda: L1() * NonNeg(), "unsupported operand"),
        (
            lambda: (Anchor() + NonNeg())(jnp.ones(2), memory=(jnp.ones(2), jnp.ones(2))),
            "has a constraint|must hold",
        ),
        (
            lambda: (Anchor() + NonNeg()).prox(jnp.ones(2), 0.1, memory=(jnp.ones(2), jnp.ones(2))),
            r"must hold \(\) for NonNeg\(\)",
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            call()


@pytest.mark.parametrize(
    "regularizer", [Box(-1.0, 1.0), L1(0.1) + Box(-1.0, 1.0), Anchor(0.1) + Box(-1.0, 1.0)], ids=str
)
def test_the_cap_of_adams_metric_does_not_hold_a_projection_back(regularizer):
    params = {"w": jnp.array([5.0, -3.0, 0.5])}
    for tx in (
        jaxreg.proximal_adam(1e-3, Rules((r"w", regularizer))),
        proximal(optax.adam(1e-3), Rules((r"w", regularizer)), 1e-3, metric="adam", cap=1.5),
    ):
        updates, _ = tx.update({"w": jnp.full(3, 1e-12)}, tx.init(params), params)
        found = optax.apply_updates(params, updates)["w"]
        np.testing.assert_array_equal(found[:2], [1.0, -1.0])
        assert abs(float(found[2]) - 0.5) <= 0.012  # the cap holds the penalty back
