"""Rules from Keras models, with Keras's own losses and projections as the oracle."""

import re
import subprocess
import sys
import textwrap
import warnings

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras import layers

import jaxreg
from jaxreg import constraints

pytestmark = pytest.mark.standard_promotion

R, C = keras.regularizers, keras.constraints


@pytest.fixture(scope="module", autouse=True)
def no_compiled_initializers():
    """Every weight is given random values here, so Keras need not compile a sampler for each shape."""
    patch = pytest.MonkeyPatch()
    kinds = keras.initializers
    for kind in (kinds.VarianceScaling, kinds.RandomUniform, kinds.Orthogonal):
        patch.setattr(kind, "__call__", lambda self, shape, dtype=None: np.zeros(shape, dtype))
    yield
    patch.undo()


def randomize(model):
    """Gives every weight of a floating dtype random values, so that no penalty is 0 by chance."""
    rng = np.random.default_rng(0)
    for v in model.weights:
        if "float" in v.dtype:
            v.assign(rng.normal(size=v.shape).astype(np.float32))
    return model


def built(shape, *stack):
    return randomize(keras.Sequential([keras.Input(shape), *stack]))


def params_of(model):
    return {v.path: v.value for v in model.trainable_variables}


def check_penalties(model):
    """Compares each penalty with the loss that Keras has for the variable, and their sum with the sum of the losses."""
    rules = jaxreg.from_keras(model, constraints=False)
    paths = [v.path for v in model.trainable_variables if v.regularizer is not None]
    losses = list(map(float, model.losses))
    found, total = jax.jit(lambda params: (rules.breakdown(params), rules(params)))(params_of(model))
    assert rules.patterns == tuple(f"^{re.escape(path)}$" for path in paths)
    assert found.keys() == set(paths)
    np.testing.assert_allclose([found[path] for path in paths], losses, rtol=2e-6)
    np.testing.assert_allclose(total, sum(losses), rtol=2e-6)
    return rules


def shared_layer():
    layer = layers.Dense(4, kernel_regularizer="l2", name="twice")
    a, b = keras.Input((4,)), keras.Input((4,))
    return keras.Model([a, b], layer(a) + layer(layer(b)))


def nested():
    inner = built((4,), layers.Dense(4, kernel_regularizer="l1"), layers.Dense(4, bias_regularizer="l2"))
    x = keras.Input((4,))
    y = inner(inner(x))
    return keras.Model(x, layers.Dense(1, kernel_regularizer=R.L1L2(0.1, 0.2))(y))


def attention(**given):
    x = keras.Input((6, 8))
    return keras.Model(x, layers.MultiHeadAttention(2, 3, **given)(x, x))


def with_lora():
    model = built((4,), layers.Dense(3, kernel_regularizer="l2", bias_regularizer="l1"), layers.Dense(2))
    model.layers[0].enable_lora(2)
    return model


def quantized():
    model = built((4,), layers.Dense(3, kernel_regularizer="l2", bias_regularizer="l1"))
    with warnings.catch_warnings(action="ignore"):
        model.quantize("int8")
    return model


def frozen_in_part():
    model = built((4,), layers.Dense(3, kernel_regularizer="l2"), layers.Dense(2, kernel_regularizer="l1"))
    model.layers[0].trainable = False
    return model


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.Dense(3, kernel_regularizer="l2")
        self.scale = self.add_weight(shape=(3,), initializer="ones", regularizer="l1", name="a.scale(1)")

    def call(self, x):
        return self.first(x) * self.scale


def subclassed():
    model = Subclassed()
    model(np.ones((1, 4)))
    return randomize(model)


