"""`proximal` and `Rules.prox`: the solutions of scikit-learn, the cap, and what is refused.

The wrappers of optax are in `test_wrappers.py`.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES
from flax import nnx
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
    """The strengths are then relative to the gradients, which the metric mends."""
    features, targets, alpha = diabetes_problem(1)
    expected = Lasso(alpha=alpha, fit_intercept=False, tol=1e-14, max_iter=10**6).fit(features, targets[:, 0]).coef_
    with jax.enable_x64(True):
        x, y = jnp.asarray(features), jnp.asarray(targets[:, 0])
        rate = optax.cosine_decay_schedule(0.05, 20_000)
        tx = proximal(optax.adam(rate), Rules((r"^w$", L1(alpha))), rate, metric="euclidean")
        found = trained(tx, lambda p: 0.5 * jnp.mean(jnp.square(x @ p["w"] - y)), {"w": jnp.zeros(10)}, 20_000)["w"]
    assert np.max(np.abs(found - expected)) > 0.01


def test_nuclear_completion_by_its_optimality_conditions():
    """The solution Z = UΣVᵀ has a low rank, and R = P_Ω(M − Z)/λ has UᵀR = Vᵀ, RV = U and ‖R‖₂ ≤ 1."""
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


# Steps.


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


@pytest.mark.parametrize("track", [False, True])
@pytest.mark.parametrize(("metric", "most"), [("euclidean", 3), ("adam", 12)])
def test_temporaries_do_not_grow_with_the_number_of_kernels(metric, most, track):
    """In a step with donated buffers, temporaries are as large as a few of the 40 kernels, so nothing is copied."""
    params = {str(i): jnp.ones((128, 128)) for i in range(40)}
    tx = proximal(optax.adam(0.1), Rules((r".", GroupLasso(0.1))), 0.1, metric=metric, track=track, check=False)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, jax.eval_shape(tx.init, params), params)
    assert lowered.compile().memory_analysis().temp_size_in_bytes <= most * params["0"].nbytes


def test_the_schedule_is_read_at_the_count_of_the_inner_one():
    seen = []

    def schedule(count):
        seen.append(int(count))
        return 0.1 / (1 + count)

    tx = proximal(optax.sgd(schedule), RULES, schedule, check=False)
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(3):
        updates, state = tx.update(GRADS, state, params)
        rate = 0.1 / (1 + step)
        moved = params["hidden"]["kernel"] - rate * GRADS["hidden"]["kernel"]
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["hidden"]["kernel"], soft(moved, 0.5 * rate), rtol=1e-5, atol=1e-7)
    assert seen == [0, 0, 1, 1, 2, 2]
    assert state.count == 3


def test_adam_without_a_moment_of_a_parameter_is_an_error():
    for mask in (
        {"hidden": False, "head": True},
        {"hidden": {"kernel": False, "bias": True}, "head": {"kernel": True}},
    ):
        tx = proximal(optax.masked(optax.adam(0.1), mask), Rules((r"kernel$", L1(0.5))), 0.1, metric="adam")
        with pytest.raises(ValueError, match=r"at `hidden/kernel`, under rule 0 .*Adam's state has no second moment"):
            tx.update(GRADS, tx.init(PARAMS), PARAMS)


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


class Own(jaxreg.Regularizer):
    """A user's regularizer with a prox of its own."""

    factor: float = 0.5

    def __call__(self, x):
        return self.factor * jnp.sum(jnp.abs(x))

    def prox(self, x, step):
        return jaxreg.prox.l1(x, step * self.factor)


class InMetric(Own):
    has_metric_prox = True


class Other(InMetric):
    """Another penalty, so that the prox of the base is not its own."""

    def __call__(self, x):
        return super().__call__(x) ** 2


class Mixin:
    def __call__(self, x):
        return jnp.sum(x**4)


class Mixed(Mixin, InMetric):
    """Its penalty comes from a class that is no regularizer."""


class Both(InMetric):
    """Another penalty with its prox, which takes one step for all weights."""

    def __call__(self, x):
        return self.factor * jnp.sum(x**4)

    def prox(self, x, step):
        return 0 * x


