"""Strengths are leaves: one compiled program trains 32 of them, and a gradient then improves them.

First, `jax.vmap` over `Rules` whose strength is stacked trains 32 models of an MLP on a few of scikit-learn's digits;
a validation split picks the strength. Then the whole training run is differentiated with respect to rules with two
strengths per layer: `jax.grad` of the validation loss after training gives `Rules` of gradients, which finite
differences confirm, and a few steps along them on the logarithms of the strengths lower the validation loss.

    python examples/sweep.py              # well under a minute on two cores
    python examples/sweep.py --smoke      # the same path, with less of everything
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jaxreg


class MLP(nn.Module):
    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        # Smooth, so that the trained weights are a smooth function of the strengths.
        x = nn.tanh(nn.Dense(64, name="hidden")(pixels))
        return nn.Dense(10, name="head")(x)


class Split(NamedTuple):
    pixels: jax.Array
    labels: jax.Array


def load_splits(train_size: int) -> tuple[Split, Split, Split]:
    """A few digits for training, 500 for validation, the rest for testing."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels.astype(np.float32) / 16
    train, rest, train_labels, rest_labels = train_test_split(
        pixels, labels, train_size=train_size, stratify=labels, random_state=0
    )
    validation, test, validation_labels, test_labels = train_test_split(
        rest, rest_labels, train_size=500, stratify=rest_labels, random_state=0
    )
    pairs = ((train, train_labels), (validation, validation_labels), (test, test_labels))
    return tuple(Split(jnp.asarray(x), jnp.asarray(y)) for x, y in pairs)


def task_loss(params: Any, split: Split) -> jax.Array:
    logits = MLP().apply({"params": params}, split.pixels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, split.labels).mean()


def accuracy(params: Any, split: Split) -> jax.Array:
    return jnp.mean(MLP().apply({"params": params}, split.pixels).argmax(-1) == split.labels)