MODELS = {
    "names": lambda: built((4,), layers.Dense(3, kernel_regularizer="l2", bias_regularizer="l1")),
    "orthogonal rows": lambda: built((4,), layers.Dense(3, kernel_regularizer="orthogonal_regularizer")),
    "orthogonal columns": lambda: built(
        (4,), layers.Dense(3, kernel_regularizer=R.OrthogonalRegularizer(0.3, "columns"))
    ),
    "a dict": lambda: built(
        (4,), layers.Dense(3, kernel_regularizer={"class_name": "L1L2", "config": {"l1": 0.3, "l2": 0.1}})
    ),
    "convolution": lambda: built(
        (5, 5, 2), layers.Conv2D(3, 2, kernel_regularizer=R.L1L2(0.1, 0.2), bias_regularizer="l2")
    ),
    "depthwise": lambda: built((5, 5, 2), layers.DepthwiseConv2D(2, depthwise_regularizer="l2", bias_regularizer="l1")),
    "separable": lambda: built(
        (5, 2), layers.SeparableConv1D(3, 2, depthwise_regularizer="l2", pointwise_regularizer="l1")
    ),
    "embedding": lambda: built((3,), layers.Embedding(7, 4, embeddings_regularizer="l2")),
    "normalization": lambda: built(
        (4,),
        layers.BatchNormalization(gamma_regularizer="l1", beta_regularizer="l2"),
        layers.LayerNormalization(gamma_regularizer="l2"),
        layers.PReLU(alpha_regularizer="l1"),
    ),
    "einsum": lambda: built((3, 4), layers.EinsumDense("abc,cde->abde", (None, 2, 3), kernel_regularizer="l2")),
    "attention": lambda: attention(kernel_regularizer="l2", bias_regularizer="l1"),
    "recurrent": lambda: built(
        (3, 2), layers.Bidirectional(layers.GRU(2, kernel_regularizer="l1", recurrent_regularizer="l2"))
    ),
    "a cell": lambda: built((3, 2), layers.RNN(layers.LSTMCell(2, bias_regularizer="l2", recurrent_regularizer="l1"))),
    "a wrapper": lambda: built((3, 2), layers.TimeDistributed(layers.Dense(2, kernel_regularizer="l1"))),
    "shared": shared_layer,
    "nested": nested,
    "lora": with_lora,
    "quantized": quantized,
    "frozen": frozen_in_part,
    "subclassed": subclassed,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_penalty_is_that_of_keras(name):
    check_penalties(MODELS[name]())


def test_strengths_are_as_they_were_written():
    """Keras holds some of them in float32."""
    given = R.L1(0.01), R.L2(0.3), R.L1L2(1e-6, 0.1), R.OrthogonalRegularizer(1e-4, "columns")
    assert given[0].get_config() == {"l1": float(np.float32(0.01))}
    rules = jaxreg.from_keras(Weights(**{name: ((2, 2), r, None) for name, r in zip("abcd", given, strict=True)}))
    written = jaxreg.L1(0.01), jaxreg.L2(0.3), jaxreg.L1L2(1e-6, 0.1), jaxreg.OrthogonalRegularizer(1e-4, "columns")
    assert rules.regularizers == written


def test_a_shared_weight_counts_once():
    assert len(jaxreg.from_keras(shared_layer()).patterns) == 1


def test_a_layer_is_taken_as_a_model_is():
    layer = layers.Dense(3, kernel_regularizer="l2")
    layer.build((None, 4))
    check_penalties(layer)


def test_a_frozen_weight_has_no_rule_until_it_is_trained_again():
    model = frozen_in_part()
    frozen, free = (layer.kernel.path for layer in model.layers)
    assert jaxreg.from_keras(model).patterns == (f"^{free}$",)
    assert jaxreg.from_keras(model).matches({v.path: v.value for v in model.variables})[frozen] is None
    model.layers[0].trainable = True
    assert len(check_penalties(model).patterns) == 2


def test_rules_take_the_tree_that_keras_makes_of_the_state_too():
    model = nested()
    model.compile("sgd")
    tree = model.get_state_tree("backend_tensor")["trainable_variables"]
    rules = jaxreg.from_keras(model)
    np.testing.assert_array_equal(rules(tree), rules(params_of(model)))


def test_the_gradient_in_a_chain_is_that_of_the_losses():
    model = built((4,), layers.Dense(3, kernel_regularizer=R.L1L2(0.1, 0.2), name="a"), layers.Dense(2, name="b"))
    params = params_of(model)

    def losses(values):
        return sum(model.stateless_call(values, [], jnp.ones((1, 4)), return_losses=True)[2])

    expected = jax.jit(jax.grad(losses))(list(params.values()))
    tx = jaxreg.add_penalty_gradients(jaxreg.from_keras(model))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for path, slope in zip(params, expected, strict=True):
        np.testing.assert_allclose(updates[path], slope, rtol=1e-6)


# Constraints. Keras divides by the norm plus 1e-7, so the norms of these arrays are not small.

CONSTRAINTS = {
    "dense": ((4, 3), C.MaxNorm(0.5), constraints.MaxNorm(0.5)),
    "a name": ((4, 3), "max_norm", constraints.MaxNorm(2.0)),
    "an integer": ((4, 3), C.MaxNorm(1), constraints.MaxNorm(1.0)),
    "convolution": ((2, 2, 3, 4), C.MaxNorm(0.5, axis=[0, 1, 2]), constraints.MaxNorm(0.5)),
    "convolution by default": ((2, 2, 3, 4), C.MaxNorm(0.5), constraints.MaxNorm(0.5, group_axis=(1, 2, 3))),
    "an axis from the end": ((4, 3), C.MaxNorm(0.5, axis=-1), constraints.MaxNorm(0.5, group_axis=(0,))),
    "axes from both ends": ((2, 3, 4), C.UnitNorm(axis=(0, -1)), constraints.UnitNorm(group_axis=(1,))),
    "all axes": ((4, 3), C.MaxNorm(0.5, axis=(0, 1)), constraints.MaxNorm(0.5, group_axis=())),
    "no axis named": ((4, 3), C.UnitNorm(axis=None), constraints.UnitNorm(group_axis=())),
    "single weights": ((4, 3), C.MaxNorm(0.5, axis=()), constraints.MaxNorm(0.5, group_axis=(0, 1))),
    "bias": ((5,), C.MaxNorm(0.5), constraints.MaxNorm(0.5, group_axis=())),
    "unit norm": ((4, 3), "unit_norm", constraints.UnitNorm()),
    "between norms": ((4, 3), C.MinMaxNorm(1, 1.5), constraints.MinMaxNorm(1.0, 1.5)),
    "a rate": ((4, 3), C.MinMaxNorm(0.1, 0.5, 0.25), constraints.MinMaxNorm(0.1, 0.5, 0.25)),
    "non-negative": ((4, 3), C.NonNeg(), constraints.NonNeg()),
}


class Weights(layers.Layer):
    """A layer of weights with any shape, regularizer and constraint."""

    def __init__(self, **given):
        super().__init__(name="weights")
        for name, (shape, regularizer, constraint) in given.items():
            self.add_weight(shape=shape, initializer="zeros", regularizer=regularizer, constraint=constraint, name=name)
        self.built = True
        randomize(self)


@pytest.fixture(scope="module")
def constrained():
    layer = Weights(**{name: (shape, None, given) for name, (shape, given, _) in CONSTRAINTS.items()})
    rules = jaxreg.from_keras(layer)
    return layer, rules, jax.jit(rules.prox)(params_of(layer))


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_the_projection_is_that_of_keras(name, constrained):
    layer, rules, projected = constrained
    place = list(CONSTRAINTS).index(name)
    variable = layer.trainable_variables[place]
    assert rules.regularizers[place] == CONSTRAINTS[name][2]
    expected = np.asarray(variable.constraint(variable.value))
    assert np.abs(expected - np.asarray(variable.value)).max() > 0.1 or name == "a name"
    np.testing.assert_allclose(projected[variable.path], expected, rtol=1e-5, atol=1e-6)


def test_a_proximal_optimizer_ends_its_steps_as_one_of_keras_does():
    model = built((4,), layers.Dense(3, kernel_constraint=C.MaxNorm(0.5), bias_constraint="non_neg"))
    params = params_of(model)
    grads = {path: np.ones(p.shape, np.float32) for path, p in params.items()}
    tx = jaxreg.proximal(optax.sgd(0.1), jaxreg.from_keras(model))

    @jax.jit
    def step(params):
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates)

    new = step(params)
    keras.optimizers.SGD(0.1).apply([grads[path] for path in params], model.trainable_variables)
    for v in model.trainable_variables:
        np.testing.assert_allclose(new[v.path], v.value, rtol=1e-5, atol=1e-6)


