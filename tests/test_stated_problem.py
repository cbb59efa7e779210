"""Law 8: `proximal` and the proximal optimizers solve loss + penalty, or are refused at `init`.

Every optimizer that this version of optax has is tried, found by introspection, with its ordinary settings. Each is
judged by where it ends: at the solution in closed form, or before the first step.
"""

import functools
import inspect
from collections.abc import Callable

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax import contrib

import jaxreg
from jaxreg import L1, Rules, _probe

# Optimizers of optax mix dtypes, and some warn that they are deprecated.
pytestmark = [pytest.mark.standard_promotion, pytest.mark.filterwarnings("ignore")]

# A lasso in closed form: the loss ½ Σ d (w − t)² has the minimum t, and with λ Σ|w| the minimum is soft(d t, λ)/d.
TARGET = np.array([1.0, -2.0, 0.05, 0.5, -0.02, 3.0])
CURVATURE = np.array([1.0, 0.5, 1.0, 2.0, 1.0, 0.7])
LAM = 0.15
SOLUTION = np.sign(TARGET) * np.maximum(CURVATURE * np.abs(TARGET) - LAM, 0) / CURVATURE
RULES = Rules((r"^w$", L1(LAM)))
PARAMS = {"w": jnp.zeros(len(TARGET)), "matrix": jnp.full((2, 3), 0.5), "free": jnp.ones(2)}
STEPS = 6_000
RATE = optax.cosine_decay_schedule(0.05, STEPS)


def loss(params):
    fit = jnp.sum(CURVATURE * jnp.square(params["w"] - TARGET)) / 2
    return fit + jnp.sum(jnp.square(params["matrix"])) + jnp.sum(jnp.square(params["free"] - 2))


def solve(tx, loss=loss, params=None):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = PARAMS if params is None else params
    return jax.jit(lambda p, s: jax.lax.scan(step, (p, s), length=STEPS)[0][0])(params, tx.init(params))


def aliases():
    """All that optax builds with no more than a learning rate."""
    for module, prefix in ((optax, ""), (contrib, "contrib.")):
        for name, function in vars(module).items():
            is_alias = inspect.isfunction(function) or isinstance(function, functools.partial)
            if is_alias and not name.startswith("_"):
                parameters = inspect.signature(function).parameters
                required = [p.name for p in parameters.values() if p.default is p.empty and "VAR" not in p.kind.name]
                if "learning_rate" in parameters and set(required) <= {"learning_rate"}:
                    yield prefix + name, function


ALIASES = dict(aliases())
# What is known to be right. All others may be either, but never wrong.
RIGHT = {"sgd", "adam", "adamw", "nadam", "nadamw", "noisy_sgd", "optimistic_gradient_descent"}


def ends(make, rates=(RATE, 0.05), rules=RULES, **options):
    """Returns "right" or "wrong", or the error with which an optimizer is refused at `init`."""
    for rate in rates:
        try:
            inner = make(rate)
            inner.init(PARAMS)
        except (TypeError, ValueError):
            continue  # it takes no schedule
        tx = jaxreg.proximal(inner, rules, rate, **options)
        try:
            tx.init(PARAMS)
        except ValueError as error:
            return str(error)
        found = np.asarray(solve(tx)["w"])
        # The noise of `noisy_sgd` and the decay of `adamw` are the user's own.
        return "right" if np.allclose(found, SOLUTION, atol=5e-3) else f"wrong: {found}"
    pytest.fail("it could not be built")
    return None


def test_optax_has_many_optimizers():
    assert len(ALIASES) >= 40
    assert set(ALIASES) >= RIGHT


@pytest.mark.parametrize("name", ALIASES)
def test_every_optimizer_of_optax_is_right_or_refused(name):
    result = ends(ALIASES[name])
    assert result == "right" if name in RIGHT else not result.startswith("wrong")
    if result != "right":
        assert "`inner`" in result


def clipped(make):
    return lambda rate: optax.chain(optax.clip_by_global_norm(10.0), make(rate))


