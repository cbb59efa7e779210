"""Nothing silent, nothing bare: what cannot be meant is an error that says so, and what can be meant works.

Each row of a table was once wrong without a word, or an error that named nothing.
"""

import functools
import json
import re
from types import SimpleNamespace

import chex
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxreg
from jaxreg import L1, L2, GroupLasso, OrthogonalRegularizer, Rules, _matching, diagnostics

pytestmark = pytest.mark.standard_promotion

ONES = jnp.ones(2)
PARAMS = {"hidden": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "head": {"kernel": jnp.full((3, 1), 2.0)}}
ADAM = optax.adam(0.1)


class Shared(nnx.Module):
    """Two names for one layer, of which NNX knows the weights by the first."""

    def __init__(self):
        self.decoder = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.encoder = self.decoder
        self.other = nnx.Linear(2, 3, rngs=nnx.Rngs(1))


class Child(nnx.Module):
    def __init__(self, parent):
        self.parent = parent
        self.layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))


class Parent(nnx.Module):
    """It holds itself, through its child."""

    def __init__(self):
        self.child = Child(self)


def train_state():
    return TrainState.create(apply_fn=None, params=PARAMS, tx=ADAM)


def of(*pairs, **options):
    """The penalty of the parameters under some rules."""
    return lambda tree=PARAMS: Rules(*pairs, **options)(tree)


def nested(depth):
    return functools.reduce(lambda inner, _: {"a": inner}, range(depth), ONES)


def config(depth):
    def wrap(inner, _):
        return {"class_name": "Scaled", "config": {"scale": 1.0, "regularizer": inner}}

    return functools.reduce(wrap, range(depth), {"class_name": "L2", "config": {}})


def update(tx, params=PARAMS, updates=PARAMS):
    return lambda: tx.update(updates, tx.init(params), params)


ADDED = jaxreg.add_penalty_gradients(Rules((r"kernel$", L2(0.5))))
DECOUPLED = jaxreg.decoupled(ADAM, Rules((r"kernel$", L2(0.5))), 0.1)
PROXIMAL = jaxreg.proximal_sgd(0.1, Rules((r"kernel$", L1(0.5))))
BOXED = {"kernel": nn.Partitioned(jnp.ones((2, 2)), names=("a", "b"))}
PLAIN = {"kernel": jnp.ones((2, 2))}
LATE = r"rule 1 \('head/', left alone\) comes too late: it lost `head/kernel` to rule 0"