@pytest.mark.parametrize(
    ("cls", "has_prox", "has_metric_prox"),
    [(Own, True, False), (InMetric, True, True), (Other, False, False), (Mixed, False, False), (Both, True, False)],
)
def test_a_subclass_with_another_penalty_does_not_inherit_a_prox(cls, has_prox, has_metric_prox):
    regularizer = cls(0.1)
    for one in (regularizer, 2.0 * regularizer):
        assert (one.has_prox, one.has_metric_prox) == (has_prox, has_metric_prox)
    assert not (regularizer + L2(0.1)).has_prox
    assert not (regularizer + L2(0.1)).has_metric_prox


@pytest.mark.parametrize("cls", [Other, Mixed])
def test_a_prox_that_is_not_inherited_raises(cls):
    with pytest.raises(NotImplementedError, match=cls.__name__):
        cls(0.1).prox(SAMPLE, 1.0)


@pytest.mark.parametrize(("cls", "metric"), [(Own, "euclidean"), (InMetric, "euclidean"), (InMetric, "adam")])
def test_a_prox_of_a_user(cls, metric):
    """The gradient is 0, so that Adam does not move the weights, and they are cut to 0 or by the threshold."""
    params = {"w": jnp.array([1.0, -2.0, 0.05])}
    tx = proximal(optax.adam(0.1, eps=1.0), Rules(("w", cls(1.0))), 0.1, metric=metric, eps=1.0)
    updates, state = tx.update({"w": jnp.zeros(3)}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.1, 0.1, -0.05], rtol=1e-6)
    np.testing.assert_allclose(state.penalty, 3.05, rtol=1e-6)


SHIPPED = [
    value
    for value in map(vars(jaxreg).get, jaxreg.__all__)
    if isinstance(value, type) and issubclass(value, jaxreg.Regularizer) and value is not jaxreg.Regularizer
]


@pytest.mark.parametrize("cls", SHIPPED)
def test_shipped_classes_are_not_for_subclassing(cls):
    with pytest.raises(TypeError, match=cls.__name__):
        type("Mine", (cls,), {})
    with pytest.raises(TypeError, match=cls.__name__):
        type("Mine", (cls,), {"__call__": lambda self, x: jnp.sum(x)})


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


# Optimizers and regularizers that are refused.

ADAM = optax.adam(0.1)
REFUSED_INSIDE = {
    "ApplyIfFiniteState": lambda inner: optax.apply_if_finite(inner, 2),
    "ConditionallyMaskState": lambda inner: optax.conditionally_mask(inner, lambda step: step > 0),
    "ConditionallyTransformState": lambda inner: optax.conditionally_transform(inner, lambda step: step > 0),
    "LookaheadState": lambda inner: optax.lookahead(inner, 3, 0.5),
    "MultiStepsState": lambda inner: optax.MultiSteps(inner, 2).gradient_transformation(),
    "SAMState": lambda inner: optax.contrib.sam(inner, optax.sgd(0.1)),
    "optax.contrib.schedule_free": lambda inner: optax.contrib.schedule_free(inner, 0.1),
    "ReduceLROnPlateauState": lambda inner: optax.chain(inner, optax.contrib.reduce_on_plateau()),
    "ScaleByBacktrackingLinesearchState": lambda inner: optax.chain(inner, optax.scale_by_backtracking_linesearch(9)),
    "ScaleByZoomLinesearchState": lambda inner: optax.chain(inner, optax.scale_by_zoom_linesearch(9)),
    "ScaleByLBFGSState": lambda inner: optax.chain(inner, optax.scale_by_lbfgs()),
    "ApplyEvery": lambda inner: optax.chain(inner, optax.apply_every(2)),
    "InjectStatefulHyperparamsState": lambda inner: optax.inject_hyperparams(lambda rate: inner)(0.1),
}
AROUND = {
    "alone": lambda tx: tx,
    "in a chain": lambda tx: optax.chain(optax.clip(1.0), tx),
    "masked": lambda tx: optax.masked(tx, {"hidden": True, "head": False}),
    "in a partition": lambda tx: optax.partition(
        {"ours": tx, "other": optax.set_to_zero()}, {"hidden": "ours", "head": "other"}
    ),
    "injected": lambda tx: optax.inject_hyperparams(lambda scale: optax.chain(optax.scale(scale), tx))(1.0),
}