def labelled(**rates):
    """Different optimizers for matrices and vectors, told apart by their rank."""
    return lambda rate: optax.partition(
        {kind: make(rate) for kind, make in rates.items()},
        lambda params: jax.tree.map(lambda p: "matrix" if p.ndim > 1 else "vector", params),
    )


def frozen(**labels):
    """Adam for what trains, and nothing for what is frozen."""
    return lambda rate: optax.partition({"train": optax.adam(rate), "freeze": optax.set_to_zero()}, labels)


def times(factor):
    return lambda rate: (lambda count: factor * rate(count)) if callable(rate) else factor * rate


def sgd(rate, **options):
    return optax.sgd(rate, **options)


def mapped(function):
    """A stateless transformation of each gradient."""
    return optax.stateless(lambda updates, params=None: jax.tree.map(function, updates))


def grafted(direction):
    """The direction of one optimizer with the norm of the gradient."""

    def update(updates, state, params=None):
        found, state = direction.update(updates, state, params)
        return jax.tree.map(lambda f, g: f * jnp.linalg.norm(g) / (jnp.linalg.norm(f) + 1e-16), found, updates), state

    return optax.GradientTransformation(direction.init, update)


def at_counts(period, place, factor):
    return optax.scale_by_schedule(lambda count: jnp.where(count % period == place, factor, 1.0))


def falling(start, length):
    return optax.join_schedules([optax.constant_schedule(0.05), optax.linear_schedule(0.05, 0.0, length)], [start])