ERRORS = {
    # None that comes too late.
    "late": (of((r"kernel$", L2()), (r"head/", None)), None, None),  # it meets nothing else, so it lost every match
    "late, with a rest": (
        lambda: of((r"kernel$", L2()), (r"head/", None))(PARAMS | {"head": {"kernel": ONES, "bias": ONES}}),
        ValueError,
        LATE,
    ),
    "late, behind another": (
        lambda: of((r"kernel$", L2()), (r"head/", None), (r"hidden/bias$", L1()))(
            PARAMS | {"head": {"kernel": ONES, "bias": ONES}}
        ),
        ValueError,
        LATE,
    ),
    # Trees with the state of an optimizer.
    "TrainState": (
        lambda: Rules((r"kernel$", L2()))(train_state()),
        ValueError,
        "state of an optimizer, .* `opt_state",
    ),
    "nnx.Optimizer": (
        lambda: Rules((r"kernel$", L2()))(nnx.Optimizer(Shared(), ADAM, wrt=nnx.Param)),
        ValueError,
        "`tree` holds the state of an optimizer, Optimizer",
    ),
    "the state of nnx.Optimizer": (
        lambda: Rules((r"kernel$", L2()))(nnx.state(nnx.Optimizer(Shared(), ADAM, wrt=nnx.Param))),
        ValueError,
        "`tree` holds the state of an optimizer",
    ),
    "a dict with a state": (
        lambda: Rules((r"kernel$", L2())).explain({"params": PARAMS, "opt": ADAM.init(PARAMS)}),
        ValueError,
        "`tree` holds the state of an optimizer, ScaleByAdamState at `opt/0`",
    ),
    "a state of ours": (
        lambda: Rules((r"kernel$", L2())).breakdown({"params": PARAMS, "opt": PROXIMAL.init(PARAMS)}),
        ValueError,
        "`tree` holds the state of an optimizer, ProximalState at `opt`",
    ),
    # Other names of shared parameters.
    "another name": (
        lambda: Rules((r"encoder/", L2()))(Shared()),
        ValueError,
        r"rule 0 \('encoder/', .*\) matches `encoder/\w+`, which is the same parameter as `decoder/\w+`.*write the",
    ),
    "another name, left alone": (
        lambda: Rules((r"encoder/", None), (r"kernel$", L2()))(Shared()),
        ValueError,
        "matches `encoder/",
    ),
    "another name inside a tree": (
        lambda: Rules((r"m/encoder/kernel", L2())).matches({"m": Shared()}),
        ValueError,
        "matches `m/encoder/kernel`, which is the same parameter as `m/decoder/kernel`",
    ),
    # Patterns.
    "c*": (lambda: Rules(("c*", L2())), ValueError, r"'c\*' matches the empty string, and so every path.*'\.\*' or ''"),
    "nothing or kernel": (lambda: Rules(("(kernel)?", L2())), ValueError, "matches the empty string"),
    "x?": (lambda: Rules(("x?", L2())), ValueError, "matches the empty string"),
    "an empty choice": (lambda: Rules(("(kernel|)", None)), ValueError, "matches the empty string"),
    "[^/]*": (lambda: Rules(("[^/]*", L2())), ValueError, "matches the empty string"),
    "compiled c*": (lambda: Rules((re.compile("c*"), L2())), ValueError, "matches the empty string"),
    "bytes": (lambda: Rules((re.compile(b"kernel"), L2())), TypeError, "of text, got one of bytes"),
    "a predicate of one argument": (
        lambda: Rules((lambda path: True, L2())),
        TypeError,
        r"`pairs\[0\]`.*the predicate <lambda> must take \(path, leaf\)",
    ),
    "a predicate of three arguments": (
        lambda: Rules((lambda path, leaf, more: True, L2())),
        TypeError,
        r"the predicate <lambda> must take \(path, leaf\)",
    ),
    "Rules in rules": (lambda: Rules(("a", Rules(("b", L2())))), TypeError, r"`pairs\[0\]` must have a regularizer"),
    # Configs.
    "a config that is a list": (
        lambda: jaxreg.deserialize({"class_name": "L2", "config": []}),
        TypeError,
        "`config` of 'L2' must be a dict, got list",
    ),
    "a function without a name": (
        lambda: jaxreg.deserialize({"class_name": "function", "config": {"x": 1}}),
        TypeError,
        "`config` of a function must be its name, got dict",
    ),
    "custom objects that are a list": (
        lambda: jaxreg.deserialize("l2", [1]),
        TypeError,
        "`custom_objects` must be a dict",
    ),
    "rules without pairs": (
        lambda: Rules.from_config({"pairs": None}),
        TypeError,
        "`pairs` in a config must be a list",
    ),
    "a sum of nothing": (
        lambda: jaxreg.deserialize({"class_name": "Sum", "config": {"terms": []}}),
        ValueError,
        "`terms` must hold at least one regularizer",
    ),
    "a class name that is a list": (
        lambda: jaxreg.deserialize({"class_name": ["L2"], "config": {}}),
        TypeError,
        "`class_name` in a config must be a name, got list",
    ),
    "a deep config": (lambda: jaxreg.deserialize(config(5_000)), ValueError, "`config` is nested too deeply"),
    "a deep config of rules": (
        lambda: Rules.from_config({"pairs": [["w", config(5_000)]]}),
        ValueError,
        "`config` is nested too deeply",
    ),
    "a function that is a string": (
        lambda: jaxreg.deserialize({"class_name": "Function", "config": {"function": "sum"}}),
        TypeError,
        "`function` must be a function from an array to a scalar, got str 'sum'",
    ),
    "a custom function that is a string": (
        lambda: jaxreg.deserialize({"class_name": "function", "config": "f"}, {"f": "g"}),
        TypeError,
        r"`custom_objects\['f'\]` must be a function, got str 'g'",
    ),
    "a custom class that is a function": (
        lambda: jaxreg.deserialize({"class_name": "Mine", "config": {}}, {"Mine": jnp.sum}),
        TypeError,
        r"`custom_objects\['Mine'\]` must be a class",
    ),
    # Trees.
    "a deep tree": (lambda: of((r"a$", L2()))(nested(5_000)), ValueError, "nested too deeply"),
    "a complex parameter": (
        update(ADDED, {"kernel": jnp.ones(2, complex)}, {"kernel": jnp.ones(2, complex)}),
        TypeError,
        "at `kernel`, under rule 0 .*`x` must be a real floating-point array, got complex64",
    ),
    "a complex parameter of proximal": (
        update(PROXIMAL, {"kernel": jnp.ones(2, complex)}, {"kernel": jnp.ones(2, complex)}),
        TypeError,
        "at `kernel`, under rule 0 .*the parameter must be real, got complex64",
    ),
    "a real update of a complex parameter": (
        update(jaxreg.add_penalty_gradients(lambda p: 0.0), {"kernel": jnp.ones(2, complex)}, {"kernel": ONES}),
        TypeError,
        r"`updates` must be complex where `params` are, got float32\[2\] for complex64\[2\] at `kernel`",
    ),
    "plain updates of boxes": (
        update(ADDED, BOXED, PLAIN),
        ValueError,
        r"`updates` must be in boxes where `params` are, .* got float32\[2,2\] for Partitioned at `kernel`",
    ),
    "plain updates of boxes, proximal": (
        update(jaxreg.proximal(optax.identity(), Rules((r"kernel$", L1())), 0.1, check=False), BOXED, PLAIN),
        ValueError,
        "`updates` must be in boxes where `params` are",
    ),
    **{
        f"{what}, {kind}": (update(tx, {"kernel": jnp.ones((2, 2))}, {"kernel": bad}), error, message)
        for what, bad, error, message in (
            (
                "an update of integers",
                jnp.ones((2, 2), int),
                TypeError,
                r"floating-point .*, got int32\[2,2\] for float32",
            ),
            (
                "an update that is a number",
                1.0,
                TypeError,
                r"floating-point where `params` are, got float 1.0 for float32",
            ),
            ("an update that broadcasts", jnp.ones((2, 1)), ValueError, r"shapes of `params`, got float32\[2,1\] for"),
        )
        for kind, tx in {
            "added": ADDED,
            "decoupled": DECOUPLED,
            "proximal": PROXIMAL,
            "momentum": jaxreg.proximal_sgd(0.1, Rules((r"kernel$", L1(0.5))), momentum=0.9),
            "Adam": jaxreg.proximal_adam(0.1, Rules((r"kernel$", L1(0.5)))),
        }.items()
    },
    "plain updates of boxes, Adam": (
        update(jaxreg.proximal_adam(0.1, Rules((r"kernel$", L1()))), BOXED, PLAIN),
        ValueError,
        "`updates` must be in boxes where `params` are",
    ),
    # Calls.
    **{
        f"no state, {kind}": (
            functools.partial(tx.update, PARAMS, None, PARAMS),
            TypeError,
            r"`state` must be the \w+State that `init` returned",
        )
        for kind, tx in {"added": ADDED, "decoupled": DECOUPLED, "proximal": PROXIMAL}.items()
    },
    "keys": (
        lambda: Rules((r"kernel$", L2()))(PARAMS, key=jax.random.split(jax.random.key(0))),
        TypeError,
        "`key` must be a key",
    ),
    "a negative schedule": (
        update(jaxreg.decoupled(ADAM, Rules((r"kernel$", L2())), lambda count: -1.0)),
        ValueError,
        "`learning_rate` must be finite and >= 0, got -1.0",
    ),
    "b1": (lambda: jaxreg.proximal_adam(0.1, Rules(("w", L1())), b1=1.0), ValueError, "`b1` must be < 1, got 1.0"),
    "diagnostics of a train state": (lambda: diagnostics.sparsity(train_state()), ValueError, "state of an optimizer"),
    **{
        f"no {name}, {kind}": (update(tx, **{name: None}), ValueError, f"`{name}` must be ")
        for name in ("updates", "params")
        for kind, tx in {"added": ADDED, "decoupled": DECOUPLED}.items()
    },
    "no updates, proximal": (update(PROXIMAL, updates=None), ValueError, "`updates` must be a tree of gradients"),
    **{
        f"a key that is {describe}, {kind}": (
            functools.partial(call, key),
            TypeError,
            "`key` must be a key from `jax.ra",
        )
        for describe, key in {"Rngs": nnx.Rngs(0), "an int": 0, "an array": ONES}.items()
        for kind, call in {
            "rules": lambda key: Rules((r"kernel$", L2()))(PARAMS, key=key),
            "breakdown": lambda key: Rules((r"kernel$", L2())).breakdown(PARAMS, key=key),
            "by_rule": lambda key: Rules((r"kernel$", L2())).by_rule(PARAMS, key=key),
            "explain": lambda key: Rules((r"kernel$", L2())).explain(PARAMS, key=key),
            "added": lambda key: jaxreg.add_penalty_gradients(Rules((r"kernel$", L2())), key=key),
            "decoupled": lambda key: jaxreg.decoupled(ADAM, Rules((r"kernel$", L2())), 0.1, key=key),
            "proximal": lambda key: jaxreg.proximal(ADAM, Rules((r"kernel$", L1())), 0.1, key=key),
        }.items()
    },
}
ERRORS["late"] = (ERRORS["late"][0], ValueError, "rule 1 .* lost every match to earlier rules: `head/kernel` to rule 0")


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


