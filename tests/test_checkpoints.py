"""States and rules that are written, read and used on: by orbax, Flax, pickle and export, and into another optimizer.

A run that goes on from a checkpoint has the same bits as one that was never stopped.
"""

import json
import pickle

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax import export
from transform_cases import (
    ADAM,
    GRADIENTS,
    PARAMS,
    RULES,
    STRENGTHS,
    TRANSFORMS,
    Reference,
    flat,
    nested,
)

import jaxreg
from jaxreg import Rules

# The Adam of optax mixes dtypes.
pytestmark = pytest.mark.standard_promotion


def rate(count):
    return 0.1 / (1 + count)


class Run:
    """An optimizer with one compiled step."""

    def __init__(self, tx):
        def step(params, state, gradient):
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        self.tx, self.step = tx, jax.jit(step)

    def begun(self, gradients):
        """Returns parameters and state after some gradients from the start."""
        params = nested(PARAMS)
        return self.steps((params, self.tx.init(params)), gradients)

    def steps(self, params_and_state, gradients):
        for gradient in gradients:
            params_and_state = self.step(*params_and_state, nested(gradient))
        return params_and_state


def by_orbax(path, tree, like=None):
    """Writes a tree, and reads it in the structure of another one."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "checkpoint", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "checkpoint", jax.eval_shape(lambda: tree if like is None else like))


COUPLED, DECOUPLED, PROXIMAL = TRANSFORMS[2], TRANSFORMS[4], TRANSFORMS[-1]
WITH_ADAM = pytest.mark.parametrize("row", [COUPLED, DECOUPLED, PROXIMAL], ids=str)
WRAPPERS = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "masked": lambda tx: optax.masked(tx, {"hidden": True, "head": False}),
}


def goes_on(tx, path):
    run = Run(tx)
    middle = run.begun(GRADIENTS[:3])
    restored = by_orbax(path, middle)
    chex.assert_trees_all_equal_structs(restored, middle)
    chex.assert_trees_all_equal(run.steps(restored, GRADIENTS[3:]), run.steps(middle, GRADIENTS[3:]))


@pytest.mark.parametrize("row", TRANSFORMS, ids=str)
def test_orbax(row, tmp_path):
    goes_on(row.make(rate, RULES), tmp_path)


@WITH_ADAM
def test_orbax_with_a_key_and_without_a_penalty(row, tmp_path):
    goes_on(row.make(rate, RULES, track=False, key=jax.random.key(1)), tmp_path)


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("row", [COUPLED, DECOUPLED], ids=str)
def test_orbax_in_a_wrapper(row, wrapper, tmp_path):
    goes_on(wrapper(row.make(rate, RULES)), tmp_path)


def test_a_manager_keeps_rules_beside_the_state(tmp_path):
    """Rules are JSON. Those that come back make the same optimizer, which goes on to the same bits."""
    run = Run(jaxreg.decoupled(optax.adam(rate), RULES, rate))
    middle = run.begun(GRADIENTS[:2])
    with ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions(max_to_keep=1)) as manager:
        state, config = ocp.args.StandardSave(middle), ocp.args.JsonSave(RULES.get_config())
        manager.save(2, args=ocp.args.Composite(state=state, rules=config))
    with ocp.CheckpointManager(tmp_path) as manager:
        found = manager.restore(manager.latest_step(), args=ocp.args.Composite(rules=ocp.args.JsonRestore()))
        again = Rules.from_config(found["rules"])
        other = Run(jaxreg.decoupled(optax.adam(rate), again, rate))
        like = jax.eval_shape(lambda: other.begun([]))
        restored = manager.restore(2, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))["state"]
    assert again == RULES
    chex.assert_trees_all_equal(other.steps(restored, GRADIENTS[2:]), run.steps(middle, GRADIENTS[2:]))


def test_rules_are_restored_with_their_strengths(tmp_path):
    """By pickle and JSON as they are, and as trees whose strengths were learned by orbax and Flax."""
    assert pickle.loads(pickle.dumps(RULES)) == RULES
    assert Rules.from_config(json.loads(json.dumps(RULES.get_config()))) == RULES
    learned = jax.tree.map(lambda strength: jnp.float32(strength) / 3, RULES)
    by_flax = flax.serialization.from_bytes(jax.tree.map(jnp.zeros_like, learned), flax.serialization.to_bytes(learned))
    for restored in (by_orbax(tmp_path, learned), by_flax, pickle.loads(pickle.dumps(learned))):
        chex.assert_trees_all_equal_structs(restored, learned)
        chex.assert_trees_all_equal(restored, learned)


def test_memory_and_a_state_dict(tmp_path):
    """The memory of `Anchor` is a part of the state, and comes back as the state dict of Flax too."""
    run = Run(optax.chain(jaxreg.add_penalty_gradients(Rules((r"kernel$", jaxreg.Anchor(0.1)))), optax.adam(rate)))
    middle = run.begun(GRADIENTS[:2])
    moved = jax.tree.map(lambda p: p + 1, nested(PARAMS))
    blank = (moved, run.tx.init(moved))
    by_flax = flax.serialization.from_state_dict(blank, flax.serialization.to_state_dict(middle))
    expected = run.steps(middle, GRADIENTS[2:])
    for restored in (by_orbax(tmp_path, middle, like=blank), by_flax):
        chex.assert_trees_all_equal(run.steps(restored, GRADIENTS[2:]), expected)


# NNX.


class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 3, rngs=rngs)
        self.head = nnx.Linear(3, 2, use_bias=False, rngs=rngs)


def nnx_steps(model, optimizer, gradients):
    @nnx.jit
    def step(model, optimizer, gradient):
        def loss(model):
            return sum(map(jnp.vdot, jax.tree.leaves(nnx.state(model, nnx.Param)), jax.tree.leaves(gradient)))

        optimizer.update(model, nnx.grad(loss)(model))

    for gradient in gradients:
        step(model, optimizer, nested(gradient))
    return nnx.to_pure_dict(nnx.state((model, optimizer)))


def made(tx, seed=0):
    model = Model(nnx.Rngs(seed))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


@pytest.mark.parametrize("row", [COUPLED, DECOUPLED], ids=str)
def test_nnx(row, tmp_path):
    """The state of model and optimizer comes back into others, by `nnx.update` and by `nnx.merge`."""
    tx = row.make(rate, RULES)
    first = made(tx)
    nnx_steps(*first, GRADIENTS[:2])
    graph, state = nnx.split(first)
    restored = by_orbax(tmp_path, state)
    expected = nnx_steps(*first, GRADIENTS[2:])
    second = made(tx, seed=1)
    nnx.update(second, restored)
    for pair in (second, nnx.merge(graph, restored)):
        chex.assert_trees_all_equal(nnx_steps(*pair, GRADIENTS[2:]), expected)


# A transform that is added to a run. The optimizer of the old run is Adam.

OLD = optax.adam(rate, **ADAM)
NEW = {
    "coupled": (COUPLED, lambda new, old, count: (new[0], old)),
    "decoupled": (DECOUPLED, lambda new, old, count: new._replace(count=count, inner_state=old)),
    "proximal": (PROXIMAL, lambda new, old, count: new._replace(count=count, inner_state=old)),
}
NOTHING = dict.fromkeys(STRENGTHS, (0.0, 0.0))


def coupled():
    return optax.chain(jaxreg.add_penalty_gradients(RULES), OLD)


@pytest.mark.parametrize(("row", "put_in"), NEW.values(), ids=NEW)
def test_a_transform_is_added_to_a_run(row, put_in, tmp_path):
    """The steps after it are those of NumPy with penalties from there on, at the rate that the schedule had reached."""
    params, old_state = before = Run(OLD).begun(GRADIENTS[:2])
    run = Run(coupled() if row is COUPLED else row.make(rate, RULES))
    new_state = run.tx.init(params)
    with pytest.raises(ValueError, match="Structure mismatch"):
        by_orbax(tmp_path / "refused", before, like=(params, new_state))
    restored, old = by_orbax(tmp_path, before)
    count = jnp.asarray(2, jnp.int32)
    found = run.steps((restored, put_in(new_state, old, count)), GRADIENTS[2:])
    chex.assert_trees_all_equal(found, run.steps((params, put_in(new_state, old_state, count)), GRADIENTS[2:]))

    reference, expected = Reference(row, NOTHING), PARAMS
    for index, gradient in enumerate(GRADIENTS):
        if index == 2:
            reference._strengths = STRENGTHS
        expected = reference.step(expected, gradient, rate(index))
    for path, value in flat(found[0]).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)
    np.testing.assert_allclose(optax.tree.get(found[1], "penalty"), reference.penalty, rtol=1e-5)


def test_a_transform_is_taken_out_of_a_run(tmp_path):
    """The rest of its state is that of the optimizer inside."""
    old, plain = Run(coupled()), Run(OLD)
    params, state = by_orbax(tmp_path, old.begun(GRADIENTS[:2]))
    found, _ = plain.steps((params, state[1]), GRADIENTS[2:])
    reference, expected = Reference(COUPLED), PARAMS
    for index, gradient in enumerate(GRADIENTS):
        if index == 2:
            reference._strengths = NOTHING
        expected = reference.step(expected, gradient, rate(index))
    for path, value in flat(found).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_transform_is_added_to_a_run_of_nnx(tmp_path):
    first = made(OLD)
    nnx_steps(*first, GRADIENTS[:2])
    model, before = made(OLD, seed=1)
    nnx.update((model, before), by_orbax(tmp_path, nnx.state(first)))
    optimizer = nnx.Optimizer(model, coupled(), wrt=nnx.Param)
    optimizer.opt_state = (optimizer.opt_state[0], before.opt_state)
    optimizer.step[...] = before.step[...]
    start = flat(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    nnx_steps(model, optimizer, GRADIENTS[2:])

    # The weights began elsewhere, so the steps of the reference begin there too, with the same moments.
    reference = Reference(COUPLED, NOTHING)
    for index, gradient in enumerate(GRADIENTS[:2]):
        reference.step(PARAMS, gradient, rate(index))
    reference._strengths, expected = STRENGTHS, start
    for index, gradient in enumerate(GRADIENTS[2:], start=2):
        expected = reference.step(expected, gradient, rate(index))
    for path, value in flat(nnx.to_pure_dict(nnx.state(model, nnx.Param))).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)
    assert optimizer.step[...] == len(GRADIENTS)


# Export.


def test_an_exported_loss_has_the_rules_in_it():
    """The program takes the parameters alone, for every size of the batch."""

    def loss(params, x):
        return jnp.mean(jnp.square(x @ params["hidden"]["kernel"])) + RULES(params)

    params, x = nested(PARAMS), jnp.ones((5, 4))
    batch = jax.ShapeDtypeStruct(export.symbolic_shape("b, 4"), jnp.float32)
    exported = export.export(jax.jit(jax.value_and_grad(loss)))(params, batch)
    assert len(exported.in_avals) == len(jax.tree.leaves(params)) + 1
    chex.assert_trees_all_close(exported.call(params, x), jax.jit(jax.value_and_grad(loss))(params, x), rtol=1e-6)


@WITH_ADAM
def test_an_exported_step_of_training(row):
    run = Run(row.make(rate, RULES))
    args = (*run.begun([]), nested(GRADIENTS[0]))
    exported = export.export(run.step)(*args)
    assert len(exported.in_avals) == len(jax.tree.leaves(args))
    chex.assert_trees_all_equal(exported.call(*args), run.step(*args))
