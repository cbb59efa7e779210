"""Rules over trees of every kind: what they match, what they cost, how they explain themselves, and their errors."""

import dataclasses
import io
import json

import chex
import equinox as eqx
import flax.linen as nn
import flax.serialization
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CUSTOM, half_sum_of_squares
from flax import nnx
from flax.core import FrozenDict
from rich.console import Console

from jaxreg import L1, L1L2, L2, OrthogonalRegularizer, Rules


def sample(*shape):
    return jnp.asarray(np.random.default_rng(list(shape)).normal(size=shape), jnp.float32)


PARAMS = {
    "Conv_0": {"kernel": sample(3, 3, 2, 4), "bias": sample(4)},
    "Dense_0": {"kernel": sample(8, 3), "bias": sample(3)},
    "head": {"kernel": sample(3, 2), "bias": sample(2)},
}
RULES = Rules((r"head/", None), (r"Conv_\d+/kernel$", OrthogonalRegularizer(0.1, "columns")), (r"kernel$", L2(0.5)))


def test_first_match_wins_and_none_excludes():
    assert RULES.matches(PARAMS) == {
        "Conv_0/bias": None,
        "Conv_0/kernel": 1,
        "Dense_0/bias": None,
        "Dense_0/kernel": 2,
        "head/bias": 0,
        "head/kernel": 0,
    }


def test_value_is_the_sum_of_the_breakdown():
    parts = RULES.breakdown(PARAMS)
    assert list(parts) == ["Conv_0/kernel", "Dense_0/kernel"]
    assert parts["Dense_0/kernel"] == L2(0.5)(PARAMS["Dense_0"]["kernel"])
    assert parts["Conv_0/kernel"] == OrthogonalRegularizer(0.1, "columns")(PARAMS["Conv_0"]["kernel"])
    assert RULES(PARAMS) == sum(parts.values())
    chex.assert_trees_all_close(jax.jit(RULES.breakdown)(PARAMS), parts, rtol=1e-6)


def test_gradient_is_zero_where_no_rule_or_none():
    gradient = jax.grad(RULES)(PARAMS)
    np.testing.assert_allclose(gradient["Dense_0"]["kernel"], PARAMS["Dense_0"]["kernel"], rtol=1e-6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["head"]))
    assert np.any(gradient["Conv_0"]["kernel"])


# Trees of every kind, each with the paths that a rule must meet.


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        boxed = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        x = nn.Dense(4, kernel_init=boxed)(x)
        x = nn.remat(nn.Dense)(4)(x)
        x = nn.WeightNorm(nn.Dense(4))(x)
        return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)(x)


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs)])
        self.tied = self.first

    def __call__(self, x):
        return self.layers[0](self.norm(self.first(x)))


def linen_params():
    return LinenModel().init(jax.random.key(0), jnp.ones((1, 2, 3)))["params"]


def haiku_params():
    model = hk.transform(lambda x: hk.nets.MLP([3, 2])(x))
    return model.init(jax.random.key(0), jnp.ones((1, 2)))


ATTENTION = {f"MultiHeadDotProductAttention_0/{name}/kernel" for name in ("query", "key", "value", "out")}
LINEN = {"Dense_0/kernel", "CheckpointDense_0/kernel", "Dense_1/kernel", *ATTENTION}
NNX = {"first/kernel", "layers/0/kernel"}