# What can be meant.

FINE = {
    "a catch-all": (of((r"kernel$", L2(0.5)), (r"", None)), 0.5 * 18),
    "a written catch-all": (of((r"kernel$", L2(0.5)), (r".*", None)), 0.5 * 18),
    "None that keeps something": (of((r"hidden/kernel$", L2(0.5)), (r"hidden/", None), (r"", L2(0.5))), 0.5 * (6 + 12)),
    "None before a predicate": (
        of((r"hidden/kernel$", L2(0.5)), (r"hidden/", None), (lambda path, leaf: True, L2(0.5))),
        0.5 * (6 + 12),
    ),
    "late None, not strict": (
        lambda: of((r"kernel$", L2(0.5)), (r"head/", None), strict=False)(
            PARAMS | {"head": {"kernel": ONES, "b": ONES}}
        ),
        0.5 * 8,
    ),
    "a state, not strict": (lambda: of((r"mu", L2()), strict=False)({"opt": ADAM.init(PARAMS)}), 0.0),
    "the path of a shared weight": (
        lambda: Rules((r"decoder/kernel", L2(0.5)))(Shared()),
        0.5 * float(jnp.sum(jnp.square(Shared().decoder.kernel[...]))),
    ),
    "both names of a shared weight": (
        lambda: Rules((r"(en|de)coder/kernel", L2(0.5)))(Shared()),
        0.5 * float(jnp.sum(jnp.square(Shared().decoder.kernel[...]))),
    ),
    "another name, not strict": (lambda: Rules((r"encoder/", L2()), strict=False)(Shared()), 0.0),
    "a pattern that looks ahead": (of((r"^(?!head/).*kernel$", L2(0.5))), 3.0),
    "all but": (of((r"^(?!.*bias)", L2(0.5))), 9.0),
    **{f"everything as {p}": (of((p, L2(0.0)), strict=True), 0.0) for p in (".*?", "(.*)", "(?s).*", "$", r"[\s\S]*")},
    "another name, had by an earlier rule": (
        lambda: Rules((r"decoder/kernel$", L2(0.0)), (r"(encoder|other)/kernel$", L2(0.0)))(Shared()),
        0.0,
    ),
    "a module that holds itself": (lambda: Rules((r"kernel$", L2(0.0)))(Parent()), 0.0),
    "a state of nothing": (lambda: of((r"kernel$", L2(0.5)))({"p": PARAMS, "s": optax.EmptyState()}), 9.0),
    "a bare array": (lambda: Rules((r"^$", L2(0.5)))(ONES), 1.0),
    "a compiled pattern": (of((re.compile("KERNEL$", re.IGNORECASE), L2(0.5))), 0.5 * 18),
    "a compiled pattern with its flag inside": (of((re.compile("(?i)KERNEL$"), L2(0.5))), 0.5 * 18),
    "a compiled pattern with flags in both": (of((re.compile("(?i)KER NEL$", re.VERBOSE), L2(0.5))), 0.5 * 18),
    "a group that is the whole": (lambda: GroupLasso(0.5, group_axis=())(jnp.full((2, 2), 3.0)), 3.0),
    "wholes of a batch": (lambda: GroupLasso(0.5, (), batch_axis=0)(jnp.full((2, 2, 2), 3.0)), 6.0),
    "a deep tree": (lambda: of((r"a$", L2(0.5)))(nested(50)), 1.0),
}