@pytest.mark.parametrize("metric", [None, "euclidean", "adam"])
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize(("name", "make"), REFUSED_INSIDE.items(), ids=REFUSED_INSIDE)
def test_optimizers_that_are_refused(name, make, around, metric):
    """A wrapper that skips, averages, repeats or rescales steps is found wherever it is in the optimizer, and named."""
    tx = proximal(around(make(ADAM)), RULES, 0.1, metric=metric)
    with pytest.raises(ValueError, match=rf"^`inner` must not hold .*{name}"):
        tx.init(PARAMS)


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
def test_the_object_of_multi_steps_is_refused(metric):
    tx = proximal(optax.MultiSteps(ADAM, 2), RULES, 0.1, metric=metric)
    with pytest.raises(ValueError, match=r"got MultiStepsState; put `proximal` inside: optax\.MultiSteps"):
        tx.init(PARAMS)


# Optimizers in which Adam's metric is found, with their `b2` and `eps` as in METRIC.
B2, EPS = 0.9, 1e-3
WITH_ADAM = {
    "adam": optax.adam(0.1, b2=B2, eps=EPS),
    "adamw": optax.adamw(0.1, b2=B2, eps=EPS),
    "a chain": optax.chain(optax.clip(100.0), optax.adam(0.1, b2=B2, eps=EPS)),
    "a named chain": optax.named_chain(("ours", optax.adam(0.1, b2=B2, eps=EPS))),
    "masked": optax.masked(optax.adam(0.1, b2=B2, eps=EPS), {"hidden": True, "head": False}),
    "a partition": optax.partition(
        {"adam": optax.adam(0.1, b2=B2, eps=EPS), "sgd": optax.sgd(0.1)}, {"hidden": "adam", "head": "sgd"}
    ),
    "in another prox": proximal(optax.adam(0.1, b2=B2, eps=EPS), Rules((r"bias$", L1(0.5))), 0.1, b2=B2, eps=EPS),
}