TREES = {
    "linen, boxed": (linen_params, r"kernel$", LINEN),
    "linen, unboxed": (lambda: nn.meta.unbox(linen_params()), r"kernel$", LINEN),
    "linen, FrozenDict": (lambda: FrozenDict(linen_params()), r"kernel$", LINEN),
    "nnx module": (lambda: NnxModel(nnx.Rngs(0)), r"kernel$", NNX),
    "nnx state": (lambda: nnx.state(NnxModel(nnx.Rngs(0)), nnx.Param), r"kernel$", NNX),
    "nnx whole state": (lambda: nnx.state(NnxModel(nnx.Rngs(0))), r"kernel$", NNX),
    "nnx pure dict": (lambda: nnx.to_pure_dict(nnx.state(NnxModel(nnx.Rngs(0)), nnx.Param)), r"kernel$", NNX),
    "nnx module in a dict": (lambda: {"a": NnxModel(nnx.Rngs(0))}, r"kernel$", {f"a/{path}" for path in NNX}),
    "Equinox": (
        lambda: eqx.nn.MLP(2, 3, 4, 2, key=jax.random.key(0)),
        r"weight$",
        {"layers/0/weight", "layers/1/weight", "layers/2/weight"},
    ),
    "Equinox, filtered": (
        lambda: eqx.filter(eqx.nn.MLP(2, 3, 4, 2, key=jax.random.key(0)), eqx.is_inexact_array),
        r"weight$",
        {"layers/0/weight", "layers/1/weight", "layers/2/weight"},
    ),
    "Haiku": (haiku_params, r"w$", {"mlp/~/linear_0/w", "mlp/~/linear_1/w"}),
    "tuples": (lambda: ({"kernel": jnp.ones(2)}, [{"kernel": jnp.ones(3)}]), r"kernel$", {"0/kernel", "1/0/kernel"}),
    "bare array": (lambda: jnp.ones((2, 2)), r"^$", {""}),
    "NumPy": (lambda: {"kernel": np.ones((2, 2), np.float32)}, r"kernel$", {"kernel"}),
}


@pytest.mark.standard_promotion
@pytest.mark.parametrize("kind", TREES)
def test_one_set_of_rules_for_every_tree(kind):
    make, pattern, expected = TREES[kind]
    tree = make()
    rules = Rules((pattern, L2(0.5)))
    assert {path for path, rule in rules.matches(tree).items() if rule == 0} == expected
    exact = sum(0.5 * float(np.square(np.asarray(rules_leaf, np.float64)).sum()) for rules_leaf in _met(tree, rules))
    np.testing.assert_allclose(rules(tree), exact, rtol=1e-6)
    assert str(rules.explain(tree))


def _met(tree, rules):
    """The arrays that the rules have met, found without their help: by the names of the kernels."""
    if isinstance(tree, nnx.Module):
        return [tree.first.kernel[...], tree.layers[0].kernel[...]]
    if isinstance(tree, dict) and isinstance(tree.get("a"), nnx.Module):
        return [tree["a"].first.kernel[...], tree["a"].layers[0].kernel[...]]
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        named = any(part in name for part in ("kernel", "weight", "['w']")) and "scale" not in name
        if hasattr(leaf, "shape") and named:
            found[name] = leaf
    return list(found.values()) or jax.tree.leaves(tree)


@pytest.mark.standard_promotion
def test_of_nnx_modules_the_params_are_taken_wherever_they_stand():
    model, plain = NnxModel(nnx.Rngs(0)), jnp.full((3, 3), 2.0)
    everything = Rules((r"", L2(0.5)))
    assert set(everything.matches(model)) == {f"{n}/{p}" for n in ("first", "layers/0") for p in ("kernel", "bias")} | {
        "norm/bias",
        "norm/scale",
    }
    mixed = {"decoder": {"kernel": plain}, "encoder": model, "again": [model.first]}
    kernels = Rules((r"kernel$", L2(0.5)))
    assert set(kernels.breakdown(mixed)) == {"again/0/kernel", "decoder/kernel", "encoder/layers/0/kernel"}
    np.testing.assert_allclose(kernels(mixed), kernels(model) + 18.0, rtol=1e-6)


@pytest.mark.standard_promotion
def test_nnx_gradients_and_jit():
    model = NnxModel(nnx.Rngs(0))
    rules = Rules((r"kernel$", L2(0.5)))
    np.testing.assert_allclose(nnx.jit(lambda model: rules(model))(model), rules(model), rtol=1e-6)
    gradient = nnx.grad(lambda model: rules(model))(model)
    np.testing.assert_allclose(gradient["first"]["kernel"][...], model.first.kernel[...], rtol=1e-6)