COUPLED = jaxreg.add_penalty_gradients(Rules(("matrix", jaxreg.OrthogonalRegularizer(0.01)), ("free", jaxreg.L2(0.1))))
SETTINGS = {
    "SGD": (sgd, True),
    "SGD with the rate of another": (lambda rate: sgd(times(10)(rate)), False),
    "SGD, constant, beside a schedule": (lambda rate: sgd(0.05), False),
    "SGD, momentum, with the same rate": (lambda rate: sgd(rate, momentum=0.9), False),
    "SGD, Nesterov, with the same rate": (lambda rate: sgd(rate, momentum=0.9, nesterov=True), False),
    "SGD, momentum m, with rate · (1 − m)": (lambda rate: sgd(times(0.1)(rate), momentum=0.9), True),
    "SGD, slow momentum": (lambda rate: sgd(times(0.001)(rate), momentum=0.999), False),
    "SGD, an EMA in front": (lambda rate: optax.chain(optax.ema(0.9), sgd(rate)), True),
    "SGD, twice the rate": (lambda rate: optax.chain(sgd(rate), optax.scale(2.0)), False),
    "SGD, coupled penalties of others": (lambda rate: optax.chain(COUPLED, sgd(rate)), True),
    "SGD, clipped": (clipped(sgd), True),
    "SGD, clipped too short": (lambda rate: optax.chain(optax.clip(1e-5), sgd(rate)), False),
    "SGD, centralized": (lambda rate: optax.chain(optax.centralize(), sgd(rate)), True),
    "steps uphill": (lambda rate: optax.scale(0.05), False),
    "Adam": (optax.adam, True),
    "Adam, clipped": (clipped(optax.adam), True),
    "Adam, coupled decay of others": (
        lambda rate: optax.chain(
            optax.add_decayed_weights(0.1, {"w": False, "matrix": True, "free": True}), optax.adam(rate)
        ),
        True,
    ),
    "Adam, coupled penalties of others": (lambda rate: optax.chain(COUPLED, optax.adam(rate)), True),
    "Adam, nesterov": (lambda rate: optax.adam(rate, nesterov=True), True),
    "Adam, mu_dtype": (lambda rate: optax.adam(rate, mu_dtype=jnp.float32), True),
    "Adam, another b1": (lambda rate: optax.adam(rate, b1=0.5), True),
    "Adam, b1 = 0.99": (lambda rate: optax.adam(rate, b1=0.99), True),
    "Adam, another b2": (lambda rate: optax.adam(rate, b2=0.9), False),
    "Adam, another eps": (lambda rate: optax.adam(rate, eps=1e-3), False),
    "Adam, another eps_root": (lambda rate: optax.adam(rate, eps_root=1e-8), False),
    "Adam, ten times the rate": (lambda rate: optax.adam(times(10)(rate)), False),
    "Adam, scaled after": (lambda rate: optax.chain(optax.adam(rate), optax.scale(0.5)), False),
    "Adam, constant, beside a schedule": (lambda rate: optax.adam(0.05), False),
    "Adam, a longer schedule": (lambda rate: optax.adam(optax.cosine_decay_schedule(0.05, 2 * STEPS)), False),
    "Adam, trust ratio": (
        lambda rate: optax.chain(
            optax.scale_by_adam(), optax.scale_by_trust_ratio(), optax.scale_by_learning_rate(rate)
        ),
        False,
    ),
    "Adam twice": (lambda rate: optax.chain(optax.scale_by_adam(), optax.adam(rate)), False),
    "RMSProp with a large eps": (lambda rate: optax.rmsprop(rate, eps=1.0), False),
    "Adagrad whose rate fits small gradients": (lambda rate: optax.adagrad(times(0.1**0.5)(rate)), False),
    "LAMB whose rate fits one size of weights": (lambda rate: optax.lamb(times(1 / _probe.PARAMETERS[0])(rate)), False),
    "by labels, alike": (labelled(matrix=optax.adam, vector=optax.adam), True),
    "by labels, SGD for vectors": (labelled(matrix=optax.adam, vector=sgd), True),
    "by labels, another rate for others": (labelled(matrix=lambda r: sgd(times(10)(r)), vector=sgd), True),
    "by labels, another rate": (labelled(matrix=sgd, vector=lambda r: sgd(times(10)(r))), False),
    "by labels, chosen by size": (
        lambda rate: optax.partition(
            {"large": optax.adam(times(10)(rate)), "small": optax.adam(rate)},
            lambda params: jax.tree.map(lambda p: "large" if p.size > 5 else "small", params),
        ),
        False,
    ),
    "Muon": (contrib.muon, True),
    "frozen in a partition inside": (frozen(w="freeze", matrix="train", free="train"), False),
    "frozen inside": (
        lambda rate: optax.chain(optax.adam(rate), optax.freeze({"w": True, "matrix": False, "free": False})),
        False,
    ),
    "masked inside": (lambda rate: optax.masked(optax.adam(rate), {"w": False, "matrix": True, "free": True}), False),
    "frozen inside, without a rule": (frozen(w="train", matrix="freeze", free="train"), True),
    "SGD, smoothed": (
        lambda rate: optax.chain(mapped(lambda g: (g + jnp.roll(g, 1, 0)) / 2), sgd(rate)),
        False,
    ),
    "SGD of the mean": (lambda rate: optax.chain(mapped(lambda g: jnp.full_like(g, jnp.mean(g))), sgd(rate)), False),
    "SGD of the largest": (
        lambda rate: optax.chain(mapped(lambda g: g * (jnp.abs(g) >= jnp.median(jnp.abs(g)))), sgd(rate)),
        False,
    ),
    "SGD of scaled signs": (
        lambda rate: optax.chain(mapped(lambda g: jnp.sign(g) * jnp.mean(jnp.abs(g))), sgd(rate)),
        False,
    ),
    "SGD, grafted to RMSProp": (lambda rate: optax.chain(grafted(optax.scale_by_rms()), sgd(rate)), False),
    "SGD, every third step left out": (lambda rate: optax.chain(sgd(rate), at_counts(3, 0, 0.0)), False),
    "SGD, every seventh step longer": (lambda rate: optax.chain(sgd(rate), at_counts(7, 6, 5.0)), False),
    "SGD, falling at another time": (lambda rate: sgd(falling(4_800, 1_200)), False),
    "SGD, coupled L2 of the same": (lambda rate: optax.chain(optax.add_decayed_weights(1e-6), sgd(rate)), True),
    "GaLore": (lambda rate: contrib.galore(rate, rank=1), True),
    "injected inside": (lambda rate: optax.inject_hyperparams(optax.adam)(rate), False),
    "every second step": (lambda rate: optax.chain(optax.apply_every(2), optax.adam(rate)), False),
    "a line search": (lambda rate: optax.chain(optax.sgd(rate), optax.scale_by_backtracking_linesearch(5)), False),
    "L-BFGS": (lambda rate: optax.lbfgs(rate, linesearch=None), False),
}