def test_a_variable_with_both_has_their_sum_and_the_flags_take_one():
    model = Weights(a=((4, 3), R.L1(0.5), "non_neg"), b=((4, 3), "l2", None), c=((4, 3), None, "unit_norm"))
    rules = jaxreg.from_keras(model)
    l1 = jaxreg.get(R.L1(0.5))
    assert rules.regularizers == (l1 + constraints.NonNeg(), jaxreg.L2(0.01), constraints.UnitNorm())
    assert jaxreg.from_keras(model, constraints=False).regularizers == (l1, jaxreg.L2(0.01))
    assert jaxreg.from_keras(model, regularizers=False).regularizers == (constraints.NonNeg(), constraints.UnitNorm())
    with pytest.raises(TypeError, match="has a constraint, which has no value"):
        rules(params_of(model))
    value = np.asarray(model.trainable_variables[0].value)
    np.testing.assert_allclose(rules.prox(params_of(model), 0.2)["weights/a"], np.maximum(value - 0.1, 0), atol=1e-7)


# A user's own classes and functions.


class Cubes(R.Regularizer):
    def __call__(self, x):
        return 0.1 * keras.ops.sum(keras.ops.abs(x) ** 3)


class HalfL2(R.L2):
    def __call__(self, x):
        return 0.5 * super().__call__(x)