def test_equinox_gradients():
    model = eqx.nn.MLP(2, 3, 4, 2, key=jax.random.key(0))
    gradient = eqx.filter_grad(Rules((r"weight$", L2(0.5))))(model)
    np.testing.assert_allclose(gradient.layers[0].weight, model.layers[0].weight, rtol=1e-6)


def test_stacked_layers_cost_what_unstacked_ones_do():
    layers = [sample(4, 6) for _ in range(3)]
    stacked = {"layers": {"kernel": jnp.stack(layers)}}
    unstacked = {f"layer_{i}": {"kernel": kernel} for i, kernel in enumerate(layers)}
    for mode in ("rows", "columns"):
        together = Rules((r"kernel$", OrthogonalRegularizer(0.1, mode, batch_axis=0)))(stacked)
        apart = Rules((r"kernel$", OrthogonalRegularizer(0.1, mode)))(unstacked)
        np.testing.assert_allclose(together, apart, rtol=1e-6)


def test_leaves_that_are_no_parameters_are_passed_over():
    tree = {
        "w": jnp.ones(2),
        "step": jnp.zeros((), jnp.int32),
        "key": jax.random.key(0),
        "f": jnp.tanh,
        "n": None,
        "p": 0.5,
    }
    rules = Rules((r"", L2(0.5)))
    assert rules.matches(tree) == {"w": 0, "p": None}
    assert rules(tree) == 1.0
    assert "float 0.5, not an array" in str(rules.explain(tree))


def test_predicates():
    seen = []

    def is_matrix(path, leaf):
        seen.append(path)
        return leaf.ndim == 2

    rules = Rules((r"head/", None), (is_matrix, L2(0.5)))
    assert [path for path, rule in rules.matches(PARAMS).items() if rule == 1] == ["Dense_0/kernel"]
    assert not any(path.startswith("head/") for path in seen)


def test_entries_pass_through_get():
    rules = Rules(
        (r"Conv", "l2"), (r"Dense", {"class_name": "L1", "config": {"l1": 0.5}}), (r"head", half_sum_of_squares)
    )
    assert rules.regularizers[:2] == (L2(0.01), L1(0.5))
    assert rules.breakdown(PARAMS)["head/bias"] == half_sum_of_squares(PARAMS["head"]["bias"])


# Rules as a pytree.


def test_leaves_are_the_strengths():
    rules = Rules((r"head/", None), (r"bias$", L1L2(0.1, 0.2)), (r"kernel$", L2(0.5)))
    assert jax.tree.leaves(rules) == [0.1, 0.2, 0.5]


def test_strengths_are_swept_learned_and_changed_without_retracing():
    penalty = jax.jit(chex.assert_max_traces(lambda rules, params: rules(params), n=1))
    values = [penalty(Rules((r"kernel$", L2(s))), PARAMS) for s in (0.1, 0.2, 0.4)]
    sweep = Rules((r"kernel$", L2(jnp.array([0.1, 0.2, 0.4]))))
    np.testing.assert_allclose(jax.vmap(lambda r: r(PARAMS))(sweep), values, rtol=1e-6)
    slope = jax.grad(lambda r: r(PARAMS))(Rules((r"kernel$", L2(0.1))))
    np.testing.assert_allclose(jax.tree.leaves(slope), [values[0] / 0.1], rtol=1e-5)


def test_mixed_dtypes_add_up():
    tree = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3, jnp.float32)}
    assert Rules((r"", L2(1.0)))(tree).dtype == jnp.float32
    with jax.enable_x64(True):
        wide = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3, jnp.float64)}
        assert Rules((r"", L2(1.0)))(wide).dtype == jnp.float64