@pytest.mark.parametrize(("make", "is_right"), SETTINGS.values(), ids=SETTINGS)
def test_settings_are_right_or_refused(make, is_right):
    result = ends(make, rates=(RATE,))
    assert not result.startswith("wrong")
    assert (result == "right") == is_right, result


@pytest.mark.parametrize("make", [sgd, optax.adam])
@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_a_coupled_l2_of_the_same_weights_is_no_fault(make, strength):
    """Together they are an elastic net."""
    ridge = Rules((r"^w$", jaxreg.L2(strength)))
    tx = jaxreg.proximal(optax.chain(jaxreg.add_penalty_gradients(ridge), make(RATE)), RULES, RATE)
    expected = SOLUTION * CURVATURE / (CURVATURE + 2 * strength)
    np.testing.assert_allclose(solve(tx)["w"], expected, atol=5e-3)


@pytest.mark.parametrize(
    "schedule",
    [
        optax.exponential_decay(1e-7, 10_000, 10.0, end_value=1.0),
        lambda count: jnp.where(count < 3_000, 1e-8, 0.1),
        lambda count: 0.05 * (1 - count / 6_000),
        lambda count: jnp.where(count < 40, 0.1 * (1 - count / 40), 0.0),
    ],
    ids=["slow growth", "late", "below 0 after the end", "short"],
)
def test_schedules_that_are_alike_are_no_fault(schedule):
    jaxreg.proximal(optax.adam(schedule), RULES, schedule).init(PARAMS)


def test_matrices_in_another_basis_are_refused():
    params = {"w": jnp.ones((8, 6))}
    for rank in (1, 4):
        tx = jaxreg.proximal(contrib.galore(RATE, rank=rank), RULES, RATE)
        with pytest.raises(ValueError, match="`inner`"):
            tx.init(params)


def test_updates_of_another_shape_are_refused_before_they_are_run():
    mask = jnp.ones((80, 80))
    inner = optax.chain(sgd(0.1), optax.stateless(lambda u, p=None: {"w": u["w"] * mask}))
    with pytest.raises(ValueError, match=r"cannot be run on small gradients alone.* incompatible shapes"):
        jaxreg.proximal(inner, RULES, 0.1).init({"w": jnp.ones((80, 80))})


def test_updates_that_broadcast_are_refused():
    inner = optax.stateless(lambda u, p=None: {"w": jnp.sum(u["w"], axis=0, keepdims=True)})
    with pytest.raises(ValueError, match=r"its update is float32\[1,3\] for float32\[2,3\] at `w`"):
        jaxreg.proximal(inner, RULES, 0.1).init({"w": jnp.ones((2, 3))})


def test_empty_parameters_need_no_step():
    rules = Rules((r"", L1(0.1)))
    jaxreg.proximal(optax.adam(0.1), rules, 0.1).init({"w": jnp.ones((0, 2)), "v": jnp.ones(2)})


# What an error says.

