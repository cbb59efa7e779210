"""Fine-tuning forgets an old task, and an anchor keeps a part of it: L2-SP, EWC and L2-Init by one regularizer.

An MLP learns one half of scikit-learn's digits, and is then fine-tuned on the other half, whose images are turned by a
quarter. The head and its ten classes are the same. The old task is to read upright digits, and the new one to read
turned ones. During fine-tuning `jaxreg.Anchor` pulls the weights to a reference, and the methods differ in its memory:

- L2-SP has `memory=rules.init(pretrained)`, so that each weight is pulled to its pretrained value;
- EWC has `memory=rules.init(pretrained, importance=fisher)`, so that the weights that matter to the old task are pulled
  more. `jaxreg.diagnostics.fisher_diagonal` measures how much they matter;
- L2-Init has `memory=rules.init(initial)`, the values from before any training. It is meant to keep a network able to
  learn, and not to keep what it has learned, so it shows what a pull does that knows nothing of the old task.

The penalty enters by `jaxreg.add_penalty_gradients` before Adam. All three methods are defined by an objective, loss
plus penalty, and this placement minimizes it. `jaxreg.decoupled` would add the pull to the steps of Adam. The size of
these says little about that of the gradient, so that the strength would no longer weigh one task against the other.

Each method trains at a path of strengths, with all strengths and seeds at once in two calls of `jax.vmap`. Its strength
for the table is the one with the best mean of both accuracies on validation digits. All numbers shown are of test
digits.

    python examples/finetune.py             # about half a minute on two cores
    python examples/finetune.py --smoke     # the same path, with less of everything

The picture is `examples/output/finetune.png`; `--output FOLDER` puts it elsewhere.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jaxreg

NOTHING, L2_SP, EWC, L2_INIT = "nothing", "L2-SP", "EWC", "L2-Init"
OLD, NEW = "upright", "turned"

# The Fisher information of most weights is far below 1, so that EWC needs larger strengths.
STRENGTHS = {L2_SP: np.logspace(-3, 1, 9), EWC: np.logspace(0, 4, 9), L2_INIT: np.logspace(-3, 0, 7)}


class MLP(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(64, name="hidden")(images))
        return nn.Dense(10, name="head")(x)


def apply(params: Any, images: jax.Array) -> jax.Array:
    return MLP().apply({"params": params}, images)


class Digits(NamedTuple):
    images: jax.Array
    labels: jax.Array


Tasks = dict[str, Digits]


class Accuracies(NamedTuple):
    """Accuracies on the two tasks, each an array (strengths, seeds)."""

    old: np.ndarray
    new: np.ndarray


def as_task(task: str, images: np.ndarray, labels: np.ndarray) -> Digits:
    shown = images if task == OLD else np.rot90(images, axes=(1, 2))
    return Digits(jnp.asarray(shown.reshape(len(images), -1)), jnp.asarray(labels))


def load_data(limit: int | None) -> tuple[Tasks, Tasks, Tasks]:
    """Both tasks for training, validation and testing: a fixed split of the first `limit` digits.

    For training each task has its own half of the digits. For validation and testing both have the same ones.
    """
    pixels, labels = (array[:limit] for array in load_digits(return_X_y=True))
    digits = (pixels.reshape(-1, 8, 8).astype(np.float32) / 16, labels)

    def halves(images: np.ndarray, labels: np.ndarray, size: float) -> tuple[tuple, tuple]:
        parts = train_test_split(images, labels, test_size=size, stratify=labels, random_state=0)
        return tuple(parts[::2]), tuple(parts[1::2])

    training, others = halves(*digits, 0.4)
    training_halves = zip((OLD, NEW), halves(*training, 0.5), strict=True)
    validation, test = ({task: as_task(task, *half) for task in (OLD, NEW)} for half in halves(*others, 0.5))
    return {task: as_task(task, *half) for task, half in training_halves}, validation, test


def make_batches(digits: Digits, steps: int, seeds: int) -> jax.Array:
    """Places of digits for each seed and step. They are made outside the programs, which then compile faster."""
    return jnp.asarray(np.random.default_rng(0).integers(len(digits.images), size=(seeds, steps, 64)))


def train(tx: optax.GradientTransformation, params: Any, digits: Digits, batches: jax.Array) -> Any:
    def task_loss(params: Any, batch: jax.Array) -> jax.Array:
        logits = apply(params, digits.images[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, digits.labels[batch]).mean()

    def step(carry: tuple, batch: jax.Array) -> tuple[tuple, None]:
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(task_loss)(params, batch), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, (params, tx.init(params)), batches)[0][0]


def make_pretraining(old: Digits) -> Callable[..., tuple[Any, Any, Any]]:
    """A function from a key and batches to initial parameters, those that know the old task, and their importance."""

    def pretrain(key: jax.Array, batches: jax.Array) -> tuple[Any, Any, Any]:
        init_key, fisher_key = jax.random.split(key)
        initial = MLP().init(init_key, old.images[:1])["params"]
        pretrained = train(optax.adam(3e-3), initial, old, batches)
        fisher = jaxreg.diagnostics.fisher_diagonal(apply, pretrained, [old.images], fisher_key)
        return initial, pretrained, fisher

    return pretrain


def make_finetuning(method: str, new: Digits) -> Callable[..., Any]:
    """A function from a strength, batches and what pretraining gave to the parameters after fine-tuning."""

    def finetune(strength: jax.Array, batches: jax.Array, initial: Any, pretrained: Any, fisher: Any) -> Any:
        tx = optax.adam(optax.cosine_decay_schedule(3e-3, len(batches)))
        if method != NOTHING:
            rules = jaxreg.Rules((r"", jaxreg.Anchor(strength)))
            memory = {
                L2_SP: lambda: rules.init(pretrained),
                EWC: lambda: rules.init(pretrained, importance=fisher),
                L2_INIT: lambda: rules.init(initial),
            }[method]()
            tx = optax.chain(jaxreg.add_penalty_gradients(rules, memory=memory), tx)
        return train(tx, pretrained, new, batches)

    return finetune


@jax.jit
@partial(jax.vmap, in_axes=(0, None))
@partial(jax.vmap, in_axes=(0, None))
def accuracy_of(params: Any, digits: Digits) -> jax.Array:
    return jnp.mean(apply(params, digits.images).argmax(-1) == digits.labels)


def accuracies_of(params: Any, tasks: Tasks) -> Accuracies:
    """Accuracies on both tasks, of parameters that are stacked by strength and seed."""
    return Accuracies(*(np.asarray(accuracy_of(params, tasks[task])) for task in (OLD, NEW)))


def best_of(accuracies: Accuracies) -> int:
    """The place of the strength with the best mean of both accuracies."""
    return int(np.argmax(np.mean(accuracies, axis=(0, 2))))


def report(
    strengths: dict[str, np.ndarray],
    before: Accuracies,
    validated: dict[str, Accuracies],
    tested: dict[str, Accuracies],
) -> Table:
    seeds = before.old.shape[1]
    table = Table(title=f"Means over {seeds} seeds, ± one standard deviation")
    table.add_column("anchor in fine-tuning")
    for column in ("strength", f"old task, {OLD} digits", f"new task, {NEW} digits", "mean of both"):
        table.add_column(column, justify="right", overflow="fold")

    def cells(accuracies: Accuracies, place: int) -> list[str]:
        both = [accuracies.old[place], accuracies.new[place]]
        return [f"{100 * values.mean():.1f} ± {100 * values.std():.1f} %" for values in (*both, np.mean(both, axis=0))]

    table.add_row("(before fine-tuning)", "-", *cells(before, 0), end_section=True)
    for method, path in strengths.items():
        place = best_of(validated[method])
        strength = "-" if method == NOTHING else f"{path[place]:.2g}"
        table.add_row(method, strength, *cells(tested[method], place))
    return table


def draw(strengths: dict[str, np.ndarray], validated: dict[str, Accuracies], tested: dict[str, Accuracies]) -> Figure:
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    panel = figure.subplots()
    # Okabe and Ito's colors, which differ for every kind of color vision.
    styles = {L2_SP: ("#0072B2", "o-"), EWC: ("#E69F00", "s-"), L2_INIT: ("#CC79A7", "^-")}
    for method, (color, style) in styles.items():
        old, new = (accuracies.mean(axis=1) for accuracies in tested[method])
        path = strengths[method]
        label = f"{method}, strengths {path[0]:g} to {path[-1]:g}"
        panel.plot(new, old, style, color=color, label=label)
        best = best_of(validated[method])
        panel.plot(
            new[best], old[best], style[0], color=color, markersize=13, markerfacecolor="none", markeredgewidth=2
        )
        # The last strength is at the end that is far from "nothing".
        panel.annotate(
            f"{path[-1]:g}", (new[-1], old[-1]), (-9, -4), textcoords="offset points", color=color, ha="right"
        )
    old, new = (accuracies.mean() for accuracies in tested[NOTHING])
    panel.plot(new, old, "*", color="#000000", markersize=16, label=NOTHING)
    panel.set(
        xlabel=f"test accuracy on the new task, {NEW} digits", ylabel=f"test accuracy on the old task, {OLD} digits"
    )
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    panel.margins(0.08)
    panel.grid(alpha=0.3)
    seeds = tested[NOTHING].old.shape[1]
    title = f"Means over {seeds} seeds. Large open marks are the strengths chosen on validation digits"
    figure.legend(loc="outside upper center", ncols=2, frameon=False, title=title)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="of fine-tuning; pretraining takes a third of them")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--smoke", action="store_true", help="150 steps, two seeds, three strengths and 500 digits")
    args = parser.parse_args()
    steps, seeds, limit = (150, 2, 500) if args.smoke else (args.steps, args.seeds, None)
    paths = {method: path[::4] if args.smoke else path for method, path in STRENGTHS.items()}
    strengths = {NOTHING: np.zeros(1), **paths}

    training, validation, test = load_data(limit)
    keys = jax.random.split(jax.random.key(0), seeds)
    batches = make_batches(training[OLD], steps // 3, seeds)
    pretrained = jax.jit(jax.vmap(make_pretraining(training[OLD])))(keys, batches)
    before = accuracies_of(jax.tree.map(lambda leaf: leaf[None], pretrained[1]), test)

    validated, tested = {}, {}
    batches = make_batches(training[NEW], steps, seeds)
    with tqdm(total=sum(len(path) for path in strengths.values()) * seeds, unit="network") as progress:
        for method, path in strengths.items():
            progress.set_description(f"{method:>7}")
            finetune = jax.vmap(make_finetuning(method, training[NEW]), in_axes=(None, 0, 0, 0, 0))
            finetune = jax.jit(jax.vmap(finetune, in_axes=(0, None, None, None, None)))
            params = finetune(jnp.asarray(path, jnp.float32), batches, *pretrained)
            validated[method], tested[method] = (accuracies_of(params, part) for part in (validation, test))
            progress.update(len(path) * seeds)

    Console(width=120).print(report(strengths, before, validated, tested))
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "finetune.png"
    draw(strengths, validated, tested).savefig(path, dpi=150)
    print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