def train(rules: jaxreg.Rules, split: Split, steps: int) -> Any:
    """The parameters after `steps` steps from a fixed start; the strengths in `rules` may be tracers."""
    tx = optax.sgd(0.2, momentum=0.9)
    params = MLP().init(jax.random.key(0), split.pixels)["params"]

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        params, opt_state = carry
        gradients = jax.grad(lambda params: task_loss(params, split) + rules(params))(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return params


def make_table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def sweep(splits: tuple[Split, Split, Split], count: int, steps: int, console: Console) -> None:
    """Trains one model for each of `count` strengths, in one compiled program."""
    traces = 0

    def evaluate(rules: jaxreg.Rules) -> dict[str, jax.Array]:
        nonlocal traces
        traces += 1  # Python runs this line when JAX traces, not when the compiled program runs
        params = train(rules, splits[0], steps)
        return {
            "loss": jnp.stack([task_loss(params, split) for split in splits]),
            "accuracy": jnp.stack([accuracy(params, split) for split in splits]),
        }

    strengths = jnp.logspace(-6, 0, count)
    stacked = jaxreg.Rules((r"kernel$", jaxreg.L2(strengths)))
    results = jax.device_get(jax.jit(jax.vmap(evaluate))(stacked))
    train_loss, validation_loss, test_loss = results["loss"].T
    _, validation_accuracy, test_accuracy = results["accuracy"].T
    best = int(validation_loss.argmin())

    table = make_table(
        f"L2 on every kernel, {len(splits[0].labels)} training digits",
        *("strength", "train loss", "validation loss", "test loss", "validation accuracy", "test accuracy", ""),
    )
    for i in sorted({*range(0, count, 3), count - 1, best}):
        losses = (f"{loss[i]:.4f}" for loss in (train_loss, validation_loss, test_loss))
        accuracies = (f"{share[i]:.1%}" for share in (validation_accuracy, test_accuracy))
        chosen = ("chosen", "bold") if i == best else ("", None)
        table.add_row(f"{strengths[i]:.2e}", *losses, *accuracies, chosen[0], style=chosen[1])
    console.print(table)
    print(
        f"Strengths trained: {count}. Traces of the program: {traces}. The smallest validation loss is at the strength "
        f"{strengths[best]:.2e}, whose test accuracy is {test_accuracy[best]:.1%}.\n"
    )


def tune(splits: tuple[Split, Split, Split], train_steps: int, tuning_steps: int, console: Console) -> None:
    """Differentiates training with respect to the strengths, and improves them."""
    train_split, validation, test = splits
    # Two strengths a layer. None is of L1: its subgradient steps throw a weight to and fro over 0, and a derivative
    # does not see such jumps.
    rules = jaxreg.Rules(
        (r"hidden/kernel$", jaxreg.L2(1e-4) + jaxreg.OrthogonalRegularizer(1e-2, mode="columns")),
        (r"head/kernel$", jaxreg.L2(1e-4)),
        (r"head/bias$", jaxreg.L2(1e-4)),
    )
    # A Python number and an array are different types to `jax.jit`, and each would be compiled.
    rules = jax.tree.map(jnp.float32, rules)

    def validation_loss_after_training(rules: jaxreg.Rules) -> jax.Array:
        return task_loss(train(rules, train_split, train_steps), validation)

    loss_and_gradient = jax.jit(jax.value_and_grad(validation_loss_after_training))
    _, gradient = loss_and_gradient(rules)
    finite_differences = central_differences(validation_loss_after_training, rules)

    # On logarithms the strengths stay positive, and one step size serves all their magnitudes.
    tx = optax.adam(0.2)
    log_rules = jax.tree.map(jnp.log, rules)
    opt_state = tx.init(log_rules)
    with tqdm(range(tuning_steps), desc="steps on the log-strengths") as progress:
        for _ in progress:
            strengths = jax.tree.map(jnp.exp, log_rules)
            loss, slopes = loss_and_gradient(strengths)
            log_slopes = jax.tree.map(jnp.multiply, strengths, slopes)  # dL/d(log s) = s dL/ds
            updates, opt_state = tx.update(log_slopes, opt_state)
            log_rules = optax.apply_updates(log_rules, updates)
            progress.set_postfix(validation_loss=f"{loss:.4f}")
    tuned = jax.tree.map(jnp.exp, log_rules)

    table = make_table(
        f"Strengths, and the gradient of the validation loss after {train_steps} steps of training",
        *("strength", "before", "jax.grad", "finite difference", f"after {tuning_steps} steps"),
    )
    names = [
        f"{pattern} {jax.tree_util.keystr(path[-1:], simple=True)}"
        for pattern, regularizer in zip(rules.patterns, rules.regularizers, strict=True)
        for path, _ in jax.tree.leaves_with_path(regularizer)
    ]
    columns = (jax.tree.leaves(tree) for tree in (rules, gradient, finite_differences, tuned))
    for name, before, slope, difference, after in zip(names, *columns, strict=True):
        table.add_row(name, f"{before:.2e}", f"{slope:+.5f}", f"{difference:+.5f}", f"{after:.2e}")
    console.print(table)

    @jax.jit
    def evaluate(rules: jaxreg.Rules) -> tuple[jax.Array, ...]:
        params = train(rules, train_split, train_steps)
        return task_loss(params, validation), task_loss(params, test), accuracy(params, test)

    table = make_table("Effect of the steps", "strengths", "validation loss", "test loss", "test accuracy")
    for name, strengths in (("before", rules), ("after", tuned)):
        validation_loss, test_loss, test_accuracy = evaluate(strengths)
        table.add_row(name, f"{validation_loss:.4f}", f"{test_loss:.4f}", f"{test_accuracy:.1%}")
    console.print(table)


def central_differences(function: Callable[[jaxreg.Rules], jax.Array], rules: jaxreg.Rules) -> jaxreg.Rules:
    """Finite differences of `function` in each strength, all trained at once."""
    strengths, unravel = ravel_pytree(rules)
    distances = 0.03 * strengths  # far enough apart for float32 to see a difference
    evaluate = jax.jit(jax.vmap(lambda flat: function(unravel(flat))))
    above, below = (evaluate(strengths + sign * jnp.diag(distances)) for sign in (1, -1))
    return unravel((above - below) / (2 * distances))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-size", type=int, default=100, help="how many digits to train on")
    parser.add_argument("--smoke", action="store_true", help="few strengths, few steps")
    args = parser.parse_args()
    count, steps, tuning_steps = (6, 20, 2) if args.smoke else (32, 300, 15)

    splits = load_splits(args.train_size)
    console = Console(width=120)
    sweep(splits, count, steps, console)
    tune(splits, steps, tuning_steps, console)


if __name__ == "__main__":
    main()