MESSAGES = {
    "momentum": (optax.sgd(0.1, momentum=0.9), 0.1, r"at `w`, under rule 0 .* 10 times as long .* 1 − m"),
    "another rate": (optax.adam(0.1), 0.01, "its steps are 10 times as long as `learning_rate` says"),
    "a schedule": (optax.adam(0.1), RATE, "after 10000 updates|still changes after"),
    "an unknown metric": (optax.rmsprop(0.1), 0.1, "its metric is not known.*`metric`, a function from the state"),
    "a value": (contrib.momo(0.1), 0.1, "cannot be run on small gradients alone.*'value'.*check=False"),
    "no rate": (optax.adam(0.0), 0.0, "`learning_rate` must not be 0 for 2000 updates.*check=False"),
    "injected": (
        optax.inject_hyperparams(optax.adam)(0.1),
        0.1,
        "must not hold injected numbers.*inject around, optax.inject_hyperparams\\(jaxreg.proximal_adam",
    ),
    "frozen": (
        optax.chain(optax.adam(0.1), optax.freeze({"w": True, "matrix": False, "free": False})),
        0.1,
        "`inner` does not move `w`, which rule 0 .* put what stops it outside",
    ),
    "a schedule of Python": (optax.sgd(0.1), lambda count: 0.1 if count < 9 else 0.2, "`learning_rate` must be a sch"),
    "a negative schedule": (optax.sgd(0.1), lambda count: -0.1, "`learning_rate` must be finite and >= 0"),
    "a weight that is masked": (
        optax.chain(mapped(lambda g: g * (jnp.arange(g.size) > 0).reshape(g.shape)), optax.sgd(0.1)),
        0.1,
        "it does not move some of its weights; put masks outside",
    ),
    "steps that are not finite": (optax.scale(float("inf")), 0.1, "its steps are not finite"),
}


@pytest.mark.parametrize(("inner", "rate", "message"), MESSAGES.values(), ids=MESSAGES)
def test_an_error_says_what_to_do(inner, rate, message):
    with pytest.raises(ValueError, match=message):
        jaxreg.proximal(inner, RULES, rate).init(PARAMS)


def test_what_inner_stops_is_refused_in_the_euclidean_metric_too():
    tx = jaxreg.proximal(MESSAGES["frozen"][0], RULES, 0.1, metric="euclidean")
    with pytest.raises(ValueError, match="`inner` does not move `w`"):
        tx.init(PARAMS)


def test_a_traced_rate_cannot_be_checked():
    def run(rate, **options):
        tx = jaxreg.proximal(optax.sgd(rate), RULES, rate, **options)
        return tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0]["w"]

    with pytest.raises(ValueError, match=r"holds a traced value.*`jaxreg.proximal_adam`.*check=False"):
        jax.jit(run)(0.1)
    with pytest.raises(ValueError, match="holds a traced value"):
        jax.jit(lambda m: jaxreg.proximal(optax.sgd(0.1, momentum=m), RULES, 0.1).init(PARAMS))(0.5)
    for options in ({"check": False}, {"metric": "euclidean"}):
        np.testing.assert_allclose(jax.jit(lambda r, o=options: run(r, **o))(0.1), run(0.1, **options), rtol=1e-6)


# A metric of the user.