@pytest.mark.parametrize(("call", "expected"), FINE.values(), ids=FINE)
def test_what_is_meant_works(call, expected):
    np.testing.assert_allclose(call(), expected, rtol=1e-6)


@pytest.mark.parametrize("count", [10_000])
def test_a_masked_tree_with_an_unmet_rule_is_linear(count, monkeypatch):
    """10,000 leaves, half of them masked, and a rule that meets none: the error comes, after few searches."""
    tree = {f"layer_{i}": optax.MaskedNode() if i % 2 else {"kernel": ONES, "bias": ONES} for i in range(count)}
    searches = 0

    class Counted:
        def __init__(self, pattern):
            self.pattern = re.compile(pattern)

        def search(self, text):
            nonlocal searches
            searches += 1
            return self.pattern.search(text)

    rules = Rules((r"kernel$", L2()), (r"kernle$", L1()))
    monkeypatch.setattr(
        _matching, "re", SimpleNamespace(compile=Counted, Pattern=Counted, search=re.search, sub=re.sub)
    )
    with pytest.raises(ValueError, match="met no parameter"):
        rules(tree)
    assert searches < 100 * count


def test_rules_made_of_equal_parts_are_equal():
    def rules(strength=0.1, strict=True, pattern=r"kernel$"):
        return Rules((r"head/", None), (pattern, L1(0.1) + 2.0 * L2(strength)), strict=strict)

    assert rules() == rules()
    assert hash(rules()) == hash(rules())
    assert rules() == Rules((r"head/", None), (re.compile("kernel$"), L1(0.1) + 2.0 * L2(0.1)))
    for other in (rules(0.2), rules(strict=False), rules(pattern=r"kernel"), 2.0 * rules(), "rules"):
        assert rules() != other

    @functools.partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(1)
    def penalty(rules, tree):
        return rules(tree)

    assert penalty(rules(), PARAMS) == penalty(rules(), PARAMS)


