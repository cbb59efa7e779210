"""The rows of a History against NumPy, what they are named, and what is kept of donated and of traced arrays."""

import csv
import math
import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxreg
from jaxreg.diagnostics import History

KERNEL, BIAS = np.float32([[1.0, -2.0], [0.5, 3.0]]), np.float32([-4.0, 0.25])
PARAMS = {"Dense_0": {"kernel": KERNEL, "bias": BIAS}, "head": {"kernel": KERNEL}}
RULES = jaxreg.Rules((r"head/", None), (r"kernel$", jaxreg.L2(0.5)), (r"bias$", jaxreg.L1(0.1)))


def test_a_row_has_the_penalties_by_rule_and_by_path_and_the_scalars():
    history = History(RULES)
    history.record(10, PARAMS, loss=jnp.float32(1.5), rate=0.1, batch=np.int64(32), **{"val/loss": np.float32(2.5)})
    of_kernel, of_bias = 0.5 * float(np.sum(KERNEL**2)), 0.1 * float(np.sum(np.abs(BIAS)))
    expected = {
        "step": 10,
        "loss": 1.5,
        "rate": 0.1,
        "batch": 32,
        "val/loss": 2.5,
        "penalty/total": of_kernel + of_bias,
        "penalty/rule/kernel$": of_kernel,
        "penalty/rule/bias$": of_bias,
        "penalty/path/Dense_0/bias": of_bias,
        "penalty/path/Dense_0/kernel": of_kernel,
    }
    assert list(history.last) == list(expected)
    assert history.last == pytest.approx(expected)
    assert {type(value) for value in history.last.values()} == {int, float}


def test_a_schedule_is_read_at_the_step_and_nothing_is_traced_again():
    traces = []

    def largest(x):
        traces.append(x.shape)
        return jnp.max(jnp.abs(x))

    rules = jaxreg.Rules((r"kernel$", jaxreg.L2(optax.linear_schedule(0.0, 1.0, 100))), (r"bias$", largest))
    history = History(rules)
    for step in (0, 25, 100, 2**40):
        history.record(step, {"kernel": KERNEL * (step + 1), "bias": BIAS})
    square = float(np.sum(KERNEL.astype(float) ** 2))
    expected = [
        strength * square * (row["step"] + 1.0) ** 2
        for strength, row in zip((0, 0.25, 1, 1), history.rows, strict=True)
    ]
    assert [row["penalty/rule/kernel$"] for row in history.rows] == pytest.approx(expected)
    assert history.last["penalty/rule/bias$"] == 4.0
    assert traces == [(2,)]


def test_rules_with_the_same_name_have_their_numbers():
    odd, even = (lambda path, leaf: path.endswith("kernel")), (lambda path, leaf: path.endswith("bias"))
    history = History(jaxreg.Rules((odd, jaxreg.L1(1.0)), (even, jaxreg.L1(1.0))))
    history.record(0, PARAMS)
    names = [name for name in history.last if name.startswith("penalty/rule")]
    assert names == [f"penalty/rule/<lambda>(path, leaf) (rule {i})" for i in (0, 1)]
    assert [history.last[name] for name in names] == pytest.approx([13.0, 4.25])
    repeated = jaxreg.Rules(("k", jaxreg.L1(1.0)), ("k", jaxreg.L1(1.0)), ("k (rule 0)", None), strict=False)
    history = History(repeated)
    history.record(0, PARAMS)
    assert [history.last[f"penalty/rule/k (rule {i})"] for i in (0, 1)] == pytest.approx([13.0, 0.0])
    assert history.last["penalty/total"] == pytest.approx(13.0)


def test_a_constraint_counts_as_0_and_memory_and_keys_reach_the_rules():
    class Noise(jaxreg.Regularizer):
        needs_key = True

        def __call__(self, x, *, key):
            return jax.random.uniform(key)

    rules = jaxreg.Rules(
        ("a$", jaxreg.Anchor(2.0)), ("b$", jaxreg.constraints.NonNeg()), ("c$", jaxreg.L1(1.0)), ("d$", Noise())
    )
    names = {name: jnp.asarray(BIAS) for name in "abcd"}
    key = jax.random.key(3)
    history = History(rules)
    history.record(0, names | {"a": BIAS + 1.0}, memory=rules.init(names), key=key)
    row = history.last
    assert row["penalty/path/a"] == pytest.approx(2.0 / 2 * 2)
    assert row["penalty/path/b"] == row["penalty/rule/b$"] == 0.0
    assert row["penalty/path/d"] == float(jax.random.uniform(jax.random.fold_in(key, 3)))
    assert row["penalty/total"] == pytest.approx(2.0 + 4.25 + row["penalty/path/d"])