METRICS = {
    "RMSProp": (optax.rmsprop, lambda state: jax.tree.map(lambda v: jnp.sqrt(v + 1e-8), optax.tree.get(state, "nu"))),
    "AMSGrad": (
        optax.amsgrad,
        lambda state: jax.tree.map(lambda v: jnp.sqrt(v) + 1e-8, optax.tree.get(state, "nu_max")),
    ),
    "a number": (lambda rate: sgd(times(0.25)(rate)), lambda state: {"w": 4.0, "matrix": 4.0, "free": 4}),
    "RMSProp, without its root": (
        lambda rate: optax.rmsprop(rate, eps=1e-4),
        lambda state: jax.tree.map(jnp.sqrt, optax.tree.get(state, "nu")),
    ),
    "the D of Adam for RMSProp": (optax.rmsprop, lambda state: {"w": 1.0}),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_may_be_a_function(name):
    make, metric = METRICS[name]
    result = ends(make, rates=(RATE,), metric=metric)
    if name in ("RMSProp", "AMSGrad", "a number"):
        assert result == "right"
    else:
        assert "its metric is not known" in result


@pytest.mark.parametrize("tree", [{"w": None}, {"w": jnp.ones(2)}, {"free": jnp.ones(2)}, {"w": "x"}, {"w": True}, 1.0])
def test_what_a_metric_must_return(tree):
    tx = jaxreg.proximal(optax.sgd(0.1), RULES, 0.1, metric=lambda state: tree)
    with pytest.raises(
        ValueError, match=r"at `w`, under rule 0 .*`metric` must return a tree with a number or an array"
    ):
        tx.init(PARAMS)


@pytest.mark.parametrize("regularizer", [jaxreg.MCP(), jaxreg.Nuclear(), jaxreg.L0()])
def test_a_regularizer_needs_a_prox_in_the_metric_that_is_found(regularizer):
    tx = jaxreg.proximal(optax.adam(0.1), Rules(("matrix", regularizer)), 0.1)
    with pytest.raises(
        ValueError, match=r"at `matrix`, under rule 0 .*has no prox in the metric of Adam; take metric="
    ):
        tx.init(PARAMS)
    jaxreg.proximal(optax.sgd(0.1), Rules(("matrix", regularizer)), 0.1).init(PARAMS)
    jaxreg.proximal(optax.adam(0.1), Rules(("matrix", regularizer)), 0.1, metric="euclidean").init(PARAMS)
    # A number for D is a single step.
    jaxreg.proximal(optax.sgd(0.1), Rules(("matrix", regularizer)), 0.2, metric=lambda state: {"matrix": 2.0}).init(
        PARAMS
    )


# The probe.


@pytest.mark.parametrize("leaves", [4, 40])
def test_equal_parameters_are_probed_once(leaves, monkeypatch):
    """The work after tracing is that of the distinct parameters, here of two ranks, behind one norm of all."""
    seen = []

    def counted(closed, classes, once_each=_probe._once_each):
        result = once_each(closed, classes)
        seen.append(result[0])
        return result

    monkeypatch.setattr(_probe, "_once_each", counted)
    params = {f"{i}": jnp.ones((2,) * (1 + i % 2)) for i in range(leaves)}
    tx = jaxreg.proximal(optax.adam(0.1), Rules((r"", L1(0.1))), 0.1)
    tx.init(params)
    assert max(map(len, seen)) < 80


def test_parameters_that_only_later_updates_tell_apart_are_told_apart():
    def late(factor):
        return optax.adam(optax.piecewise_constant_schedule(0.1, {1_000: factor}))

    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    for factor, message in ((1.0, None), (0.5, "at `b`, under rule 0 .* 0.5 times as long")):
        inner = optax.partition({"a": late(1.0), "b": late(factor)}, {"a": "a", "b": "b"})
        tx = jaxreg.proximal(inner, Rules((r"", L1(0.1))), 0.1)
        if message is None:
            tx.init(params)
        else:
            with pytest.raises(ValueError, match=message):
                tx.init(params)


MESHES = {kind: jax.make_mesh((8,), ("d",), axis_types=(kind,)) for kind in (AxisType.Auto, AxisType.Explicit)}


def stepped(tx, params):
    return tx.update(params, tx.init(params), params)


def under(context):
    def init(tx, params):
        with context():
            jax.jit(tx.init)(params)

    return init


def in_a_mesh(kind):
    def init(tx, params):
        mesh = MESHES[kind]
        with jax.set_mesh(mesh):
            whole = jax.tree.map(lambda p: jnp.resize(p, (8, 4)), params)
            params = jax.device_put(whole, NamedSharding(mesh, P("d")))
            jax.jit(tx.update)(params, tx.init(params), params)

    return init


def in_a_shard(kind):
    def init(tx, params):
        mesh, whole = MESHES[kind], jax.tree.map(lambda p: jnp.resize(p, (8, 4)), params)
        sharded = jax.device_put(whole, NamedSharding(mesh, P("d")))
        jax.jit(jax.shard_map(lambda p: stepped(tx, p)[0], mesh=mesh, in_specs=P("d"), out_specs=P("d")))(sharded)

    return init


class Module(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones((2, 3)))


def nnx_optimizer(tx, params):
    model = Module()
    nnx.Optimizer(model, tx, wrt=nnx.Param).update(model, nnx.grad(lambda model: jnp.sum(model.w[...]))(model))


class Equinox(eqx.Module):
    w: jax.Array
    function: Callable


INITS = {
    "jit": lambda tx, params: jax.jit(tx.init)(params),
    "eval_shape": lambda tx, params: jax.eval_shape(tx.init, params),
    "vmap": lambda tx, params: jax.vmap(tx.init)(jax.tree.map(lambda p: jnp.stack([p, p]), params)),
    "grad": lambda tx, params: jax.grad(lambda p: jnp.sum(stepped(tx, p)[0]["w"]))(params),
    "scan": lambda tx, params: jax.lax.scan(lambda p, _: (p, tx.init(p)), params, length=2),
    "jit disabled": lambda tx, params: under(jax.disable_jit)(tx, params),
    "debug_nans": lambda tx, params: under(lambda: jax.debug_nans(True))(tx, params),
    "checking_leaks": lambda tx, params: under(jax.checking_leaks)(tx, params),
    "float64": lambda tx, params: under(lambda: jax.enable_x64(True))(tx, params),
    "an Auto mesh": in_a_mesh(AxisType.Auto),
    "an Explicit mesh": in_a_mesh(AxisType.Explicit),
    "shard_map, Auto": in_a_shard(AxisType.Auto),
    "shard_map, Explicit": in_a_shard(AxisType.Explicit),
    "MultiSteps": lambda tx, params: stepped(optax.MultiSteps(tx, 2), params),
    "map_params": lambda tx, params: optax.tree.map_params(tx, lambda leaf: leaf, tx.init(params)),
    "nnx.Optimizer": nnx_optimizer,
    "boxes": lambda tx, params: tx.init({"w": nn.Partitioned(jnp.ones((2, 2)), names=("a", "b"))}),
    "Equinox": lambda tx, params: tx.init(eqx.filter(Equinox(jnp.ones(2), jnp.tanh), eqx.is_array)),
    "a large tree": lambda tx, params: tx.init(params | {"large": jnp.ones((100, 100))}),
    "bfloat16": lambda tx, params: tx.init(jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)),
    "float16": lambda tx, params: tx.init(jax.tree.map(lambda p: p.astype(jnp.float16), params)),
    "other leaves": lambda tx, params: tx.init(
        params | {"count": jnp.arange(3), "none": None, "empty": jnp.ones((0, 2))}
    ),
}


