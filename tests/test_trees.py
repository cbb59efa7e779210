"""One table of trees: what their paths are, and that every method of the rules and every transform works in each."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import equinox as eqx
import flax.linen as nn
import flax.struct
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from guides import assert_shown, table

import jaxreg
from jaxreg import L1, L1L2, L2, Rules, add_penalty_gradients, proximal_sgd

# Layers of other libraries mix dtypes and ranks.
pytestmark = pytest.mark.standard_promotion

INPUTS = jnp.ones((2, 4))


class Tree(NamedTuple):
    """A row of the table.

    Attributes:
      library, name: what the page calls it.
      make: returns the tree that rules take.
      path: the path of one parameter that the pattern meets.
      pattern: the pattern of the rule.
      read: returns the parameters that the pattern meets, by path, from the tree or another one of its structure.
      params: returns what optax takes.
      params_text: how the page writes that.
      grad: the gradient of a function of the tree.
      grad_text: how the page writes that.
    """

    library: str
    name: str
    make: Callable[[], Any]
    path: str
    pattern: str
    read: Callable[[Any], dict[str, Any]]
    params: Callable[[Any], Any] = lambda tree: tree
    params_text: str = "the same tree"
    grad: Callable[..., Any] = jax.grad
    grad_text: str = "`jax.grad`"

    def __repr__(self) -> str:
        return f"{self.library}, {self.name}"


# Linen.


class Linen(nn.Module):
    boxed: Any = None
    layer: Any = nn.Dense

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        options = {"kernel_init": self.boxed(init, ("rows", "columns"))} if self.boxed else {}
        x = self.layer(3, **options)(x)
        return nn.Dense(2)(nn.relu(x))


class LinenNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(3))(x)


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4)(x), None


class LinenStack(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.scan(LinenLayer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()(x, None)[0]


class LinenCopies(nn.Module):
    @nn.compact
    def __call__(self, x):
        copies = nn.vmap(nn.Dense, in_axes=None, axis_size=3, variable_axes={"params": 0}, split_rngs={"params": True})
        return copies(3)(x)


@functools.cache
def linen(module):
    return module.init(jax.random.key(0), INPUTS)["params"]


def keys(*names, unbox=lambda leaf: leaf):
    """Returns a function that reads the kernels of some layers from nested dicts."""
    return lambda tree: {f"{name}/kernel": unbox(tree[name]["kernel"]) for name in names}


def box_value(leaf):
    return leaf.value if isinstance(leaf, nn.Partitioned) else leaf


# NNX.


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.fc = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)


class NnxShared(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.second = self.first


class NnxList(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)])


class NnxStack(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.vmap(lambda rngs: nnx.Linear(4, 4, rngs=rngs))(rngs.split(3))


class NnxLora(nnx.Module):
    def __init__(self, rngs):
        self.fc = nnx.LoRALinear(4, 3, lora_rank=2, rngs=rngs)


KERNELS = nnx.All(nnx.Param, nnx.PathContains("kernel"))


def of_nnx(name, model, path, *names, pattern=r"kernel$", last="kernel", params=None, **texts):
    """A row of NNX. The model and its state are read alike."""

    def value(leaf):
        return leaf[...] if isinstance(leaf, nnx.Variable) else leaf

    def part(tree, key):
        if key.isdigit():
            return tree[int(key)]
        return tree[key] if isinstance(tree, nnx.State | dict) else getattr(tree, key)

    def read(tree):
        return {f"{name}/{last}": value(functools.reduce(part, f"{name}/{last}".split("/"), tree)) for name in names}

    options = {
        "params": lambda model: nnx.state(model, nnx.Param),
        "params_text": "`nnx.state(model, nnx.Param)`",
        "grad": nnx.grad,
        "grad_text": "`nnx.grad`",
    }
    if params is not None:
        options = {"params": params, **texts}
    return Tree("Flax NNX", name, model, path, pattern, read, **options)


def nnx_model(cls):
    return functools.cache(lambda: cls(nnx.Rngs(0)))


def bridged():
    return nnx.bridge.ToNNX(Linen(), rngs=nnx.Rngs(0)).lazy_init(INPUTS)


# Other trees.


class Layer(NamedTuple):
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    kernel: Any
    bias: Any


@flax.struct.dataclass
class Struct:
    kernel: Any
    bias: Any
    name: str = flax.struct.field(pytree_node=False, default="fc")


def arrays(make):
    rng = np.random.default_rng(0)
    return make(kernel=jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), bias=jnp.ones(3))


def attributes(tree):
    return {"fc/kernel": tree["fc"].kernel}


@functools.cache
def haiku():
    model = hk.transform(lambda x: hk.nets.MLP([3, 2], name="mlp")(x))
    return model.init(jax.random.key(0), INPUTS)


@functools.cache
def keras_variables():
    layers = [keras.Input((4,)), keras.layers.Dense(3, name="fc"), keras.layers.Dense(2, name="head")]
    model = keras.Sequential(layers, name="net")
    return {v.path: v.value for v in model.trainable_variables}


@functools.cache
def mlp():
    return eqx.nn.MLP(4, 2, 3, 1, key=jax.random.key(0))


def mlp_weights(model):
    return {f"layers/{index}/weight": model.layers[index].weight for index in range(2)}


EQUINOX = {"grad": eqx.filter_grad, "grad_text": "`eqx.filter_grad`"}
TWO = keys("Dense_0", "Dense_1")
_linen, _other = functools.partial(Tree, "Flax linen"), functools.partial(Tree, "other trees")
TREES = (
    _linen('`variables["params"]`', lambda: linen(Linen()), "Dense_0/kernel", r"kernel$", TWO),
    _linen("`FrozenDict`", lambda: freeze(linen(Linen())), "Dense_0/kernel", r"kernel$", TWO),
    _linen(
        "`nn.Partitioned` boxes",
        lambda: linen(Linen(nn.with_partitioning)),
        "Dense_0/kernel",
        r"kernel$",
        keys("Dense_0", "Dense_1", unbox=box_value),
    ),
    _linen(
        "`nn.LogicallyPartitioned` boxes",
        lambda: linen(Linen(nn.with_logical_partitioning)),
        "Dense_0/kernel",
        r"kernel$",
        keys("Dense_0", "Dense_1", unbox=box_value),
    ),
    _linen(
        "a layer under `nn.remat`",
        lambda: linen(Linen(layer=nn.remat(nn.Dense))),
        "CheckpointDense_0/kernel",
        r"kernel$",
        keys("CheckpointDense_0", "Dense_0"),
    ),
    _linen(
        "a stack by `nn.scan`",
        lambda: linen(LinenStack()),
        "ScanLinenLayer_0/Dense_0/kernel",
        r"kernel$",
        lambda tree: {"ScanLinenLayer_0/Dense_0/kernel": tree["ScanLinenLayer_0"]["Dense_0"]["kernel"]},
    ),
    _linen("copies by `nn.vmap`", lambda: linen(LinenCopies()), "VmapDense_0/kernel", r"kernel$", keys("VmapDense_0")),
    _linen(
        "the scale of `nn.WeightNorm`",
        lambda: linen(LinenNorm()),
        "WeightNorm_0/Dense_0/kernel/scale",
        r"/scale$",
        lambda tree: {"WeightNorm_0/Dense_0/kernel/scale": tree["WeightNorm_0"]["Dense_0/kernel/scale"]},
    ),
    of_nnx("a `Module`", nnx_model(Nnx), "fc/kernel", "fc", "head"),
    of_nnx("layers in an `nnx.List`", nnx_model(NnxList), "layers/0/kernel", "layers/0", "layers/1"),
    of_nnx("a stack by `nnx.vmap`, for `nnx.scan`", nnx_model(NnxStack), "layers/kernel", "layers"),
    of_nnx("a layer that is shared", nnx_model(NnxShared), "first/kernel", "first"),
    of_nnx("LoRA", nnx_model(NnxLora), "fc/lora/lora_a", "fc/lora", pattern=r"lora_a$", last="lora_a"),
    of_nnx("a linen module in `nnx.bridge.ToNNX`", functools.cache(bridged), "Dense_0/kernel", "Dense_0", "Dense_1"),
    of_nnx(
        "an `nnx.State`",
        lambda: nnx.state(nnx_model(Nnx)(), nnx.Param),
        "fc/kernel",
        "fc",
        "head",
        params=lambda state: state,
    ),
    of_nnx(
        'a part, by `nnx.PathContains("kernel")`',
        lambda: nnx.state(nnx_model(Nnx)(), KERNELS),
        "fc/kernel",
        "fc",
        "head",
        params=lambda state: state,
    ),
    of_nnx(
        "`nnx.to_pure_dict(state)`",
        lambda: nnx.to_pure_dict(nnx.state(nnx_model(Nnx)(), nnx.Param)),
        "fc/kernel",
        "fc",
        "head",
        params=lambda tree: tree,
    ),
    Tree(
        "Equinox",
        "a module",
        mlp,
        "layers/0/weight",
        r"weight$",
        mlp_weights,
        params=lambda model: eqx.filter(model, eqx.is_inexact_array),
        params_text="`eqx.filter(model, eqx.is_inexact_array)`",
        **EQUINOX,
    ),
    Tree(
        "Equinox",
        "its arrays, by `eqx.filter` or `eqx.partition`",
        lambda: eqx.filter(mlp(), eqx.is_inexact_array),
        "layers/0/weight",
        r"weight$",
        mlp_weights,
    ),
    Tree(
        "Haiku",
        "the dict of `init`",
        haiku,
        "mlp/~/linear_0/w",
        r"/w$",
        lambda tree: {f"mlp/~/linear_{i}/w": tree[f"mlp/~/linear_{i}"]["w"] for i in range(2)},
    ),
    Tree(
        "Keras",
        "`{v.path: v.value for v in model.trainable_variables}`",
        keras_variables,
        "net/fc/kernel",
        r"kernel$",
        lambda tree: {path: tree[path] for path in ("net/fc/kernel", "net/head/kernel")},
    ),
    _other("dicts", lambda: {"fc": arrays(dict)}, "fc/kernel", r"kernel$", keys("fc")),
    _other(
        "lists and tuples",
        lambda: [(arrays(dict),), arrays(dict)],
        "0/0/kernel",
        r"kernel$",
        lambda tree: {"0/0/kernel": tree[0][0]["kernel"], "1/kernel": tree[1]["kernel"]},
    ),
    _other("a `NamedTuple`", lambda: {"fc": arrays(Layer)}, "fc/kernel", r"kernel$", attributes),
    _other(
        "a dataclass, by `jax.tree_util.register_dataclass`",
        lambda: {"fc": arrays(Registered)},
        "fc/kernel",
        r"kernel$",
        attributes,
    ),
    _other("a `flax.struct.dataclass`", lambda: {"fc": arrays(Struct)}, "fc/kernel", r"kernel$", attributes),
)
every_tree = pytest.mark.parametrize("row", TREES, ids=str)

L1_STRENGTH, L2_STRENGTH, STEP = 0.02, 0.25, 0.5


def in_numpy(read):
    return {path: np.asarray(value, np.float64) for path, value in read.items()}


def assert_close(got, expected):
    assert set(got) == set(expected)
    for path, value in expected.items():
        np.testing.assert_allclose(got[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


def total(tree):
    """The sum of all absolute values, whatever the tree is made of."""
    return sum(float(np.abs(np.asarray(leaf, np.float64)).sum()) for leaf in jax.tree.leaves(tree))


@every_tree
def test_value_and_gradient(row):
    """They are those of NumPy under the documented paths. Other parameters have a gradient of 0."""
    tree, rules = row.make(), Rules((row.pattern, L1L2(L1_STRENGTH, L2_STRENGTH)))
    weights = in_numpy(row.read(tree))
    costs = {p: L1_STRENGTH * np.abs(w).sum() + L2_STRENGTH * np.square(w).sum() for p, w in weights.items()}
    assert row.path in weights
    assert_close(rules.breakdown(tree), costs)
    np.testing.assert_allclose(rules(tree), sum(costs.values()), rtol=1e-5)
    expected = {p: L1_STRENGTH * np.sign(w) + 2 * L2_STRENGTH * w for p, w in weights.items()}
    gradient = row.grad(lambda tree: rules(tree))(tree)
    assert_close(row.read(gradient), expected)
    np.testing.assert_allclose(total(gradient), total(expected), rtol=1e-5)


@every_tree
def test_prox_and_transforms(row):
    """Steps from gradients of 0 move the documented parameters alone, to what NumPy has."""
    params = row.params(row.make())
    zeros = jax.tree.map(jnp.zeros_like, params)
    rules = Rules((row.pattern, L1L2(L1_STRENGTH, L2_STRENGTH)))
    weights = in_numpy(row.read(params))
    gradients = {p: L1_STRENGTH * np.sign(w) + 2 * L2_STRENGTH * w for p, w in weights.items()}
    tx = add_penalty_gradients(rules)
    updates, state = tx.update(zeros, tx.init(params), params)
    chex.assert_trees_all_equal_structs(updates, params)
    assert_close(row.read(updates), gradients)
    np.testing.assert_allclose(total(updates), total(gradients), rtol=1e-5)
    costs = sum(L1_STRENGTH * np.abs(w).sum() + L2_STRENGTH * np.square(w).sum() for w in weights.values())
    np.testing.assert_allclose(state.penalty, costs, rtol=1e-5)

    threshold = float(np.median(np.abs(weights[row.path])))
    sparse = Rules((row.pattern, L1(threshold / STEP)))
    expected = {p: np.sign(w) * np.maximum(np.abs(w) - threshold, 0) for p, w in weights.items()}
    near = sparse.prox(params, STEP)
    tx = proximal_sgd(STEP, sparse)
    updates, _ = tx.update(zeros, tx.init(params), params)
    stepped = jax.tree.map(jnp.add, params, updates)
    for found in (near, stepped):
        chex.assert_trees_all_equal_structs(found, params)
        assert_close(row.read(found), expected)
        assert any(np.any(np.asarray(value) == 0) for value in row.read(found).values())
        np.testing.assert_allclose(total(found), total(params) - total(weights) + total(expected), rtol=1e-5)


def test_modules_of_nnx_have_a_prox_as_a_state():
    with pytest.raises(TypeError, match=r"got an nnx.Module; give `nnx.state\(model, nnx.Param\)`"):
        Rules((r"kernel$", L1(0.1))).prox(nnx_model(Nnx)(), 0.1)


@pytest.mark.parametrize("wrt", [nnx.Param, KERNELS], ids=["Param", "kernels"])
def test_nnx_optimizer_by_filter(wrt):
    model, rules = Nnx(nnx.Rngs(0)), Rules((r"kernel$", L2(L2_STRENGTH)))
    before = np.asarray(model.fc.kernel[...], np.float64)
    optimizer = nnx.Optimizer(model, optax.chain(add_penalty_gradients(rules), optax.sgd(STEP)), wrt=wrt)
    gradient = nnx.grad(lambda model: 0.0 * jnp.sum(model.fc.kernel[...]), argnums=nnx.DiffState(0, wrt))
    optimizer.update(model, gradient(model))
    np.testing.assert_allclose(model.fc.kernel[...], before - STEP * 2 * L2_STRENGTH * before, rtol=1e-5)
    for wrong in (optimizer, {"model": model, "optimizer": optimizer}):
        with pytest.raises(ValueError, match="holds the state of an optimizer"):
            rules(wrong)


class NnxTwin(nnx.Module):
    """The same model as `Linen`, under the same names."""

    def __init__(self, rngs):
        self.Dense_0 = nnx.Linear(4, 3, rngs=rngs)
        self.Dense_1 = nnx.Linear(3, 2, rngs=rngs)


def test_the_same_rules_and_weights_in_linen_and_nnx():
    params, twin = linen(Linen()), NnxTwin(nnx.Rngs(1))
    nnx.update(twin, nnx.State(params))
    wrapped = nnx.bridge.ToNNX(Linen(), rngs=nnx.Rngs(0)).lazy_init(INPUTS)
    nnx.update(wrapped, nnx.State(params))
    rules = Rules((r"Dense_1", None), (r"kernel$", jaxreg.OrthogonalRegularizer(0.1, "columns")), (r"bias$", L2(0.1)))
    expected = rules.breakdown(params)
    for model in (twin, wrapped):
        chex.assert_trees_all_equal(rules.breakdown(model), expected)
        assert rules.matches(model) == rules.matches(params)


# The page.


def test_the_page_has_the_table():
    rows = [(row.library, row.name, f"`{row.path}`", row.grad_text, row.params_text) for row in TREES]
    header = ("library", "tree", "a path", "gradient", "for optax and `prox`")
    assert_shown("trees.md", table(header, rows))
