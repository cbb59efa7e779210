"""A Keras CNN keeps its regularizers and constraints in an optax loop: `jaxreg.from_keras` reads them off its weights.

The network has what Keras users write: names, `L1L2`, an orthogonal regularizer, `MaxNorm` with the axes of a
convolution, `UnitNorm`, `NonNeg`, a regularizer of a BatchNorm gamma, an activity regularizer and a frozen layer. It
trains on scikit-learn's digits by `model.stateless_call`, with jaxreg in the place of Keras's losses and constraints:

- the penalties of `from_keras(model, constraints=False)` are in the loss;
- the projections of `from_keras(model, regularizers=False)` end each step, by `jaxreg.proximal`;
- the activity regularizer, which a warning names, becomes an `activity_penalty`.

The trained weights go back into the Keras model. The table compares its own `sum(model.losses)` with jaxreg's number,
and shows how far Keras's constraints would still move the weights. The script fails unless the losses agree to 1e-5
and no weight moves by more than 1e-5.

    python examples/from_keras.py             # about half a minute on two cores
    python examples/from_keras.py --smoke     # few steps

It needs Keras 3, which `pip install -e ".[examples,test]"` brings.
"""

import argparse
import os
import warnings
from typing import Any, NamedTuple

os.environ["KERAS_BACKEND"] = "jax"  # Keras reads it when it is imported

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from keras import layers
from keras.constraints import MaxNorm
from keras.regularizers import L1, L1L2, OrthogonalRegularizer
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import trange

import jaxreg

TOLERANCE = 1e-5
BATCH = 64

Params = dict[str, jax.Array]  # by path


def build() -> keras.Model:
    """A CNN whose weights are regularized in many ways, as Keras writes them. Its second output is that of `conv`."""
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 1))
    # A frozen layer has no penalty, although it has a regularizer.
    x = layers.Conv2D(8, 3, activation="relu", kernel_regularizer="l2", trainable=False, name="stem")(images)
    conv = layers.Conv2D(
        16,
        3,
        activation="relu",
        kernel_regularizer="l2",
        kernel_constraint=MaxNorm(1.0, axis=[0, 1, 2]),
        activity_regularizer=L1(1e-4),
        name="conv",
    )(x)
    x = layers.BatchNormalization(gamma_regularizer=L1(1e-4), name="norm")(conv)
    x = layers.Conv2D(32, 3, activation="relu", kernel_regularizer=L1L2(1e-6, 1e-4), name="conv_2")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(
        32,
        activation="relu",
        kernel_regularizer=OrthogonalRegularizer(1e-2, mode="columns"),
        bias_constraint="non_neg",
        name="hidden",
    )(x)
    x = layers.Dense(10, bias_regularizer="l1", kernel_constraint="unit_norm", name="head")(x)
    return keras.Model(images, [x, conv], name="digits")


class Rules(NamedTuple):
    """What the model asks for, in three parts."""

    penalties: jaxreg.Rules
    projections: jaxreg.Rules
    activities: jaxreg.Rules

    def loss(self, params: Params, output: jax.Array) -> jax.Array:
        """What Keras has in `sum(model.losses)`."""
        activity = jaxreg.activity_penalty(self.activities, {"conv": output}, batch_size=len(output))
        return self.penalties(params) + activity


def rules_of(model: keras.Model) -> Rules:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        penalties = jaxreg.from_keras(model, constraints=False)
    print(f"The warning: {caught[0].message}\n")
    projections = jaxreg.from_keras(model, regularizers=False)
    return Rules(penalties, projections, jaxreg.Rules((r"^conv$", jaxreg.L1(1e-4))))