class Tied(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.second = self.first


EQUINOX = eqx.nn.MLP(2, 1, 3, 1, activation=jnp.tanh, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("tree", "pattern", "expected"),
    [
        (KERNEL, "", {"penalty/path": KERNEL}),
        (jnp.asarray(BIAS, jnp.bfloat16), "", {"penalty/path": BIAS}),
        (tied := Tied(), "kernel$", {"penalty/path/first/kernel": np.asarray(tied.first.kernel[...])}),
        (EQUINOX, "0/weight$", {"penalty/path/layers/0/weight": np.asarray(EQUINOX.layers[0].weight)}),
        ({"a": optax.MaskedNode(), "b": KERNEL, "c": 3, "d": None}, "a$|b$", {"penalty/path/b": KERNEL}),
        ([{"w": KERNEL}, {"w": BIAS}], "w$", {"penalty/path/0/w": KERNEL, "penalty/path/1/w": BIAS}),
        ({"b": KERNEL}, "b", {"penalty/path/b": KERNEL}),
    ],
    ids=["array", "bfloat16", "tied", "equinox", "masked", "list", "dict"],
)
def test_any_tree_that_rules_take(tree, pattern, expected):
    history = History(jaxreg.Rules((pattern, jaxreg.L2(1.0))))
    history.record(0, tree)
    row = {name: value for name, value in history.last.items() if name.startswith("penalty/path")}
    assert row == pytest.approx({name: np.sum(np.square(x.astype(float))) for name, x in expected.items()}, rel=1e-6)


def test_rules_are_as_strict_as_elsewhere():
    history = History(jaxreg.Rules(("second/kernel$", jaxreg.L2())))
    with pytest.raises(ValueError, match="modules share it"):
        history.record(0, Tied())
    with pytest.raises(ValueError, match="met no parameter"):
        History(RULES).record(0, {"kernel": KERNEL})
    with pytest.raises(ValueError, match="the state of an optimizer"):
        History(RULES).record(0, optax.adam(1.0).init(PARAMS))
    with pytest.raises(TypeError, match="`key` must be a key"):
        History(RULES).record(0, PARAMS, key=0)
    assert history.rows == []


def updated(tx, params):
    return tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[1]


@pytest.mark.standard_promotion
def test_tracked_penalties_are_found_by_their_places():
    # A parameter may be called `penalty`, and Adam has moments of that name.
    params = {"kernel": KERNEL, "penalty": BIAS}
    l1, l2 = jaxreg.Rules(("kernel$", jaxreg.L1(1.0))), jaxreg.Rules(("kernel$", jaxreg.L2(1.0)))
    coupled, norm, square = jaxreg.add_penalty_gradients(l2), 6.5, 14.25
    history = History()
    history.record(0, state=updated(coupled, params))
    history.record(1, state=updated(optax.chain(optax.identity(), coupled, optax.adam(0.0)), params))
    both = jaxreg.proximal(optax.chain(coupled, optax.adam(0.1)), l1, 0.1, check=False)
    history.record(2, state=updated(both, params))
    parts = {"kernel": "a", "penalty": "b"}
    history.record(3, state=updated(optax.partition({"a": coupled, "b": optax.sgd(0.1)}, parts), params))
    history.record(4, state=updated(jaxreg.decoupled(optax.sgd(0.1), l1, 0.1), params))
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(coupled, optax.sgd(0.1)), wrt=nnx.Param)
    weights = np.asarray(model.kernel[...])
    optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    history.record(5, state=optimizer.opt_state)
    assert history.rows == [
        {"step": 0, "penalty/state": square},
        {"step": 1, "penalty/state/1": square},
        {"step": 2, "penalty/state": norm, "penalty/state/inner_state/0": square},
        {"step": 3, "penalty/state/inner_states/a/inner_state": square},
        {"step": 4, "penalty/state": norm},
        {"step": 5, "penalty/state/0": pytest.approx(np.sum(weights**2))},
    ]