def test_a_number_scales_rules():
    rules = Rules((r"bias$", None), (r"hidden", jaxreg.MCP(0.1, gamma=4.0)), (r"kernel$", 3.0 * L2(0.5)))
    for scale in (2, 2.0, np.float32(2), np.asarray(2.0), jnp.float32(2)):
        for scaled in (scale * rules, rules * scale):
            assert isinstance(scaled, Rules)
            assert scaled.patterns == rules.patterns
            np.testing.assert_allclose(scaled(PARAMS), 2 * rules(PARAMS), rtol=1e-6)
            np.testing.assert_allclose(
                scaled.prox(PARAMS, 0.1)["head"]["kernel"], 2.0 / (1 + 2 * 2 * 0.1 * 1.5), rtol=1e-6
            )
    np.testing.assert_allclose(jax.grad(lambda s: (s * rules)(PARAMS))(2.0), rules(PARAMS), rtol=1e-6)
    assert not (2.0 * Rules((r"never", L2()), strict=False)).strict
    for bad in (-1.0, True, float("nan")):
        with pytest.raises((TypeError, ValueError), match="`scale` must be"):
            bad * rules
    for bad in ("2", None, [2.0], rules):
        with pytest.raises(TypeError, match=r"unsupported operand|can't multiply"):
            bad * rules


def test_flax_restores_rules_by_pattern():
    pairs = [(r"kernel$", L2(0.1)), (r"bias$", L1(0.2) + L2(0.3)), (r"head", None)]
    state = flax.serialization.to_state_dict(Rules(*pairs))
    json.dumps(state)
    other = Rules((r"bias$", L1(0.0) + L2(0.0)), (r"head", None), (r"kernel$", L2(0.0)))
    restored = flax.serialization.from_state_dict(other, state)
    assert restored == Rules((r"bias$", L1(0.2) + L2(0.3)), (r"head", None), (r"kernel$", L2(0.1)))
    assert flax.serialization.from_bytes(other, flax.serialization.to_bytes(Rules(*pairs))) == restored
    with pytest.raises(ValueError, match="must hold the patterns"):
        flax.serialization.from_state_dict(Rules((r"scale$", L2()), *pairs[1:]), state)
    twice = Rules((r"a", L2(0.1)), (r"a", L2(0.2)), strict=False)
    assert flax.serialization.from_state_dict(twice, flax.serialization.to_state_dict(twice)) == twice


def test_a_compiled_pattern_becomes_text():
    rules = Rules((re.compile("KERNEL$", re.IGNORECASE), L2(0.5)))
    assert Rules.from_config(json.loads(json.dumps(rules.get_config()))) == rules


# Explanations.


def is_kernel(path, leaf):
    return path.endswith("kernel")


def test_a_predicate_does_not_look_like_a_pattern():
    rules = Rules((is_kernel, L2(0.5)), (r"is_kernel|bias", L1(0.1)))
    text = str(rules.explain(PARAMS))
    assert "is_kernel(path, leaf)" in text
    assert repr(rules) == "Rules((is_kernel, L2(l2=0.5)), ('is_kernel|bias', L1(l1=0.1)))"
    with pytest.raises(ValueError, match=r"rule 0 \(is_kernel\(path, leaf\), L2"):
        rules({"bias": ONES})