class L1(R.Regularizer):
    """A regularizer that has a name of Keras, and is not Keras's."""

    def __call__(self, x):
        return 7.0 * keras.ops.sum(keras.ops.abs(x))


def fourth_powers(x):
    return keras.ops.sum(x**4)


def name_of(own):
    return getattr(own, "__name__", type(own).__name__)


@pytest.mark.parametrize("own", [Cubes(), HalfL2(0.3), L1(), fourth_powers, jaxreg.LogSum(0.1)], ids=name_of)
def test_a_regularizer_of_ones_own_is_called_as_it_is(own):
    check_penalties(Weights(a=((4, 3), own, None), b=((2,), "l2", None)))


class Rounded(C.Constraint):
    def __call__(self, w):
        return keras.ops.round(w)


@pytest.mark.parametrize("own", [Rounded(), lambda w: keras.ops.round(w), constraints.Box(-0.5, 0.5)], ids=name_of)
def test_a_constraint_of_ones_own_projects_as_it_does_in_keras(own):
    model = Weights(a=((4, 3), None, own))
    rules = jaxreg.from_keras(model)
    (variable,) = model.trainable_variables
    np.testing.assert_array_equal(jax.jit(rules.prox)(params_of(model))["weights/a"], own(variable.value))
    assert rules == jaxreg.from_keras(model)


def test_a_constraint_of_ones_own_has_no_config():
    with pytest.raises(TypeError, match=r"Rounded has no form in JSON; write it as a subclass of `jaxreg.constraints"):
        jaxreg.from_keras(Weights(a=((4, 3), None, Rounded()))).get_config()


# What rules cannot carry is named once.


class AddsLoss(layers.Layer):
    def call(self, x):
        self.add_loss(keras.ops.sum(x))
        return x


class AddsLossElsewhere(layers.Layer):
    def call(self, x):
        self.more(x)
        return x

    def more(self, x):
        self.add_loss(keras.ops.sum(x))