@pytest.mark.parametrize("init", INITS.values(), ids=INITS)
def test_the_check_runs_wherever_init_does(init):
    init(jaxreg.proximal(optax.adam(0.1), RULES, 0.1), PARAMS)
    with pytest.raises(ValueError, match="its steps are 10 times as long"):
        init(jaxreg.proximal(optax.adam(0.1), RULES, 0.01), PARAMS)


def test_moments_in_bfloat16_are_near_enough():
    jaxreg.proximal(optax.adam(0.1, mu_dtype=jnp.bfloat16), RULES, 0.1).init(PARAMS)
    with pytest.raises(ValueError, match="times as long"):
        jaxreg.proximal(optax.adam(0.12, mu_dtype=jnp.bfloat16), RULES, 0.1).init(PARAMS)


# Documented limits.


@pytest.mark.parametrize("make", [sgd, optax.adam])
def test_clipping_below_the_norm_of_the_penalty(make):
    """The figures of the docstring of `proximal`: at rest, the gradient of the loss has the norm 0.15 · √100."""
    target = jnp.linspace(1.0, 2.0, 100)
    found = {}
    for bound in (1.0, 2.0):
        tx = jaxreg.proximal(optax.chain(optax.clip_by_global_norm(bound), make(RATE)), RULES, RATE)
        loss = lambda p: jnp.sum(jnp.square(p["w"] - target)) / 2  # noqa: E731
        found[bound] = np.asarray(solve(tx, loss, {"w": jnp.zeros(100)})["w"])
    assert not np.any(found[1.0])
    np.testing.assert_allclose(found[2.0], target - 0.15, atol=1e-4)