def test_explain_shows_what_is_seen():
    tree = {
        "conv": jnp.ones((3, 3, 2, 8)),
        "dense": jnp.ones((4, 64)),
        "stack": jnp.ones((12, 32, 8)),
        "both": jnp.ones((4, 3)),
        "bias": ONES,
    }
    rules = Rules(
        ("conv", GroupLasso()),
        ("dense", 2.0 * OrthogonalRegularizer(0.1, "columns")),
        ("stack", jaxreg.Nuclear(batch_axis=0)),
        ("both", GroupLasso(group_axis=()) + L1() + jaxreg.Nuclear()),
        ("bias", L1()),
    )
    seen = {row.path: row.seen for row in rules.explain(tree).rows}
    assert seen == {
        "conv": "8 groups of 18",
        "dense": "1 matrix 4×64",
        "stack": "12 matrices 32×8",
        "both": "1 group of 12, 1 matrix 4×3",
        "bias": "",
    }
    assert seen == {row.path: row.seen for row in rules.explain(jax.eval_shape(lambda: tree)).rows}
    text = str(rules.explain(tree))
    assert "seen as" in text
    assert "12 matrices 32×8" in text


def test_explain_shows_shared_parameters():
    explained = Rules((r"decoder/kernel", L2())).explain(Shared())
    assert {row.path: row.names for row in explained.rows if row.names} == {
        "decoder/bias": ("encoder/bias",),
        "decoder/kernel": ("encoder/kernel",),
    }
    assert "shared with" in str(explained)
    assert "encoder/kernel" in str(explained)


def test_explain_needs_no_key_for_shapes():
    rules = Rules((r"kernel$", OrthogonalRegularizer(0.1, sample=2)))
    explained = rules.explain(jax.eval_shape(lambda: {"kernel": jnp.ones((4, 3))}))
    assert [row.penalty for row in explained.rows] == [None]


def test_explain_under_jit_needs_no_key():
    rules = Rules((r"kernel$", OrthogonalRegularizer(0.1, sample=2)))
    explained = []
    jax.jit(lambda tree: explained.append(rules.explain(tree)))({"kernel": jnp.ones((4, 3))})
    assert [row.penalty for row in explained[0].rows] == [None]


def test_explain_breakdown_and_by_rule_agree_on_samples():
    """Every parameter has a random key of its own, the same one in all of them."""
    tree = {name: jax.random.normal(jax.random.key(i), (64, 8)) for i, name in enumerate(("a", "b", "c"))} | {
        "masked": optax.MaskedNode(),
        "free": ONES,
    }
    sampled = OrthogonalRegularizer(0.1, sample=8)
    rules, key = Rules((r"[ac]|masked", sampled), (r"b", sampled)), jax.random.key(3)
    parts = rules.breakdown(tree, key=key)
    assert {row.path: row.penalty for row in rules.explain(tree, key=key).rows if row.penalty} == {
        path: float(part) for path, part in parts.items()
    }
    totals = jax.jit(lambda tree: rules.by_rule(tree, key=key))(tree)
    assert list(totals) == [0, 1]
    np.testing.assert_allclose([totals[0], totals[1]], [parts["a"] + parts["c"], parts["b"]], rtol=1e-6)


def test_a_key_of_the_old_kind_serves_where_none_is_kept():
    rules = Rules((r"", OrthogonalRegularizer(0.1, sample=8)))
    tree = {"kernel": jax.random.normal(jax.random.key(0), (64, 8))}
    np.testing.assert_array_equal(rules(tree, key=jax.random.PRNGKey(3)), rules(tree, key=jax.random.key(3)))


def test_by_rule_has_every_rule():
    rules = Rules((r"head", None), (r"kernel$", L2(0.5)), (r"bias$", L1(0.5)), (r"never", L1()), strict=False)
    assert {rule: float(part) for rule, part in rules.by_rule(PARAMS).items()} == {0: 0.0, 1: 3.0, 2: 1.5, 3: 0.0}
    np.testing.assert_allclose(sum(rules.by_rule(PARAMS).values()), rules(PARAMS), rtol=1e-6)


# Keras.


def test_none_is_none():
    assert jaxreg.serialize(None) is None
    assert jaxreg.deserialize(None) is None
    assert jaxreg.get(None) is None