def test_config_round_trip():
    def is_bias(path, leaf):
        return path.endswith("bias")

    rules = Rules((r"head/", None), (is_bias, half_sum_of_squares), (r"kernel$", L1(0.1) + L2(0.2)), strict=False)
    config = json.loads(json.dumps(rules.get_config()))
    again = Rules.from_config(config, custom_objects={**CUSTOM, "is_bias": is_bias})
    assert repr(again) == repr(rules)
    assert again(PARAMS) == rules(PARAMS)
    with pytest.raises(ValueError, match="unknown regularizer 'is_bias'"):
        Rules.from_config(config, CUSTOM)
    with pytest.raises(TypeError, match="a name to find it by"):
        Rules((lambda path, leaf: True, "l2")).get_config()


def test_flax_serialization():
    rules = Rules((r"head/", None), (r"kernel$", L2(jnp.asarray(0.5))))
    state = flax.serialization.to_state_dict(rules)
    blank = jax.tree.map(jnp.zeros_like, rules)
    assert flax.serialization.from_state_dict(blank, state)(PARAMS) == rules(PARAMS)


# Thinned trees.


def test_masked_nodes_count_as_met_and_cost_nothing():
    thinned = {"a": {"kernel": optax.MaskedNode()}, "b": {"kernel": jnp.ones(2)}}
    rules = Rules((r"a/kernel", L1(1.0)), (r"b/kernel", L2(0.5)))
    assert rules(thinned) == 1.0
    assert rules.matches(thinned) == {"b/kernel": 1}
    assert "masked" in str(rules.explain(thinned))


def test_predicates_are_not_asked_about_masked_nodes_nor_blamed():
    thinned = {"a": optax.MaskedNode(), "b": jnp.ones(2)}
    rules = Rules((lambda path, leaf: leaf.ndim == 2, L1(1.0)), (r"", L2(0.5)))
    assert rules(thinned) == 1.0


def test_masked_subtrees_may_hold_what_a_rule_is_for():
    thinned = {"head": optax.MaskedNode(), "hidden": {"kernel": jnp.ones(2)}}
    for pattern in (r"head/", r"^head/kernel$"):
        assert Rules((pattern, None), (r"kernel$", L2(0.5)))(thinned) == 1.0
    other = {"head": {"kernel": jnp.ones(2)}, "hidden": optax.MaskedNode()}
    assert Rules((r"head/", None), (r"kernel$", L2(0.5)))(other) == 0.0
    with pytest.raises(ValueError, match=r"rule 0 \('kernle\$'.* met no parameter"):
        Rules((r"kernle$", L2()), (r"", L2()))(thinned)


# Errors.