def test_numbers_of_a_donated_state_are_kept():
    params = jax.tree.map(jnp.asarray, PARAMS)
    tx = jaxreg.add_penalty_gradients(RULES)
    state, loss = updated(tx, params), jnp.float32(2.5)
    history = History(RULES)
    history.record(0, params, state=state, loss=loss)
    for array in jax.tree.leaves((params, state, loss)):
        array.delete()
    assert history.last["loss"] == 2.5
    assert history.last["penalty/state"] == pytest.approx(history.last["penalty/total"])


def test_numbers_are_fetched_once_and_not_before_they_are_read(monkeypatch):
    fetched = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(len(tree)) or get(tree))
    monkeypatch.setattr(type(jnp.ones(())), "__float__", lambda self: pytest.fail("a number was read"))
    history = History(RULES)
    for step in range(3):
        history.record(step, PARAMS, loss=jnp.float32(step))
    assert fetched == []
    assert [row["loss"] for row in history.rows] == [0, 1, 2]
    history.record(3, PARAMS)
    history.rows[0]["loss"] = 5.0  # changes a copy
    assert history.rows[0]["loss"] == 0
    assert [count for count in fetched if count] == [3, 1]


def test_inside_of_a_compiled_function_is_an_error():
    history, outside = History(RULES), r"must have values, got traced ones: call `record` outside of `jax.jit`"
    with pytest.raises(TypeError, match=f"`params` {outside}"):
        jax.jit(lambda params: history.record(0, params))(PARAMS)
    with pytest.raises(TypeError, match=f"`loss` {outside}"):
        jax.jit(lambda loss: history.record(0, PARAMS, loss=loss))(1.0)
    with pytest.raises(TypeError, match=f"`step` {outside}"):
        jax.jit(lambda step: history.record(step, PARAMS))(1)
    with pytest.raises(TypeError, match=f"`rules` {outside}"):
        jax.jit(lambda rules: History(rules).record(0, PARAMS))(RULES)
    tx = jaxreg.add_penalty_gradients(RULES)
    with pytest.raises(TypeError, match=f"`state` {outside}"):
        jax.vmap(lambda scale: history.record(0, state=tx.init({"w": scale})._replace(penalty=scale)))(jnp.ones(2))
    assert history.rows == []


UNTRACKED = jaxreg.add_penalty_gradients(RULES, track=False).init(PARAMS)
SEEDS = jaxreg.add_penalty_gradients(RULES).init(PARAMS)._replace(penalty=jnp.ones(3))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "`step` must be greater than that of the last record, 5, got 5", lambda h: h.record(5, PARAMS)),
        (ValueError, "`step` must be >= 0, got -1", lambda h: h.record(-1, PARAMS)),
        (TypeError, "`step` must be an int, got float 6.0", lambda h: h.record(6.0, PARAMS)),
        (ValueError, "`params` or `state` must be given, got None for both", lambda h: h.record(6, loss=1.0)),
        (ValueError, "`params` need rules, as in History", lambda h: History().record(6, PARAMS)),
        (ValueError, "`penalty/total` must have another name", lambda h: h.record(6, PARAMS, **{"penalty/total": 1.0})),
        (TypeError, "`loss` must be a real number, got None", lambda h: h.record(6, PARAMS, loss=None)),
        (TypeError, "`loss` must be a real number, got bool True", lambda h: h.record(6, PARAMS, loss=True)),
        (TypeError, r"`loss` must be a real number, got bool\[\]", lambda h: h.record(6, PARAMS, loss=jnp.array(True))),
        (TypeError, "`loss` must be a real number, got str '1'", lambda h: h.record(6, PARAMS, loss="1")),
        (
            TypeError,
            r"`loss` must be a real number, got complex64\[\]",
            lambda h: h.record(6, PARAMS, loss=np.complex64(1)),
        ),
        (ValueError, r"`loss` must be a scalar, got float32\[2\]", lambda h: h.record(6, PARAMS, loss=BIAS)),
        (ValueError, "`state` must hold a penalty .* got PenaltyState without", lambda h: h.record(6, state=UNTRACKED)),
        (ValueError, "`state` must hold a penalty .* got dict without", lambda h: h.record(6, state={"penalty": 1.0})),
        (ValueError, r"`state` must be a scalar, got float32\[3\]", lambda h: h.record(6, state=SEEDS)),
        (TypeError, "`rules` must be jaxreg.Rules or None, got L2", lambda h: History(jaxreg.L2())),
        (ValueError, "the history is empty: call `record` first", lambda h: History(RULES).last),
        (ValueError, "the history is empty: call `record` first", lambda h: History(RULES).to_csv("x")),
        (TypeError, "`path` must be the path of a file, got int 1", lambda h: h.to_csv(1)),
    ],
)
def test_what_cannot_be_recorded_is_an_error_and_leaves_the_history_as_it_is(error, message, call):
    history = History(RULES)
    history.record(5, PARAMS)
    with pytest.raises(error, match=message):
        call(history)
    assert [row["step"] for row in history.rows] == [5]
    assert repr(history) == "History(1 row, steps 5 to 5)"