@pytest.mark.parametrize("inner", WITH_ADAM.values(), ids=WITH_ADAM)
def test_the_metric_is_found_wherever_adam_is(inner):
    """The prox follows the update of the optimizer, with thresholds η·λ/D where D is made from all gradients so far."""
    tx = proximal(inner, Rules((r"hidden/kernel$", L1(0.5))), 0.1, metric="adam", b2=B2, eps=EPS, cap=None)
    params, state, inner_state = PARAMS, tx.init(PARAMS), inner.init(PARAMS)
    second = 0.0
    for count, seed in enumerate((1, 2), start=1):
        gradients = tree(seed)
        updates, inner_state = inner.update(gradients, inner_state, params)
        moved = np.asarray(optax.apply_updates(params, updates)["hidden"]["kernel"], np.float64)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        second = B2 * second + (1 - B2) * np.asarray(gradients["hidden"]["kernel"], np.float64) ** 2
        metric = np.sqrt(second / (1 - B2**count)) + EPS
        expected = soft(moved, 0.1 * 0.5 / metric)
        np.testing.assert_allclose(params["hidden"]["kernel"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(params["hidden"]["kernel"] == 0, expected == 0)


class NoProx(jaxreg.Regularizer):
    factor: float = 0.01

    def __call__(self, x):
        return self.factor * jnp.sum(x**4)


# The classes of the table of cases, by the metrics in which they have a prox.
CLASSES = [case for case in CASES if isinstance(case.regularizer, type) and case.penalty is not None]
IN_ANY_METRIC = [case.regularizer for case in CLASSES if case.metric_prox]
IN_THE_EUCLIDEAN_METRIC = [case.regularizer for case in CLASSES if case.prox is not None and not case.metric_prox]
IN_NO_METRIC = [case.regularizer for case in CLASSES if case.prox is None]
ELASTIC_NETS = [case.regularizer for case in CLASSES if case.elastic_net]
NO_PROX = r"`rules`: rule 1 \('w\$'.*has no prox in closed form; add its gradients by `jaxreg.add_penalty_gradients`"
NO_METRIC_PROX = r"`rules`: rule 1 \('w\$'.*has no prox in the metric of Adam; take metric='euclidean'"


def with_rule(regularizer, metric):
    return proximal(ADAM, Rules((r"^head", L1(0.1)), (r"w$", regularizer)), 0.1, metric=metric)


def multiples(regularizer):
    """The regularizer, and what else has its prox up to the step."""
    return regularizer, 2.0 * regularizer, regularizer * jnp.float32(2.0), 0.5 * (3.0 * regularizer), sum([regularizer])


def test_every_shipped_regularizer_is_in_one_table():
    assert sorted(map(repr, IN_ANY_METRIC + IN_THE_EUCLIDEAN_METRIC + IN_NO_METRIC)) == sorted(map(repr, SHIPPED))
    assert min(map(len, (IN_ANY_METRIC, IN_THE_EUCLIDEAN_METRIC, IN_NO_METRIC, ELASTIC_NETS))) >= 2


@pytest.mark.parametrize("cls", IN_ANY_METRIC)
def test_regularizers_with_a_prox_in_any_metric(cls):
    for regularizer in multiples(cls()):
        for metric in ("euclidean", "adam"):
            with_rule(regularizer, metric)


@pytest.mark.parametrize("cls", [*IN_THE_EUCLIDEAN_METRIC, Own, Both])
def test_regularizers_that_adams_metric_refuses(cls):
    for regularizer in multiples(cls()):
        with_rule(regularizer, "euclidean")
        with pytest.raises(ValueError, match=NO_METRIC_PROX):
            with_rule(regularizer, "adam")


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
@pytest.mark.parametrize("cls", [*IN_NO_METRIC, NoProx, Other, Mixed])
def test_regularizers_that_are_refused(cls, metric):
    for regularizer in (*multiples(cls()), jnp.sum):
        with pytest.raises(ValueError, match=NO_PROX):
            with_rule(regularizer, metric)


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
@pytest.mark.parametrize("cls", [cls for cls in (*SHIPPED, Own, NoProx) if cls not in ELASTIC_NETS])
def test_sums_that_are_refused(cls, metric):
    """A sum with one term that is no elastic net has no prox, wherever the term is."""
    for total in (cls() + L1(0.1), L2(0.1) + cls(), L1(0.1) + (L2(0.1) + 2.0 * cls()), cls() + cls(), cls() + jnp.sum):
        for regularizer in (total, 2.0 * total):
            with pytest.raises(ValueError, match=NO_PROX):
                with_rule(regularizer, metric)


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
@pytest.mark.parametrize("cls", ELASTIC_NETS)
def test_sums_that_are_with_rule(cls, metric):
    for other in ELASTIC_NETS:
        for total in (cls() + other(), 2.0 * cls() + 0.5 * (other() + cls())):
            with_rule(total, metric)


# Without a rate.


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
def test_a_rate_is_not_needed_where_no_rule_has_a_regularizer(metric):
    inner, tx = ADAM, proximal(ADAM, Rules((r"", None)), metric=metric)
    updates, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(updates, inner.update(GRADS, inner.init(PARAMS), PARAMS)[0])
    assert state.penalty == 0.0


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
            "`metric` must be None, 'euclidean', 'adam' or a function, got str 'adamw'",
        ),
        (lambda: proximal(ADAM, RULES, -0.1), ValueError, "`learning_rate` must be finite and >= 0, got -0.1"),
        (lambda: proximal(ADAM, RULES, jnp.ones(2)), ValueError, r"`learning_rate` must be a scalar, got float32\[2\]"),
        (lambda: proximal(ADAM, RULES, None), TypeError, "`learning_rate` must be a number, got None"),
        (lambda: proximal(ADAM, RULES), TypeError, "`learning_rate` must be a number, got None"),
        (lambda: proximal(ADAM, RULES, 0.1, b2=1.0), ValueError, "`b2` must be < 1, got 1.0"),
        (lambda: proximal(ADAM, RULES, 0.1, eps=-1), ValueError, "`eps` must be finite and >= 0, got -1"),
        (lambda: proximal(ADAM, RULES, 0.1, b2=np.float32(1)), ValueError, "`b2` must be < 1, got"),
        (lambda: proximal(ADAM, RULES, 0.1, eps=np.ones(2)), ValueError, r"`eps` must be a scalar, got float64\[2\]"),
        (
            lambda: init(proximal(optax.chain(ADAM, optax.contrib.reduce_on_plateau()), RULES, 0.1)),
            ValueError,
            "`inner` must not hold .* that changes the length of steps by itself, got ReduceLROnPlateauState",
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
            "`inner` must hold an optax.ScaleByAdamState for metric='adam', got none",
        ),
        (
            lambda: init(proximal(optax.chain(ADAM, ADAM), RULES, 0.1, metric="adam")),
            ValueError,
            "`inner` must hold one second moment of Adam for a parameter, got two at `head/kernel`",
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
