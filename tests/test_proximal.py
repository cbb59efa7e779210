"""`proximal` and `Rules.prox`: the right solutions against scikit-learn, exact zeros, and every wrapper of optax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, Lasso, MultiTaskLasso

import jaxreg
from jaxreg import L1, L1L2, L2, GroupLasso, Nuclear, Rules, proximal

pytestmark = pytest.mark.standard_promotion


def tree(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    return {
        "hidden": {
            "kernel": jnp.asarray(rng.normal(size=(4, 3)), dtype),
            "bias": jnp.asarray(rng.normal(size=3), dtype),
        },
        "head": {"kernel": jnp.asarray(rng.normal(size=(3, 2)), dtype)},
    }


PARAMS, GRADS = tree(0), tree(1)
RULES = Rules((r"head/", None), (r"kernel$", L1(0.5)))


def soft(x, threshold):
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0)


# Against scikit-learn, in float64.


def random_problem(tasks):
    rng = np.random.default_rng(3)
    features = rng.normal(size=(200, 100))
    weights = np.where(rng.uniform(size=(100, 1)) < 0.5, rng.normal(size=(100, tasks)), 0.0)
    return features, features @ weights + 0.5 * rng.normal(size=(200, tasks)), {1: 0.1, 5: 0.3}[tasks]


def diabetes_problem(tasks):
    features, target = load_diabetes(return_X_y=True)
    target = (target - target.mean()) / target.std()
    targets = np.stack([target, target**2 - 1, 0.3 * np.roll(target, 1) + target], axis=1)[:, :tasks]
    return features * np.sqrt(len(features)), targets, 0.1


PROBLEMS = {"random": (random_problem, 1e-10), "diabetes": (diabetes_problem, 1e-8)}
MODELS = {
    "Lasso": (1, lambda alpha: Lasso(alpha=alpha), L1),
    "ElasticNet": (
        1,
        lambda alpha: ElasticNet(alpha=alpha, l1_ratio=0.6),
        lambda alpha: L1L2(l1=0.6 * alpha, l2=0.5 * 0.4 * alpha),
    ),
    "MultiTaskLasso": (5, lambda alpha: MultiTaskLasso(alpha=alpha), lambda alpha: GroupLasso(alpha, group_axis=0)),
}


def trained(tx, loss, start, steps):
    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), None, length=steps)[0][0]

    return jax.tree.map(np.asarray, train(start))


@pytest.mark.parametrize("metric", ["adam", "euclidean"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_solution_is_that_of_scikit_learn(problem, model, metric):
    (make, tolerance), (tasks, reference, regularizer) = PROBLEMS[problem], MODELS[model]
    features, targets, alpha = make(tasks if problem == "random" else min(tasks, 3))
    expected = reference(alpha).set_params(fit_intercept=False, tol=1e-14, max_iter=10**6)
    expected = expected.fit(features, targets[:, 0] if tasks == 1 else targets).coef_.T
    expected = expected.reshape(features.shape[1], -1)
    with jax.enable_x64(True):
        x, y = jnp.asarray(features), jnp.asarray(targets)
        rate, inner = optax.cosine_decay_schedule(0.05, 20_000), optax.adam
        if metric == "euclidean":
            rate, inner = float(1 / np.linalg.eigvalsh(features.T @ features / len(features)).max()), optax.sgd
        tx = proximal(inner(rate), Rules((r"^w$", regularizer(alpha))), rate, metric=metric)
        found = trained(
            tx,
            lambda p: 0.5 * jnp.sum(jnp.square(x @ p["w"] - y)) / len(x),
            {"w": jnp.zeros(expected.shape)},
            20_000,
        )["w"]
    zeros = np.all(expected == 0, axis=1).sum()
    assert zeros >= (25 if problem == "random" else 3)
    np.testing.assert_array_equal(found == 0, expected == 0)
    assert np.max(np.abs(found - expected)) <= tolerance


def test_adam_in_the_euclidean_metric_solves_another_problem():
    """The strengths are then relative to the gradients: what the metric is for."""
    features, targets, alpha = diabetes_problem(1)
    expected = Lasso(alpha=alpha, fit_intercept=False, tol=1e-14, max_iter=10**6).fit(features, targets[:, 0]).coef_
    with jax.enable_x64(True):
        x, y = jnp.asarray(features), jnp.asarray(targets[:, 0])
        rate = optax.cosine_decay_schedule(0.05, 20_000)
        tx = proximal(optax.adam(rate), Rules((r"^w$", L1(alpha))), rate)
        found = trained(tx, lambda p: 0.5 * jnp.mean(jnp.square(x @ p["w"] - y)), {"w": jnp.zeros(10)}, 20_000)["w"]
    assert np.max(np.abs(found - expected)) > 0.01


def test_nuclear_completion_by_its_optimality_conditions():
    """With R = P_Ω(M − Z)/λ and Z = UΣVᵀ of low rank: UᵀR = Vᵀ, RV = U and ‖R‖₂ ≤ 1."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(20, 2)) @ rng.normal(size=(2, 15))
    seen, strength = rng.uniform(size=matrix.shape) < 0.6, 1.0
    with jax.enable_x64(True):
        known, mask = jnp.asarray(np.where(seen, matrix, 0)), jnp.asarray(seen)
        tx = proximal(optax.sgd(1.0), Rules((r"^z$", Nuclear(strength))), 1.0)
        loss = lambda p: 0.5 * jnp.sum(jnp.square(jnp.where(mask, p["z"] - known, 0.0)))  # noqa: E731
        z = trained(tx, loss, {"z": jnp.zeros(matrix.shape)}, 2_000)["z"]
    u, s, vt = np.linalg.svd(z, full_matrices=False)
    rank = int(np.sum(s > 1e-8))
    assert 0 < rank < 10
    residual = np.where(seen, matrix - z, 0) / strength
    assert np.max(np.abs(u[:, :rank].T @ residual - vt[:rank])) < 1e-8
    assert np.max(np.abs(residual @ vt[:rank].T - u[:, :rank])) < 1e-8
    assert np.linalg.norm(residual, 2) < 1 + 1e-8