def train(model: keras.Model, rules: Rules, steps: int, images: np.ndarray, labels: np.ndarray) -> tuple[Params, list]:
    """The trainable variables by path, and the other variables, after `steps` of Adam."""
    tx = jaxreg.proximal(optax.adam(3e-3), rules.projections)
    paths = [v.path for v in model.trainable_variables]

    def loss(params: Params, rest: list[jax.Array], images: jax.Array, labels: jax.Array) -> tuple[jax.Array, list]:
        values = [params[path] for path in paths]  # JAX sorts the keys of a dict, and Keras has its own order
        (logits, output), rest = model.stateless_call(values, rest, images, training=True)
        task = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        return task + rules.loss(params, output), rest

    @jax.jit
    def step(params: Params, rest: list[jax.Array], opt_state: Any, images: jax.Array, labels: jax.Array) -> tuple:
        grads, rest = jax.grad(loss, has_aux=True)(params, rest, images, labels)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), rest, opt_state

    params = {v.path: v.value for v in model.trainable_variables}
    rest = [v.value for v in model.non_trainable_variables]
    opt_state = tx.init(params)
    order = np.random.default_rng(0)
    for _ in trange(steps, unit="step"):
        batch = order.choice(len(images), BATCH, replace=False)
        params, rest, opt_state = step(params, rest, opt_state, images[batch], labels[batch])
    return params, rest


def compare(model: keras.Model, rules: Rules, images: np.ndarray, labels: np.ndarray) -> tuple[Table, float, float]:
    """The losses of Keras beside the penalties of jaxreg, their largest difference, and the largest move."""
    params = {v.path: v.value for v in model.trainable_variables}
    values = list(params.values()), [v.value for v in model.non_trainable_variables]
    call = jax.jit(lambda *values: model.stateless_call(*values, images, return_losses=True))
    (logits, output), _, losses = call(*values)  # these are `model.losses` for the images
    accuracy = np.mean(np.argmax(logits, axis=1) == labels)

    table = Table(title="A Keras CNN and the rules that jaxreg makes of it, after training")
    table.add_column("path")
    table.add_column("rule", overflow="fold")
    table.add_column("Keras", justify="right")
    table.add_column("jaxreg", justify="right")
    regularized = [v for v in model.trainable_variables if v.regularizer is not None]
    own = [float(v.regularizer(v)) for v in regularized]
    found = rules.penalties.breakdown(params)
    rows = [
        (v.path, repr(rule), loss, float(found[v.path]))
        for v, rule, loss in zip(regularized, rules.penalties.regularizers, own, strict=True)
    ]
    total, sum_here = float(sum(losses)), float(rules.loss(params, output))
    activity = repr(rules.activities.regularizers[0])
    rows.append(("output of conv", activity, total - sum(own), sum_here - sum(map(float, found.values()))))
    rows.append(("sum(model.losses)", "", total, sum_here))
    for path, rule, theirs, ours in rows:
        table.add_row(path, rule, f"{theirs:.7f}", f"{ours:.7f}", end_section=path == "output of conv")
    table.add_section()

    moves = []
    constrained = [v for v in model.trainable_variables if v.constraint is not None]
    for variable, rule in zip(constrained, rules.projections.regularizers, strict=True):
        moves.append(float(jnp.max(jnp.abs(variable.constraint(variable.value) - variable.value))))
        table.add_row(variable.path, repr(rule), f"moves {moves[-1]:.0e}", "in the set")
    table.caption = f"{accuracy:.1%} of the test digits are right. Keras would move constrained weights as shown."
    return table, max(abs(theirs - ours) / total for _, _, theirs, ours in rows), max(moves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--smoke", action="store_true", help="20 steps")
    args = parser.parse_args()

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    x, x_test, y, y_test = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)

    model = build()
    rules = rules_of(model)
    params, rest = train(model, rules, 20 if args.smoke else args.steps, x, y)
    for variable in model.trainable_variables:
        variable.assign(params[variable.path])
    for variable, value in zip(model.non_trainable_variables, rest, strict=True):
        variable.assign(value)

    table, error, move = compare(model, rules, x_test, y_test)
    Console(width=120).print(table)
    if error > TOLERANCE or move > TOLERANCE:
        raise SystemExit(f"The losses differ by {error:.1e} and weights move by {move:.1e}, above {TOLERANCE:g}.")


if __name__ == "__main__":
    main()