# Complex numbers and 8 bits.

COMPLEX = {"kernel": jnp.array([1.0 + 2.0j, -3.0j])}


def modulus(tree):
    return jnp.sum(jnp.square(jnp.abs(tree["kernel"])))


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: optax.chain(jaxreg.add_penalty_gradients(modulus), optax.sgd(rate)),
        lambda rate: jaxreg.decoupled(optax.sgd(rate), modulus, rate),
    ],
    ids=["added", "decoupled"],
)
def test_a_function_of_complex_parameters_is_descended(make):
    """For Σ|z|² the gradient in the convention of optax is 2z, which shortens z."""
    tx = make(0.1)
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, COMPLEX), tx.init(COMPLEX), COMPLEX)
    np.testing.assert_allclose(updates["kernel"], -0.2 * COMPLEX["kernel"], rtol=1e-6)
    np.testing.assert_allclose(optax.tree.get(state, "penalty"), 14.0, rtol=1e-6)


NARROW = [jnp.float8_e4m3fn, jnp.float8_e5m2]


@pytest.mark.parametrize("update_dtype", [*NARROW, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("dtype", NARROW)
def test_parameters_of_8_bits(dtype, update_dtype):
    params = {"kernel": jnp.array([1.0, -2.0, 0.03125], dtype)}
    updates = {"kernel": jnp.zeros(3, update_dtype)}
    tx = jaxreg.proximal(optax.identity(), Rules((r"kernel$", L1(1.0))), 0.125, check=False)
    got, state = tx.update(updates, tx.init(params), params)
    moved = got["kernel"].astype(jnp.float32) + params["kernel"].astype(jnp.float32)
    np.testing.assert_allclose(moved, [0.875, -1.875, 0.0], atol=0.1)
    assert moved[2] == 0
    np.testing.assert_allclose(state.penalty, 3.03125)
    added = jaxreg.add_penalty_gradients(Rules((r"kernel$", L2(0.5))))
    got, _ = added.update(updates, added.init(params), params)
    assert got["kernel"].dtype == update_dtype
    np.testing.assert_allclose(got["kernel"].astype(jnp.float32), [1.0, -2.0, 0.03125])


# Shards.

MESHES = {kind: jax.make_mesh((8,), ("d",), axis_types=(kind,)) for kind in (AxisType.Auto, AxisType.Explicit)}
OVER_WEIGHTS = [case.regularizer for case in CASES if isinstance(case.regularizer, type) and case.elastic_net]
WHOLE = [
    jaxreg.GroupLasso(),
    jaxreg.SparseGroupLasso(),
    OrthogonalRegularizer(mode="columns"),
    OrthogonalRegularizer(),
    jaxreg.FramePotential(),
    jaxreg.Nuclear(),
    jaxreg.Spectral(),
    jaxreg.LInf(),
    L1() + jaxreg.LInf(),
    2.0 * GroupLasso(),
]


SHARDED = P("d")


def in_shards(function, x, kind=AxisType.Auto, out=SHARDED):
    mesh = MESHES[kind]
    x = jax.device_put(x, NamedSharding(mesh, P("d")))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P("d"), out_specs=out))(x)


X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)), jnp.float32)


@pytest.mark.parametrize("kind", MESHES, ids=str)
@pytest.mark.parametrize("rows", [16, 8 * 1100])
@pytest.mark.parametrize("regularizer", WHOLE, ids=repr)
def test_a_shard_is_refused_where_the_penalty_is_no_sum(regularizer, rows, kind):
    x = jnp.resize(X, (rows, 4))
    message = r"`x` must be a whole array, got a shard float32\[\d+(,4)?\] that varies over the mesh axes \['d'\] in a"
    with pytest.raises(ValueError, match=message):
        in_shards(lambda x: regularizer(x)[None], x, kind)
    if regularizer.has_prox:
        with pytest.raises(ValueError, match=message):
            in_shards(lambda x: regularizer.prox(x, 0.1), x, kind)
    with pytest.raises(ValueError, match=f"at `kernel`, under rule 0 .*{message}"):
        in_shards(lambda x: Rules((r"kernel$", regularizer))({"kernel": x})[None], x, kind)


@pytest.mark.parametrize("regularizer", OVER_WEIGHTS)
def test_a_shard_may_have_a_sum_over_weights(regularizer):
    found = in_shards(lambda x: jax.lax.psum(regularizer()(x), "d"), X, out=P())
    np.testing.assert_allclose(found, regularizer()(X), rtol=1e-5)
    np.testing.assert_allclose(
        in_shards(lambda x: regularizer().prox(x, 0.1), X), regularizer().prox(X, 0.1), rtol=1e-6
    )