def test_what_is_left_out_is_named_in_one_warning():
    model = built(
        (4,),
        layers.Dense(3, kernel_regularizer="l2", activity_regularizer=R.L1(0.5), name="a"),
        layers.Dense(3, activity_regularizer=fourth_powers, name="b"),
        AddsLoss(name="c"),
        AddsLossElsewhere(name="d"),
    )
    model(np.ones((1, 4)))
    with pytest.warns(UserWarning, match="left out") as caught:
        rules = jaxreg.from_keras(model)
    assert len(rules.patterns) == 1
    (warning,) = caught
    assert warning.filename == __file__
    text = str(warning.message)
    path = model.name
    assert f"`{path}/a`" in text
    assert f"`{path}/b`" in text
    activities, losses = text.split(". It left out ")
    assert "for outputs: write `jaxreg.activity_penalty(jaxreg.Rules((" in activities
    assert "`c`, `d`" in losses.replace(f"{path}/", "").replace("`d`, `c`", "`c`, `d`")
    assert "`add_loss`" in losses


def test_the_activity_penalty_that_the_warning_names_is_that_of_keras():
    dense = layers.Dense(3, activity_regularizer=R.L1(0.5), kernel_regularizer="l2", name="a.b")
    model = built((4,), dense)
    x = jnp.ones((5, 4))
    with pytest.warns(UserWarning, match="left out") as caught:
        rules = jaxreg.from_keras(model)
    written = re.search(r"write `(.*)`", str(caught[0].message)).group(1)
    activity = eval(written, {"jaxreg": jaxreg, "outputs": model(x), "n": 5})
    np.testing.assert_allclose(rules(params_of(model)) + activity, sum(model.losses), rtol=1e-6)


def test_layers_that_are_not_built_are_named():
    class Unused(Subclassed):
        def __init__(self):
            super().__init__()
            self.unused = layers.Dense(3, kernel_regularizer="l2", name="unused")
            self.plain = layers.Dense(3, name="plain")

    model = Unused()
    with warnings.catch_warnings(action="ignore"):  # Keras has a warning of its own
        model(np.ones((1, 4)))
    with pytest.warns(UserWarning, match=r"all of `unused`, which .* not built: call them on data first\.$"):
        jaxreg.from_keras(model)


def test_a_flag_that_is_off_is_not_warned_about():
    model = built((4,), layers.Dense(3, activity_regularizer="l1", kernel_constraint="non_neg"))
    jaxreg.from_keras(model, regularizers=False)


def test_on_another_backend_the_classes_of_keras_are_carried_and_ones_own_are_named():
    code = """
        import warnings
        import keras, numpy as np, jaxreg

        class Mine(keras.regularizers.Regularizer):
            def __call__(self, x):
                return keras.ops.sum(x)

        class Own(keras.constraints.Constraint):
            pass

        dense = keras.layers.Dense
        model = keras.Sequential([
            keras.Input((4,)),
            dense(3, kernel_regularizer="l2", bias_regularizer=Mine(), kernel_constraint="max_norm", name="a"),
            dense(2, kernel_regularizer=jaxreg.L1(0.1), bias_constraint=Own(), name="b"),
        ], name="net")
        with warnings.catch_warnings(record=True, action="always") as caught:
            rules = jaxreg.from_keras(model)
        print(rules)
        print(len(caught), caught[0].message)
        with warnings.catch_warnings(action="ignore"):
            penalties = jaxreg.from_keras(model, constraints=False)
        params = {v.path: v.value for v in model.trainable_variables}
        a, b = params["net/a/kernel"], params["net/b/kernel"]
        assert type(a) is np.ndarray
        np.testing.assert_allclose(penalties(params), 0.01 * np.sum(a**2) + 0.1 * np.sum(np.abs(b)), rtol=1e-6)
    """
    environment = {"KERAS_BACKEND": "numpy", "JAX_PLATFORMS": "cpu", "PATH": ""}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    rules, warning = printed.splitlines()
    assert rules == ("Rules(('^net/a/kernel$', L2(l2=0.01) + MaxNorm(max_value=2.0)), ('^net/b/kernel$', L1(l1=0.1)))")
    assert warning.startswith("1 jaxreg.from_keras left out the regularizer Mine of `net/a/bias`, which computes with ")
    assert "It left out the constraint Own of `net/b/bias`" in warning
    assert "`jaxreg.Regularizer`" in warning
    assert "`jaxreg.constraints.Constraint`" in warning


