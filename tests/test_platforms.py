"""Everything public lowers for GPUs and TPUs, on a machine that has neither."""

import jax
import jax.numpy as jnp
import optax
import pytest
from cases import KERNELS, MADE, ONE

import jaxreg
from jaxreg import diagnostics, penalties

TREE = {"Dense_0": {"kernel": jax.ShapeDtypeStruct((8, 6), jnp.float32)}}


def lowers(function, *args):
    exported = jax.export.export(jax.jit(function), platforms=["cpu", "cuda", "tpu"])(*args)
    assert exported.platforms == ("cpu", "cuda", "tpu")


def struct(shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("case", KERNELS, ids=str)
def test_penalties(case):
    lowers(jax.value_and_grad(case.penalty), struct(case.shape))


@pytest.mark.parametrize("regularizer", [jaxreg.SRIP(kept=True), jaxreg.Spectral(kept=True)], ids=str)
def test_kept_blocks(regularizer):
    """The kernel has more dimensions than a block has vectors."""

    def step(x):
        memory = regularizer.init(x)
        return jax.value_and_grad(regularizer)(x, memory=memory), regularizer.updated(x, memory)

    lowers(step, struct((40, 30)))


@pytest.mark.parametrize("case", ONE, ids=str)
def test_penalties_of_bfloat16(case):
    lowers(jax.value_and_grad(case.penalty), struct(case.shape, "bfloat16"))


@pytest.mark.parametrize("case", [v for v in KERNELS if v.case.prox is not None], ids=str)
def test_proxes(case):
    lowers(case.prox, struct(case.shape), struct(()))
    if case.case.steps_for_each:
        lowers(case.prox, struct(case.shape), struct(case.shape))


@pytest.mark.parametrize("case", [v for v in ONE if len(v.shape) > 1], ids=str)
def test_second_derivatives(case):
    lowers(jax.hessian(case.penalty), struct(case.shape))


@pytest.mark.standard_promotion
@pytest.mark.parametrize("made", MADE, ids=str)
def test_rules_and_transforms(made):
    rules = jaxreg.Rules((r"kernel$", made.make()))
    tree = {"Dense_0": {"kernel": struct(made.shape)}}
    lowers(rules.breakdown, tree)
    transforms = []
    if not made.case.flat:
        lowers(jax.value_and_grad(rules), tree)
        transforms += [jaxreg.add_penalty_gradients(rules), jaxreg.decoupled(optax.adam(1e-3), rules, 1e-3)]
    if made.make().has_prox:
        lowers(rules.prox, tree, struct(()))
        transforms += [
            jaxreg.proximal(optax.sgd(1e-3), rules, 1e-3, check=False),
            jaxreg.proximal(optax.adam(1e-3), rules, 1e-3, metric="euclidean"),
        ]
    if made.make().has_metric_prox:
        transforms += [jaxreg.proximal_adam(1e-3, rules)]
    for tx in transforms:
        lowers(tx.update, tree, jax.eval_shape(tx.init, tree), tree)


@pytest.mark.parametrize("precision", [None, "highest", "cosines"])
@pytest.mark.parametrize("penalty", [penalties.orthogonal, penalties.frame_potential])
@pytest.mark.parametrize("shape", [(5000, 16), (16, 5000), (700, 16), (5000, 5000)], ids=str)
def test_large_gram_matrices(penalty, shape, precision):
    lowers(jax.value_and_grad(lambda x: penalty(x, precision=precision)), struct(shape))


def test_samples_and_diagnostics():
    key = jax.eval_shape(jax.random.key, 0)
    lowers(lambda x, key: penalties.orthogonal(x, sample=4, key=key), struct((8, 6)), key)
    lowers(diagnostics.cosines, struct((8, 6)))
    lowers(diagnostics.mutual_coherence, struct((2000, 6)))
    lowers(diagnostics.sparsity, TREE)
    lowers(diagnostics.dead_units, TREE)
    lowers(lambda tree: jaxreg.activity_penalty(jaxreg.Rules((r"kernel$", "l2")), tree, batch_size=8), TREE)