def test_rows_with_different_names_survive_a_csv_file(tmp_path):
    history = History(jaxreg.Rules(('a,"b', jaxreg.L1(0.1))))
    history.record(0, {'a,"b': BIAS}, loss=math.nan)
    history.record(1, {'a,"b': BIAS, 'a,"b\n2': BIAS}, accuracy=0.1)
    history.record(2, {'a,"b': BIAS}, loss=math.inf, count=3)
    history.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="", encoding="utf-8") as file:
        read = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    assert read == [pytest.approx(row, rel=0, abs=0, nan_ok=True) for row in history.rows]
    assert read[1]['penalty/path/a,"b\n2'] == pytest.approx(0.425)
    assert set(read[0]) ^ set(read[1]) == {"loss", "accuracy", 'penalty/path/a,"b\n2'}


def test_a_dataframe_has_the_steps_as_its_index(monkeypatch):
    """pandas is no dependency of the tests: a stand-in shows what it is given."""

    class DataFrame(types.SimpleNamespace):
        def __init__(self, rows, columns):
            super().__init__(rows=rows, columns=columns)

        def set_index(self, name):
            return self.columns, self.rows, name

    history = History(RULES)
    history.record(0, PARAMS, loss=1.0)
    history.record(1, PARAMS, accuracy=0.5)
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=DataFrame))
    columns, rows, index = history.to_dataframe()
    assert (rows, index) == (history.rows, "step")
    assert columns == [*history.rows[0], "accuracy"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="`to_dataframe` needs pandas: pip install pandas"):
        history.to_dataframe()


@pytest.mark.parametrize(
    "value",
    [np.array("a"), np.array(object()), np.timedelta64(3, "s"), np.complex64(1)],
    ids=["text", "object", "duration", "complex"],
)
def test_a_bad_scalar_is_an_error_at_once_and_leaves_the_history_as_it_is(value):
    history = History(RULES)
    history.record(0, PARAMS)
    with pytest.raises(TypeError, match="`loss` must be a real number, got"):
        history.record(1, PARAMS, loss=value)
    assert [row["step"] for row in history.rows] == [0]


def test_narrow_scalars_are_numbers():
    history = History(RULES)
    history.record(0, PARAMS, a=np.asarray(jnp.ones(2, jnp.bfloat16))[0], b=np.float16(0.5), c=jnp.bfloat16(2.0))
    assert (history.last["a"], history.last["b"], history.last["c"]) == (1.0, 0.5, 2.0)


def test_a_record_inside_of_jit_is_an_error_although_all_its_arguments_are_constants():
    history = History(RULES)
    with pytest.raises(TypeError, match="`params` must have values, got traced ones"):
        jax.jit(lambda x: (history.record(1, PARAMS), x)[1])(1.0)
    with pytest.raises(ValueError, match="the history is empty"):
        _ = history.last


def test_parameters_on_several_devices():
    first, second = jax.devices()[:2]
    params = {"a": {"kernel": jax.device_put(KERNEL, first)}, "b": {"kernel": jax.device_put(2 * KERNEL, second)}}
    history = History(jaxreg.Rules((r"kernel$", jaxreg.L2(0.5))))
    history.record(0, params)
    assert history.last["penalty/path/b/kernel"] == pytest.approx(2.0 * float(np.sum(KERNEL**2)))


def test_shapes_are_an_error_with_the_path():
    history = History(RULES)
    with pytest.raises(TypeError, match=r"`params` must hold values, got the shape .* at `Dense_0/bias`"):
        history.record(0, jax.eval_shape(lambda: PARAMS))