def test_a_replicated_array_is_whole():
    def replicated(x):
        return GroupLasso()(x)

    mesh = MESHES[AxisType.Auto]
    found = jax.jit(jax.shard_map(replicated, mesh=mesh, in_specs=P(), out_specs=P()))(X)
    np.testing.assert_allclose(found, GroupLasso()(X), rtol=1e-6)


@pytest.mark.parametrize("spec", [P("d"), P(None, "d"), P()], ids=str)
@pytest.mark.parametrize("regularizer", [GroupLasso(0.5), jaxreg.SparseGroupLasso(0.5), GroupLasso(0.5, 0)], ids=repr)
def test_steps_for_each_weight_on_an_explicit_mesh(regularizer, spec):
    """Outside of `jax.jit` too."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(16, 8)), jnp.float32)
    steps = jnp.linspace(0.1, 2.0, x.size).reshape(x.shape)
    sharding = NamedSharding(MESHES[AxisType.Explicit], spec)
    for step in (steps, jax.device_put(steps, sharding)):
        found = regularizer.prox(jax.device_put(x, sharding), step)
        np.testing.assert_allclose(found, regularizer.prox(x, steps), rtol=1e-5, atol=1e-6)


# Diagnostics of stacked layers, and of normalizations.


def test_diagnostics_take_a_batch():
    stack = jnp.ones((3, 4, 5)).at[1, :, 2].set(0).at[0, :, :2].set(0)
    tree = {"kernel": stack, "bias": jnp.ones((3, 5)), "scale": jnp.ones((3, 5)).at[2, 4].set(0)}
    dead = diagnostics.dead_units(tree, batch_axis=0)
    np.testing.assert_array_equal(np.argwhere(dead["kernel"]), [[0, 0], [0, 1], [1, 2]])
    np.testing.assert_array_equal(np.argwhere(dead["scale"]), [[2, 4]])
    assert dead["bias"] is None
    assert not np.any(diagnostics.dead_units(tree)["kernel"])
    shares = diagnostics.sparsity(tree, group_axis=-1, batch_axis=0)
    np.testing.assert_allclose([shares["kernel"], shares["scale"]], [3 / 15, 1 / 15], rtol=1e-6)
    for line in ("(0, 0), (0, 1), (1, 2)", "(2, 4)"):
        assert line in str(diagnostics.sparsity_table(tree, batch_axis=0))
    layers = [diagnostics.dead_units({"kernel": layer})["kernel"] for layer in stack]
    np.testing.assert_array_equal(dead["kernel"], layers)


@pytest.mark.parametrize("name", ["scale", "gamma", "weight"])
def test_channels_are_dead_by_the_scale_of_their_normalization(name):
    tree = {"norm": {name: jnp.array([1.0, 0.0, 2.0]), "bias": jnp.zeros(3)}}
    dead = diagnostics.dead_units(tree)
    np.testing.assert_array_equal(dead["norm"][name], [False, True, False])
    assert dead["norm"]["bias"] is None
    np.testing.assert_allclose(diagnostics.sparsity(tree, group_axis=-1)[f"norm/{name}"], 1 / 3, rtol=1e-6)
    assert set(diagnostics.sparsity(tree, group_axis=-1)) == {f"norm/{name}"}


def test_axes_of_diagnostics_are_checked():
    with pytest.raises(TypeError, match="`batch_axis` must be an int"):
        diagnostics.sparsity({"kernel": jnp.ones((2, 3))}, batch_axis="x")
    with pytest.raises(ValueError, match=r"at `scale`: `batch_axis` must lie in"):
        diagnostics.dead_units({"scale": jnp.ones((2, 3))}, batch_axis=5)
    with pytest.raises(ValueError, match="at `kernel`: `x` must be a whole array"):
        in_shards(lambda x: diagnostics.dead_units({"kernel": x})["kernel"], X)
    with pytest.raises(TypeError, match="`batch_axis` must be an int"):
        diagnostics.dead_units({"kernel": jnp.ones((2, 3))}, batch_axis="0")
    with pytest.raises(ValueError, match=r"at `kernel`: `group_axis` and `batch_axis` must not share an axis"):
        diagnostics.dead_units({"kernel": jnp.ones((2, 3, 4))}, group_axis=0, batch_axis=0)