# Errors.


def same_paths():
    class Twins(keras.Model):
        def __init__(self):
            super().__init__(name="twins")
            self.a, self.b = (layers.Dense(2, name="same", kernel_regularizer="l2") for _ in range(2))

        def call(self, x):
            return self.a(x) + self.b(x)

    model = Twins()
    model(np.ones((1, 2)))
    return model


def all_frozen():
    model = built((4,), layers.Dense(3, kernel_regularizer="l2", name="a"))
    model.trainable = False
    return model


ERRORS = {
    "no model": (lambda: jaxreg.from_keras({"a": 1}), TypeError, "`model` must be a model of Keras 3, got dict"),
    "a class": (lambda: jaxreg.from_keras(Subclassed), TypeError, "`model` must be a model of Keras 3, got type"),
    "not built": (
        lambda: jaxreg.from_keras(keras.Sequential([layers.Dense(3, kernel_regularizer="l2")], name="net")),
        ValueError,
        "`model` must be built, so that it has weights, got 'net'",
    ),
    "nothing": (
        lambda: jaxreg.from_keras(keras.Sequential([keras.Input((2,)), layers.Dense(3)], name="net")),
        ValueError,
        "`model` must have a regularizer or constraint on a trainable variable, got 'net', which has none$",
    ),
    "no regularizer": (
        lambda: jaxreg.from_keras(Weights(a=((2,), None, "non_neg")), constraints=False),
        ValueError,
        "`model` must have a regularizer on a trainable variable, got 'weights', which has none$",
    ),
    "activities alone": (
        lambda: jaxreg.from_keras(built((4,), layers.Dense(3, activity_regularizer="l2", name="a"))),
        ValueError,
        "which has none; it has the activity regularizers of `.*/a`, .* write `jaxreg.activity_penalty",
    ),
    "all frozen": (
        lambda: jaxreg.from_keras(all_frozen()),
        ValueError,
        "which has none; `.*/a/kernel` has one, and is frozen$",
    ),
    "two with one path": (
        lambda: jaxreg.from_keras(same_paths()),
        ValueError,
        "trainable variables of `model` must have distinct paths, got 2 with the path `twins/same/kernel`",
    ),
    "an axis out of range": (
        lambda: jaxreg.from_keras(Weights(a=((2, 3), None, C.MaxNorm(axis=2)))),
        ValueError,
        r"a constraint at `weights/a` that cannot be taken: `axis` must lie in \[-2, 2\) for rank 2, got \(2,\)",
    ),
    "a negative norm": (
        lambda: jaxreg.from_keras(Weights(a=((2, 3), None, C.MaxNorm(-1.0)))),
        ValueError,
        "at `weights/a` that cannot be taken: `max_value` must be finite and >= 0, got -1.0",
    ),
    "neither": (
        lambda: jaxreg.from_keras(all_frozen(), regularizers=False, constraints=False),
        ValueError,
        "`regularizers` or `constraints` must be True",
    ),
    "a flag that is no bool": (
        lambda: jaxreg.from_keras(all_frozen(), regularizers=1),
        TypeError,
        "`regularizers` must be a bool, got int 1",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()


def test_where_keras_has_no_number_jaxreg_has_one():
    """A single row has no pair, and Keras refuses kernels of a rank other than 2."""
    one_row = Weights(a=((1, 3), R.OrthogonalRegularizer(0.5), None))
    assert jaxreg.from_keras(one_row)(params_of(one_row)) == 0.0
    kernel = Weights(a=((2, 2, 3), R.OrthogonalRegularizer(0.5, "columns"), None))
    with pytest.raises(ValueError, match="rank 2"):
        _ = kernel.losses
    matrix = np.asarray(kernel.trainable_variables[0].value).reshape(4, 3)
    expected = R.OrthogonalRegularizer(0.5, "columns")(jnp.asarray(matrix))
    np.testing.assert_allclose(jaxreg.from_keras(kernel)(params_of(kernel)), expected, rtol=1e-6)