ERRORS = [
    (
        lambda: Rules((r"kernle$", L2()))(PARAMS),
        ValueError,
        r"rule 0 \('kernle\$', L2.*met no parameter; .*`head/kernel`",
    ),
    (
        lambda: Rules((r"kernel", L2()), (r"head/kernel", L1()))(PARAMS),
        ValueError,
        r"rule 1 \('head/kernel', L1.*lost every match to earlier rules: `head/kernel` to rule 0",
    ),
    (lambda: Rules((r"x", None))(PARAMS), ValueError, r"rule 0 \('x', left alone\) met no parameter"),
    (
        lambda: Rules((r"kernel", L2()), (lambda path, leaf: path.endswith("kernel"), L1()))(PARAMS),
        ValueError,
        "rule 1 .* met no parameter that earlier rules had left",
    ),
    (lambda: Rules((r"", L2()))({}), ValueError, "met no parameter: the tree has none"),
    (
        lambda: Rules((r"step", L2()))({"w": jnp.ones(2), "step": jnp.zeros((), jnp.int32)}),
        ValueError,
        r"it matches only `step` \(int32\[\]\), not a floating-point array",
    ),
    (
        lambda: Rules((r"", OrthogonalRegularizer()))(PARAMS),
        ValueError,
        r"at `Conv_0/bias`, under rule 0 .*`x` must have rank >= 2.*float32\[4\]",
    ),
    (
        lambda: Rules((r"bias", lambda x: x))(PARAMS),
        TypeError,
        r"at `Conv_0/bias`, under rule 0 .* must return a scalar, got float32\[4\]",
    ),
    (
        lambda: Rules((r"kernel", L2(jnp.ones(3))))(PARAMS),
        ValueError,
        "at `Conv_0/kernel`.*`l2` must be a scalar.*vmap",
    ),
    (lambda: Rules((lambda path, leaf: 1, L2()))(PARAMS), TypeError, "must return a bool, got int 1 at `Conv_0/bias`"),
    (lambda: Rules((r"", L2()))({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}), ValueError, "have the path `a/b`"),
    (lambda: Rules(), ValueError, "`pairs` must hold at least one"),
    (lambda: Rules([(r"kernel", L2())]), TypeError, r"`pairs\[0\]` must be \(pattern, regularizer\), got list"),
    (lambda: Rules((r"kernel", L2(), 3)), TypeError, r"`pairs\[0\]` must be"),
    (
        lambda: Rules((r"(", L2())),
        ValueError,
        r"`pairs\[0\]`, '\(': the pattern '\(' is not a regular expression, .*glob",
    ),
    (lambda: Rules((3, L2())), TypeError, r"`pairs\[0\]`, 3: the pattern must be a string or a function.* got int 3"),
    (lambda: Rules((L2(), r"kernel")), TypeError, r"`pairs\[0\]`, .*: the pattern must be a string"),
    (lambda: Rules([(r"a", L2()), (r"b", L2())]), TypeError, r"`pairs\[0\]` must be .*arguments of their own"),
    (lambda: Rules((r"a", L2()))(jnp.ones(3)), ValueError, "a single array, whose path is empty.*`static_args`"),
    (
        lambda: Rules((r"a", L2()), (r"kernel", "l3")),
        ValueError,
        r"`pairs\[1\]`, 'kernel': unknown regularizer 'l3'",
    ),
    (
        lambda: Rules((r"kernel", 0.1)),
        TypeError,
        r"`pairs\[0\]`, 'kernel': `identifier` .* got float 0.1; write L2\(0.1\)",
    ),
    (lambda: Rules.from_config({"pairs": [["a", None]], "stric": False}), ValueError, r"got \['pairs', 'stric'\]"),
    (
        lambda: Rules.from_config(None),
        ValueError,
        "`config` must be a dict with the keys 'pairs' and 'strict', got None",
    ),
    (lambda: Rules((r"kernel", L2()), strict=1), TypeError, "`strict` must be a bool, got int 1"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_errors_come_at_trace_time():
    with pytest.raises(ValueError, match="met no parameter"):
        jax.eval_shape(Rules((r"kernle$", L2())), PARAMS)


def test_all_faulty_rules_are_named_at_once():
    with pytest.raises(ValueError, match=r"rule 0 .* met no parameter.*rule 2 .*lost every match"):
        Rules((r"nothing", L2()), (r"", L2()), (r"kernel", L1()))(PARAMS)


def test_an_error_of_a_users_function_is_located():
    def fails(x):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine") as caught:
        Rules((r"head/bias", fails))(PARAMS)
    assert "at `head/bias`, under rule 0" in caught.value.__notes__[0]
    with pytest.raises(AttributeError) as caught:
        Rules((lambda path, leaf: leaf.nope, L2()))(PARAMS)
    assert "in the predicate of rule 0" in caught.value.__notes__[0]
    assert "at `Conv_0/bias`" in caught.value.__notes__[0]


def test_rules_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError, match="strict"):
        RULES.strict = False


def test_patterns_are_static_whatever_they_hold():
    larger = jax.tree_util.Partial(lambda least, path, leaf: leaf.size > least, 20)
    rules = Rules((larger, L2(0.5)))
    assert jax.tree.leaves(rules) == [0.5]
    np.testing.assert_allclose(jax.jit(lambda r: r(PARAMS))(rules), rules(PARAMS), rtol=1e-6)


def test_strict_is_a_choice():
    assert Rules((r"kernle$", L2()), strict=False)(PARAMS) == 0
    assert Rules((r"kernle$", L2()), strict=False)({}).dtype == jnp.float32


def test_complex_parameters_are_not_passed_over():
    with pytest.raises(TypeError, match=r"at `w`, under rule 0 .*`x` must be a real .* got complex64\[2\]"):
        Rules((r"", L2()))({"w": jnp.ones(2, complex), "v": jnp.ones(2)})


# Explain.


def test_explain_shows_brackets_and_colons_as_they_are():
    text = str(
        Rules((r"layer[ab]+/[^/]+$", L2(0.5)), (r"[/]b$", L2(0.0))).explain(
            {"layera": {"k[bold]": jnp.ones(1), "b": jnp.ones(1)}, ":smile:": {"b": jnp.ones(2)}}
        )
    )
    for words in (r"layer[ab]+/[^/]+$", "[/]b$", "layera/k[bold]", ":smile:/b"):
        assert words in text


def test_explain_of_an_infinite_penalty():
    assert "nan" not in str(Rules((r"", L2(0.5))).explain({"w": jnp.full(3, 1e30), "v": jnp.ones(1)}))


def test_explain_has_every_parameter_and_its_share():
    table = RULES.explain(PARAMS)
    by_path = {row.path: row for row in table.rows}
    assert list(by_path) == list(RULES.matches(PARAMS))
    assert by_path["Conv_0/kernel"].array == "float32[3,3,2,4]"
    assert by_path["head/kernel"].patterns == (0, 2)
    assert by_path["head/kernel"].penalty is None
    assert by_path["Dense_0/bias"].patterns == ()
    for path, penalty in RULES.breakdown(PARAMS).items():
        assert by_path[path].penalty == pytest.approx(float(penalty))
    text = str(table)
    assert "1 to rule 0, 1 to rule 1" in text  # what the last rule lost
    for words in (
        "Dense_0/bias",
        "no rule",
        "left alone",
        "L2(l2=0.5)",
        "kernel$",
        "float32[3,3,2,4]",
        "1 to rule 0, 1 to rule 1",
    ):
        assert words in text
    dense = next(line for line in text.splitlines() if line.startswith("Dense_0/kernel"))
    share = float(RULES.breakdown(PARAMS)["Dense_0/kernel"] / RULES(PARAMS))
    assert f"{share:.1%}" in dense


def test_explain_takes_eval_shape_output():
    shapes = jax.eval_shape(lambda: PARAMS)
    table = RULES.explain(shapes)
    assert [row._replace(penalty=None) for row in RULES.explain(PARAMS).rows] == list(table.rows)
    with pytest.raises(ValueError, match=r"at `Conv_0/bias`.*rank >= 2"):
        Rules((r"", OrthogonalRegularizer())).explain(shapes)


def test_explain_under_jit_shows_no_values():
    tables = []
    jax.jit(lambda params: tables.append(RULES.explain(params)))(PARAMS)
    assert all(row.penalty is None for row in tables[0].rows)


def test_explain_text_is_never_cut():
    path = "/".join(f"a_very_long_name_of_a_layer_{i}" for i in range(20))
    table = Rules((r"layer_19$", L2(0.5))).explain({path: jnp.ones(3)})
    assert path in str(table)
    assert repr(table) == str(table)
    narrow = Console(file=io.StringIO(), width=60)
    narrow.print(table)
    shown = "".join(narrow.file.getvalue().split())
    assert all(f"{i}" in shown for i in range(20))
    assert "…" not in shown
    assert f"{path}" in table._repr_html_()
    assert table._repr_html_().startswith("<pre>")


def test_explain_of_nothing_has_no_share_to_divide():
    text = str(Rules((r"", L2(0.5))).explain({"w": jnp.zeros(3)}))
    assert " 0 " in text
    assert "nan" not in text