# One step, by hand.


def test_a_step_by_hand():
    tx = proximal(optax.sgd(0.1), RULES, 0.1)
    updates, state = jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
    new = optax.apply_updates(PARAMS, updates)
    moved = jax.tree.map(lambda p, g: np.asarray(p, np.float64) - 0.1 * np.asarray(g, np.float64), PARAMS, GRADS)
    np.testing.assert_allclose(new["hidden"]["kernel"], soft(moved["hidden"]["kernel"], 0.05), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(new["hidden"]["kernel"] == 0, np.abs(moved["hidden"]["kernel"]) <= 0.05)
    plain, _ = optax.sgd(0.1).update(GRADS, optax.sgd(0.1).init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["head"]["kernel"], plain["head"]["kernel"])
    np.testing.assert_array_equal(updates["hidden"]["bias"], plain["hidden"]["bias"])
    assert state.count == 1


def test_a_step_in_adams_metric_by_hand():
    """Two steps of Adam written out in NumPy, with thresholds η·λ/D."""
    kernel = np.asarray(PARAMS["hidden"]["kernel"], np.float64)
    rules, b1, b2, eps, eps_root, rate = Rules((r"hidden/kernel$", L1L2(0.3, 0.2))), 0.8, 0.9, 1e-3, 1e-4, 0.1
    inner = optax.adam(rate, b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    chain, options = optax.chain(optax.clip(100.0), inner), {"b2": b2, "eps": eps, "eps_root": eps_root, "cap": None}
    tx = proximal(chain, rules, rate, metric="adam", **options)
    params, state = PARAMS, tx.init(PARAMS)
    m = v = np.zeros_like(kernel)
    for step, seed in enumerate((1, 2), start=1):
        grads = tree(seed)
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
        g = np.asarray(grads["hidden"]["kernel"], np.float64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        scale = np.sqrt(v / (1 - b2**step) + eps_root) + eps
        moved = kernel - rate * m / (1 - b1**step) / scale
        kernel = soft(moved, rate * 0.3 / scale) / (1 + 2 * rate * 0.2 / scale)
        np.testing.assert_allclose(params["hidden"]["kernel"], kernel, rtol=1e-5, atol=1e-6)


def test_the_cap_bounds_how_far_a_weight_is_moved():
    """A weight without gradients has D = eps, and a threshold of η·λ/1e-8 without a cap."""
    params, rate = {"w": jnp.array([1.0, -2.0, 0.05])}, 0.01
    rules = Rules(("w", L1(0.3)))
    zeros = {"w": jnp.zeros(3)}

    def moved(**options):
        tx = proximal(optax.adam(rate), rules, rate, metric="adam", **options)
        return optax.apply_updates(params, tx.update(zeros, tx.init(params), params)[0])["w"]

    np.testing.assert_allclose(moved(), [0.9, -1.9, 0.0], rtol=1e-6)
    np.testing.assert_allclose(moved(cap=2), [0.98, -1.98, 0.03], rtol=1e-6)
    np.testing.assert_array_equal(moved(cap=None), [0.0, 0.0, 0.0])


def test_the_cap_holds_for_groups_and_for_l2():
    params, rate = {"w": jnp.array([[3.0, 1.0], [4.0, 0.0]])}, 0.01
    for regularizer in (GroupLasso(0.3), L2(0.3), L1L2(0.1, 0.1)):
        tx = proximal(optax.adam(rate), Rules(("w", regularizer)), rate, metric="adam")
        updates = tx.update({"w": jnp.zeros((2, 2))}, tx.init(params), params)[0]["w"]
        np.testing.assert_allclose(np.max(np.abs(updates)), 10 * rate, rtol=1e-5)


def test_the_cap_changes_no_solution_of_groups():
    """A group at its threshold has weights whose D is far below λ."""
    features, targets, alpha = random_problem(5)
    with jax.enable_x64(True):
        x, y = jnp.asarray(features), jnp.asarray(targets)
        rate = optax.cosine_decay_schedule(0.05, 5_000)
        found = [
            trained(
                proximal(optax.adam(rate), Rules(("w", GroupLasso(alpha, 0))), rate, metric="adam", cap=cap),
                lambda p: 0.5 * jnp.sum(jnp.square(x @ p["w"] - y)) / len(x),
                {"w": jnp.zeros((100, 5))},
                5_000,
            )["w"]
            for cap in (10.0, None)
        ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-12)


def test_the_schedule_is_read_at_the_count_of_the_inner_one():
    seen = []

    def schedule(count):
        seen.append(int(count))
        return 0.1 / (1 + count)

    tx = proximal(optax.sgd(schedule), RULES, schedule)
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(3):
        updates, state = tx.update(GRADS, state, params)
        rate = 0.1 / (1 + step)
        moved = params["hidden"]["kernel"] - rate * GRADS["hidden"]["kernel"]
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["hidden"]["kernel"], soft(moved, 0.5 * rate), rtol=1e-5, atol=1e-7)
    assert seen == [0, 0, 1, 1, 2, 2]
    assert state.count == 3


# Exact zeros in every dtype.


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
@pytest.mark.parametrize("update_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_zeros_are_exact_in_every_dtype(param_dtype, update_dtype, metric):
    params = jax.tree.map(lambda p: 0.1 * p, tree(0, param_dtype))
    grads = jax.tree.map(lambda g: 0.3 * jnp.sign(g), tree(1, update_dtype))  # whose squares float16 can hold
    tx = proximal(optax.adam(1e-2), Rules((r"kernel$", L1(4.0 if metric == "euclidean" else 1.2))), 1e-2, metric=metric)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    assert new["head"]["kernel"].dtype == param_dtype
    assert updates["head"]["kernel"].dtype == jnp.promote_types(param_dtype, update_dtype)
    zeros = np.concatenate([np.asarray(new[k]["kernel"]).ravel() == 0 for k in ("head", "hidden")])
    assert 0 < zeros.sum() < zeros.size


def test_float64():
    with jax.enable_x64(True):
        params, grads = tree(0, jnp.float64), tree(1, jnp.float64)
        for metric in ("euclidean", "adam"):
            tx = proximal(optax.adam(0.1), RULES, 0.1, metric=metric)
            updates, _ = tx.update(grads, tx.init(params), params)
            assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype("float64")}


def test_holes_and_other_leaves_pass_through():
    params = PARAMS | {"frozen": {"kernel": jnp.ones(2)}, "steps": jnp.arange(3), "table": {"kernel": jnp.ones(2)}}
    updates = GRADS | {
        "frozen": {"kernel": None},
        "steps": np.zeros(3, jax.dtypes.float0),
        "table": {"kernel": optax.MaskedNode()},
    }
    tx = proximal(optax.identity(), RULES, 0.1)
    new, _ = tx.update(updates, tx.init(params), params)
    assert new["frozen"]["kernel"] is None
    assert new["steps"] is updates["steps"]
    assert new["table"]["kernel"] == optax.MaskedNode()
    assert np.any(new["hidden"]["kernel"] != updates["hidden"]["kernel"])


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
def test_nothing_retraces_and_strengths_may_be_traced(metric):
    count = []

    @jax.jit
    def step(strength, params, state):
        count.append(1)
        tx = proximal(optax.adam(0.1), Rules((r"kernel$", L1(strength))), 0.1, metric=metric)
        return tx.update(GRADS, state, params)

    state = proximal(optax.adam(0.1), RULES, 0.1).init(PARAMS)
    sizes = [
        np.abs(PARAMS["head"]["kernel"] + step(s, PARAMS, state)[0]["head"]["kernel"]).sum() for s in (0.0, 1.0, 2.0)
    ]
    assert sizes[0] > sizes[1] > sizes[2]
    assert len(count) == 1


# Inside the wrappers.


def run(tx, steps=6, params=PARAMS, grads=GRADS):
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
def test_multi_steps(metric):
    tx = proximal(optax.adam(0.1), RULES, 0.1, metric=metric)
    for a, b in zip(jax.tree.leaves(run(optax.MultiSteps(tx, 3), 6)[0]), jax.tree.leaves(run(tx, 2)[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(a == 0, b == 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_apply_if_finite(dtype):
    params, grads = tree(0, dtype), tree(1, dtype)
    tx = optax.apply_if_finite(proximal(optax.adam(0.1), RULES, 0.1, metric="adam"), 3)
    state = tx.init(params)
    bad = jax.tree.map(lambda g: g * jnp.nan, grads)
    updates, state = jax.jit(tx.update)(bad, state, params)
    assert all(np.all(u == 0) for u in jax.tree.leaves(updates))
    updates, state = jax.jit(tx.update)(grads, state, params)
    assert any(np.any(u != 0) for u in jax.tree.leaves(updates))
    if dtype == jnp.float32:  # as documented: narrower gradients are to be cast first
        narrow = tree(1, jnp.bfloat16)
        with pytest.raises(TypeError, match=r"cond|branch"):
            tx.update(narrow, tx.init(params), params)
        tx.update(optax.tree.cast_like(narrow, params), tx.init(params), params)


def test_lookahead():
    tx = optax.lookahead(proximal(optax.adam(0.1), RULES, 0.1, metric="adam"), 3, 0.5)
    params = optax.LookaheadParams.init_synced(PARAMS)
    fast, _ = run(tx, 2, params=params)
    alone, _ = run(proximal(optax.adam(0.1), RULES, 0.1, metric="adam"), 2)
    np.testing.assert_allclose(fast.fast["hidden"]["kernel"], alone["hidden"]["kernel"], rtol=1e-6)
    assert np.any(fast.fast["hidden"]["kernel"] == 0)


def test_sam():
    tx = optax.contrib.sam(
        proximal(optax.sgd(0.1), RULES, 0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), sync_period=2
    )
    params, _ = run(tx, 4)
    assert np.any(params["hidden"]["kernel"] == 0)


def test_inject_hyperparams():
    make = optax.inject_hyperparams(
        lambda learning_rate, b2: proximal(optax.adam(learning_rate, b2=b2), RULES, learning_rate, metric="adam", b2=b2)
    )
    expected, _ = run(proximal(optax.adam(0.1, b2=0.9), RULES, 0.1, metric="adam", b2=0.9))
    np.testing.assert_allclose(
        run(make(learning_rate=0.1, b2=0.9))[0]["hidden"]["kernel"], expected["hidden"]["kernel"], rtol=1e-5
    )
    direct = optax.inject_hyperparams(proximal, static_args=("rules",))(
        inner=optax.adam(0.1, b2=0.9), rules=RULES, learning_rate=lambda count: 0.1, metric="adam", b2=0.9
    )
    np.testing.assert_allclose(run(direct)[0]["hidden"]["kernel"], expected["hidden"]["kernel"], rtol=1e-5)
    inside = proximal(optax.inject_hyperparams(optax.adam)(0.1, b2=0.9), RULES, 0.1, metric="adam", b2=0.9)
    np.testing.assert_allclose(run(inside)[0]["hidden"]["kernel"], expected["hidden"]["kernel"], rtol=1e-5)


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
def test_masked_and_partition(metric):
    mask = {"hidden": True, "head": False}
    rules = Rules((r"hidden/kernel$", L1(0.5)))
    expected, _ = run(proximal(optax.adam(0.1), rules, 0.1, metric=metric))
    inner, _ = run(optax.masked(proximal(optax.adam(0.1), rules, 0.1, metric=metric), mask))
    np.testing.assert_allclose(inner["hidden"]["kernel"], expected["hidden"]["kernel"], rtol=1e-5)
    labels = {"hidden": {"kernel": "prox", "bias": "other"}, "head": {"kernel": "other"}}
    parts = optax.partition(
        {"prox": proximal(optax.adam(0.1), rules, 0.1, metric=metric), "other": optax.sgd(1.0)}, labels
    )
    np.testing.assert_allclose(run(parts)[0]["hidden"]["kernel"], expected["hidden"]["kernel"], rtol=1e-5)
    around = proximal(optax.masked(optax.adam(0.1), mask), rules, 0.1, metric=metric)
    np.testing.assert_allclose(run(around)[0]["hidden"]["kernel"], expected["hidden"]["kernel"], rtol=1e-5)


def test_adam_without_a_moment_of_a_parameter_is_an_error():
    for mask in (
        {"hidden": False, "head": True},
        {"hidden": {"kernel": False, "bias": True}, "head": {"kernel": True}},
    ):
        tx = proximal(optax.masked(optax.adam(0.1), mask), Rules((r"kernel$", L1(0.5))), 0.1, metric="adam")
        with pytest.raises(ValueError, match=r"at `hidden/kernel`, under rule 0 .*Adam's state has no second moment"):
            tx.update(GRADS, tx.init(PARAMS), PARAMS)


def test_train_state_and_map_params():
    tx = proximal(optax.adam(0.1), RULES, 0.1, metric="adam")
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    for _ in range(6):
        state = jax.jit(lambda s: s.apply_gradients(grads=GRADS))(state)
    expected = run(tx)[0]["hidden"]["kernel"]
    np.testing.assert_allclose(state.params["hidden"]["kernel"], expected, rtol=1e-6)
    np.testing.assert_array_equal(state.params["hidden"]["kernel"] == 0, expected == 0)
    doubled = optax.tree.map_params(tx, lambda x: 2 * x, state.opt_state)
    np.testing.assert_array_equal(
        doubled.inner_state[0].mu["head"]["kernel"], 2 * state.opt_state.inner_state[0].mu["head"]["kernel"]
    )
    assert doubled.count == 6


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
def test_nnx_optimizer(metric):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    model.kernel[...] = PARAMS["hidden"]["kernel"]
    rules = Rules((r"^kernel$", L1(0.5)))
    optimizer = nnx.Optimizer(model, proximal(optax.adam(0.1), rules, 0.1, metric=metric), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
        grads["kernel"][...] = GRADS["hidden"]["kernel"]
        optimizer.update(model, grads)

    for _ in range(6):
        step(model, optimizer)
    expected, _ = run(proximal(optax.adam(0.1), RULES, 0.1, metric=metric))
    np.testing.assert_allclose(model.kernel[...], expected["hidden"]["kernel"], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(model.kernel[...] == 0, expected["hidden"]["kernel"] == 0)


def test_boxed_params():
    boxed = {"kernel": nn.Partitioned(PARAMS["hidden"]["kernel"], names=(None, "m"))}
    grads = {"kernel": nn.Partitioned(GRADS["hidden"]["kernel"], names=(None, "m"))}
    for metric in ("euclidean", "adam"):
        tx = proximal(optax.adam(0.1), Rules((r"^kernel$", L1(0.5))), 0.1, metric=metric)
        updates, _ = tx.update(grads, tx.init(boxed), boxed)
        plain = run(proximal(optax.adam(0.1), RULES, 0.1, metric=metric), 1)[0]["hidden"]["kernel"]
        np.testing.assert_allclose(optax.apply_updates(boxed, updates)["kernel"].value, plain, rtol=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def test_sharded_params_keep_their_sharding(axis_type, metric):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)), jnp.float32)}
    grads = {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(16, 8)), jnp.float32)}
    tx = proximal(optax.adam(0.1), Rules((r"kernel$", GroupLasso(1.0))), 0.1, metric=metric)
    expected, _ = tx.update(grads, tx.init(params), params)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("d"))
        placed, slopes = jax.device_put(params, sharding), jax.device_put(grads, sharding)
        updates, _ = jax.jit(tx.update)(slopes, tx.init(placed), placed)
    np.testing.assert_allclose(updates["kernel"], expected["kernel"], rtol=1e-5, atol=1e-6)
    assert updates["kernel"].sharding.is_equivalent_to(sharding, 2)


# `Rules.prox`.


def test_rules_prox():
    new = RULES.prox(PARAMS, 0.2)
    np.testing.assert_allclose(new["hidden"]["kernel"], soft(PARAMS["hidden"]["kernel"], 0.1), rtol=1e-6, atol=1e-7)
    assert new["hidden"]["bias"] is PARAMS["hidden"]["bias"]
    assert new["head"]["kernel"] is PARAMS["head"]["kernel"]
    jitted = jax.jit(lambda rules, tree, step: rules.prox(tree, step))(RULES, PARAMS, 0.2)
    np.testing.assert_array_equal(jitted["hidden"]["kernel"], new["hidden"]["kernel"])
    each = RULES.prox(PARAMS, lambda path, leaf: jnp.full(leaf.shape, 0.2))
    np.testing.assert_allclose(each["hidden"]["kernel"], new["hidden"]["kernel"], rtol=1e-6)


def test_rules_prox_of_other_trees():
    rules = Rules((r"kernel$", L1(0.5)))
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    state = rules.prox(nnx.state(model, nnx.Param), 0.2)
    assert isinstance(state["kernel"], nnx.Param)
    np.testing.assert_allclose(state["kernel"][...], soft(np.asarray(model.kernel[...]), 0.1), rtol=1e-6, atol=1e-7)
    before = np.asarray(model.kernel[...])
    nnx.update(model, state)
    np.testing.assert_allclose(model.kernel[...], soft(before, 0.1), rtol=1e-6, atol=1e-7)
    box = rules.prox({"kernel": nn.Partitioned(jnp.ones(2), names=("m",)), "n": 3, "none": None}, 0.2)
    assert box["kernel"].names == ("m",)
    np.testing.assert_allclose(box["kernel"].value, 0.9, rtol=1e-6)
    assert (box["n"], box["none"]) == (3, None)
    with pytest.raises(
        TypeError, match=r"`tree` must hold arrays, got an nnx.Module; give `nnx.state\(model, nnx.Param\)`"
    ):
        rules.prox(model, 0.2)


def test_a_scanned_stack_is_its_layers():
    stack = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 4)), jnp.float32)
    for make in (
        lambda **k: GroupLasso(2.0, **k),
        lambda **k: Nuclear(2.0, **k),
        lambda **k: jaxreg.Spectral(2.0, **k),
    ):
        whole = Rules((r"kernel$", make(batch_axis=0))).prox({"kernel": stack}, 0.5)["kernel"]
        apart = jnp.stack([make().prox(layer, 0.5) for layer in stack])
        np.testing.assert_allclose(whole, apart, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(make(batch_axis=0)(stack), sum(make()(layer) for layer in stack), rtol=1e-6)


# Regularizers.

SAMPLE = jnp.array([[1.0, -2.0], [0.03, 3.0]])


def test_sums_and_multiples_have_the_prox_of_an_elastic_net():
    sums = {
        "L1 + L2": L1(0.3) + L2(0.2),
        "nested": 2.0 * (L1(0.1) + 0.5 * L1L2(0.1, 0.2)) + L2(np.float32(0.1)),
        "traced": jnp.float32(0.5) * (L1(jnp.float32(0.6)) + L2(0.4)),
        "bfloat16": L1(jnp.asarray(0.5, jnp.bfloat16)) + L2(0.25) + L1(jnp.float32(0.25)),
    }
    strengths = {"L1 + L2": (0.3, 0.2), "nested": (0.3, 0.3), "traced": (0.3, 0.2), "bfloat16": (0.75, 0.25)}
    for name, regularizer in sums.items():
        l1, l2 = strengths[name]
        assert regularizer.has_prox
        assert regularizer.has_metric_prox
        with jax.numpy_dtype_promotion("strict"):
            for step in (0.5, jnp.full((2, 2), 0.5)):
                expected = soft(np.asarray(SAMPLE), 0.5 * l1) / (1 + 2 * 0.5 * l2)
                np.testing.assert_allclose(regularizer.prox(SAMPLE, step), expected, rtol=1e-6)
    assert (3.0 * GroupLasso(0.1)).prox(SAMPLE, 1.0)[0, 0] == GroupLasso(0.3).prox(SAMPLE, 1.0)[0, 0]
    for other in (L1(0.1) + GroupLasso(0.1), L1(0.1) + jnp.sum, 2.0 * jaxreg.OrthogonalRegularizer()):
        assert not other.has_prox
        with pytest.raises(NotImplementedError, match=r"no prox in closed form.*`jaxreg.add_penalty_gradients`"):
            other.prox(SAMPLE, 1.0)


def test_a_subclass_with_another_penalty_does_not_inherit_a_prox():
    class Other(L1):
        def __call__(self, x):
            return super().__call__(x) ** 2

    class Own(jaxreg.Regularizer):
        factor: float = 0.5

        def __call__(self, x):
            return self.factor * jnp.sum(jnp.abs(x))

        def prox(self, x, step):
            return jaxreg.prox.l1(x, step * self.factor)

    class Mixin:
        def __call__(self, x):
            return jnp.sum(x**4)

    class Mixed(Mixin, L1):
        pass

    class Both(L1):
        def __call__(self, x):
            return self.l1 * jnp.sum(x**4)

        def prox(self, x, step):
            return 0 * x

    assert not Mixed(0.1).has_prox
    assert (Both(0.1).has_prox, Both(0.1).has_metric_prox) == (True, False)
    assert not (Both(0.1) + L2(0.1)).has_prox
    assert not Other(0.1).has_prox
    assert not (Other(0.1) + L2(0.1)).has_prox
    with pytest.raises(NotImplementedError, match="Other"):
        Other(0.1).prox(SAMPLE, 1.0)
    assert (Own().has_prox, Own().has_metric_prox) == (True, False)
    tx = proximal(optax.sgd(1.0), Rules(("w", Own(1.0))), 1.0)
    updates, _ = tx.update({"w": jnp.zeros(2)}, tx.init(SAMPLE[0]), {"w": SAMPLE[0]})
    np.testing.assert_array_equal(updates["w"], [-1.0, 1.0])


class Shapeless(jaxreg.Regularizer):
    factor: float = 0.5

    def __call__(self, x):
        return self.factor * jnp.sum(jnp.abs(x))

    def prox(self, x, step):
        return jnp.sum(x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GroupLasso(-1), ValueError, "`factor` must be finite and >= 0, got -1"),
        (lambda: GroupLasso(None), TypeError, "`factor` must be a number, got None"),
        (
            lambda: GroupLasso(0.1, "units"),
            TypeError,
            "`group_axis` must be an int or a tuple of ints, got str 'units'",
        ),
        (
            lambda: GroupLasso(batch_axis=0.5),
            TypeError,
            r"`batch_axis` must be an int or a tuple of ints, got float 0.5",
        ),
        (lambda: GroupLasso(size_weighted=1), TypeError, "`size_weighted` must be a bool, got int 1"),
        (lambda: Nuclear(out_axis=1.5), TypeError, r"`out_axis` must be an int or a tuple of ints, got float 1.5"),
        (lambda: jaxreg.MCP(gamma=0), ValueError, "`gamma` must be finite and > 0, got 0"),
        (lambda: jaxreg.SCAD(a=1.0), ValueError, "`a` must be finite and > 1, got 1.0"),
        (lambda: jaxreg.Huber(delta=None), TypeError, "`delta` must be a number, got None"),
    ],
)
def test_what_a_constructor_checks(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_l0_is_not_differentiated():
    assert jaxreg.L0(0.5)(SAMPLE) == 2.0
    with pytest.raises(TypeError, match=r"`L0` counts weights, so its gradient would be 0 .* `jaxreg.proximal`"):
        jax.grad(jaxreg.L0(0.5))(SAMPLE)
    tx = jaxreg.add_penalty_gradients(Rules(("w", jaxreg.L0(0.5))))
    with pytest.raises(TypeError, match="`L0` counts weights"):
        tx.update({"w": SAMPLE}, tx.init({"w": SAMPLE}), {"w": SAMPLE})


ADAM = optax.adam(0.1)
AVERAGED = optax.contrib.schedule_free(optax.sgd(0.1), 0.1)
ORTHOGONAL = Rules((r"bias$", None), (r"kernel$", jaxreg.OrthogonalRegularizer()))


def init(tx):
    return tx.init(PARAMS)


def update(tx, params=PARAMS):
    return tx.update(GRADS, tx.init(PARAMS), params)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: proximal("adam", RULES, 0.1), TypeError, "`inner` must be an optax transformation, .* got str 'adam'"),
        (lambda: proximal(ADAM, L1(0.1), 0.1), TypeError, "`rules` must be jaxreg.Rules, .* got L1"),
        (
            lambda: proximal(ADAM, lambda p: 0.0, 0.1),
            TypeError,
            "`rules` must be jaxreg.Rules, since a function has no",
        ),
        (
            lambda: proximal(ADAM, ORTHOGONAL, 0.1),
            ValueError,
            r"`rules`: rule 1 \('kernel\$', Orth.* closed form; add its",
        ),
        (
            lambda: proximal(ADAM, Rules(("w", Nuclear())), 0.1, metric="adam"),
            ValueError,
            r"`rules`: rule 0 .* has no prox in the metric of Adam; take metric='euclidean'",
        ),
        (
            lambda: proximal(ADAM, RULES, 0.1, metric="adamw"),
            ValueError,
            "`metric` must be 'euclidean' or 'adam', got 'ad",
        ),
        (lambda: proximal(ADAM, RULES, -0.1), ValueError, "`learning_rate` must be finite and >= 0, got -0.1"),
        (lambda: proximal(ADAM, RULES, jnp.ones(2)), ValueError, r"`learning_rate` must be a scalar, got float32\[2\]"),
        (lambda: proximal(ADAM, RULES, None), TypeError, "`learning_rate` must be a number, got None"),
        (lambda: proximal(ADAM, RULES, 0.1, b2=1.0), ValueError, "`b2` must be < 1, got 1.0"),
        (lambda: proximal(ADAM, RULES, 0.1, eps=-1), ValueError, "`eps` must be finite and >= 0, got -1"),
        (lambda: proximal(ADAM, RULES, 0.1, b2=np.float32(1)), ValueError, "`b2` must be < 1, got"),
        (lambda: proximal(ADAM, RULES, 0.1, eps=np.ones(2)), ValueError, r"`eps` must be a scalar, got float64\[2\]"),
        (
            lambda: init(proximal(optax.chain(ADAM, optax.contrib.reduce_on_plateau()), RULES, 0.1)),
            ValueError,
            "`inner` must not hold what changes the length of steps by itself, got ReduceLROnPlateauState",
        ),
        (
            lambda: proximal(ADAM, Rules(("w", jaxreg.MCP())), 0.1, metric="adam"),
            ValueError,
            "has no prox in the metric of Adam",
        ),
        (lambda: proximal(ADAM, RULES, 0.1, cap=1.0), ValueError, "`cap` must be finite and > 1, got 1.0"),
        (
            lambda: init(proximal(optax.sgd(0.1), RULES, 0.1, metric="adam")),
            ValueError,
            "`inner` must hold exactly one optax.ScaleByAdamState for metric='adam', got 0",
        ),
        (
            lambda: init(proximal(optax.chain(ADAM, ADAM), RULES, 0.1, metric="adam")),
            ValueError,
            "exactly one .* got 2",
        ),
        (lambda: init(proximal(AVERAGED, RULES, 0.1)), ValueError, "`inner` must not hold optax.contrib.schedule_free"),
        (
            lambda: init(proximal(optax.MultiSteps(ADAM, 2).gradient_transformation(), RULES, 0.1)),
            ValueError,
            "`inner` must not hold .*, got MultiStepsState; put `proximal` inside",
        ),
        (
            lambda: init(proximal(optax.apply_if_finite(ADAM, 2), RULES, 0.1)),
            ValueError,
            "got ApplyIfFiniteState; put `proximal` inside",
        ),
        (lambda: update(proximal(ADAM, RULES, 0.1), None), ValueError, "`params` must be given to `update`"),
        (lambda: update(proximal(ADAM, Rules(("w$", L1())), 0.1)), ValueError, r"rule 0 \('w\$'.* met no parameter"),
        (lambda: update(proximal(ADAM, RULES, lambda count: "x")), TypeError, "`learning_rate` must be a real number"),
        (
            lambda: RULES.prox(PARAMS, -1.0),
            ValueError,
            r"at `hidden/kernel`, under rule 1 .*: `step` must be finite and",
        ),
        (
            lambda: RULES.prox(jax.eval_shape(lambda: PARAMS), 1.0),
            TypeError,
            "at `hidden/kernel`.*`x` must be .* without",
        ),
        (
            lambda: ORTHOGONAL.prox({"kernel": SAMPLE, "bias": SAMPLE}, 1.0),
            NotImplementedError,
            "at `kernel`, under rule 1",
        ),
        (
            lambda: Rules(("w", Shapeless())).prox({"w": SAMPLE}, 1.0),
            TypeError,
            r"at `w`.*the prox of Shapeless\(factor=0.5\) must return float32\[2,2\], got float32\[\]",
        ),
        (
            lambda: Rules(("w", L1(jnp.ones(2)))).prox({"w": SAMPLE}, 1.0),
            ValueError,
            "at `w`.*`l1` must be a scalar where",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
