"""Pruning while training, by constraints: 90% of single weights, two of four neighbors, or whole units.

An MLP trains on scikit-learn's digits under `jaxreg.proximal(optax.adam(...), rules)`, which projects the weights after
each step. All rules are constraints, so it takes no learning rate, and any optimizer would do:

- `constraints.Sparsity(schedule)` is gradual magnitude pruning. The share of zeros grows along a cubic schedule, and
  the zeros are chosen anew at each step;
- `constraints.NM(2, 4)` keeps two of each four neighbors along the inputs, from the first step on;
- `constraints.GroupSparsity(schedule)` takes whole units away, three quarters of them by the same kind of schedule. A
  unit without weights gets no gradient through the relu, so one that is taken away too early would not come back.

Each network is then fine-tuned under `constraints.KeepZeros()`, in a new `proximal` whose `init` takes the places of
the zeros from the pruned parameters. The script fails unless every zero stays, and unless each kernel has exactly as
many zeros as it was to have.

The baseline is one-shot pruning: the same MLP trains without a rule, and `rules.prox(params)` then projects it once.

    python examples/prune.py             # about half a minute on two cores
    python examples/prune.py --smoke     # the same path, with less of everything

The picture is `examples/output/prune.png`; `--output FOLDER` puts it elsewhere.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter, PercentFormatter
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jaxreg
from jaxreg import constraints

DENSE, GRADUAL, NEIGHBORS, UNITS, ONE_SHOT = "dense", "gradual", "2:4", "units", "one-shot"
PRUNED = r"hidden_\d/kernel$"  # The head is small and is left alone, as are the biases.
KERNELS = ("hidden_1", "hidden_2")
WIDTH = 128
SHOWN, SHARE_OF_UNITS = 0.9, 0.75


class MLP(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(WIDTH, name="hidden_1")(images))
        x = nn.relu(nn.Dense(WIDTH, name="hidden_2")(x))
        return nn.Dense(10, name="head")(x)


class Trained(NamedTuple):
    """Networks of one method and fraction, stacked by seed."""

    pruned: Any
    tuned: Any
    accuracy_before: np.ndarray
    accuracy_after: np.ndarray


Networks = dict[tuple[str, float], Trained]  # by method and fraction


def load_data(limit: int | None) -> list[jax.Array]:
    """Images and labels for training, then for testing: a fixed split of the first `limit` digits."""
    pixels, labels = (array[:limit] for array in load_digits(return_X_y=True))
    images = pixels.astype(np.float32) / 16
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    return [jnp.asarray(parts[i]) for i in (0, 2, 1, 3)]


def make_rules(method: str, fraction: jax.Array | float, steps: int) -> jaxreg.Rules | None:
    """The rules for training, or None for training without any."""
    # The share grows from a tenth of the steps on, and has its last value for the last three tenths.
    schedule = optax.polynomial_schedule(
        0.0, fraction, power=3, transition_steps=6 * steps // 10, transition_begin=steps // 10
    )
    constraint = {
        GRADUAL: constraints.Sparsity(schedule),
        NEIGHBORS: constraints.NM(2, 4),
        UNITS: constraints.GroupSparsity(schedule),
    }.get(method)
    return None if constraint is None else jaxreg.Rules((PRUNED, constraint))


def make_optimizer(rate: float, rules: jaxreg.Rules | None, steps: int) -> optax.GradientTransformation:
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
    return adam if rules is None else jaxreg.proximal(adam, rules)


def make_training(method: str, data: list[jax.Array]) -> Callable[..., tuple[Any, Any]]:
    """A function from a fraction, initial parameters and batches to pruned parameters, and to fine-tuned ones."""
    images, labels = data[:2]

    def task_loss(params: Any, batch: jax.Array) -> jax.Array:
        logits = MLP().apply({"params": params}, images[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

    def train(tx: optax.GradientTransformation, params: Any, batches: jax.Array) -> Any:
        def step(carry: tuple, batch: jax.Array) -> tuple[tuple, None]:
            params, opt_state = carry
            updates, opt_state = tx.update(jax.grad(task_loss)(params, batch), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, tx.init(params)), batches)[0][0]

    def train_and_tune(fraction: jax.Array, params: Any, batches: jax.Array) -> tuple[Any, Any]:
        steps = 2 * len(batches) // 3
        pruned = train(make_optimizer(3e-3, make_rules(method, fraction, steps), steps), params, batches[:steps])
        if method == ONE_SHOT:
            pruned = jaxreg.Rules((PRUNED, constraints.Sparsity(fraction))).prox(pruned)
        keep = None if method == DENSE else jaxreg.Rules((PRUNED, constraints.KeepZeros()))
        return pruned, train(make_optimizer(1e-3, keep, len(batches) - steps), pruned, batches[steps:])

    return train_and_tune


def train_path(method: str, fractions: list[float], data: list[jax.Array], initial: Any, batches: jax.Array) -> Any:
    """Pruned and fine-tuned parameters, stacked by fraction and seed.

    The loop over fractions is in the program too, so that there is one program for each method.
    """
    every_seed = jax.vmap(make_training(method, data), in_axes=(None, 0, 0))
    every = jax.jit(lambda path: jax.lax.map(lambda fraction: every_seed(fraction, initial, batches), path))
    return every(jnp.asarray(fractions, jnp.float32))


def train_all(paths: dict[str, list[float]], data: list[jax.Array], steps: int, seeds: int) -> Networks:
    # Initial parameters and batches are made here, once for all methods, so that each program compiles fast.
    keys = jax.random.split(jax.random.key(0), seeds)
    initial = jax.jit(jax.vmap(lambda key: MLP().init(key, data[0][:1])["params"]))(keys)
    batches = jnp.asarray(np.random.default_rng(0).integers(len(data[0]), size=(seeds, steps + steps // 2, 64)))

    def accuracy(params: Any) -> jax.Array:
        return jnp.mean(MLP().apply({"params": params}, data[2]).argmax(-1) == data[3])

    accuracies = jax.jit(jax.vmap(accuracy))
    networks: Networks = {}
    with tqdm(total=sum(map(len, paths.values())) * seeds, unit="network") as progress:
        for method, fractions in paths.items():
            progress.set_description(f"{method:>8}")
            stacked = train_path(method, fractions, data, initial, batches)
            for place, fraction in enumerate(fractions):
                pruned, tuned = jax.tree.map(lambda leaf, place=place: leaf[place], stacked)
                before, after = (np.asarray(accuracies(params)) for params in (pruned, tuned))
                networks[method, fraction] = Trained(pruned, tuned, before, after)
            progress.update(len(fractions) * seeds)
    return networks


def expected_zeros(method: str, fraction: float, shape: tuple[int, int]) -> int:
    inputs, units = shape
    if method == UNITS:
        return inputs * round(fraction * units)
    return round(fraction * inputs * units)


def check(networks: Networks) -> list[str]:
    """What is wrong with the zeros, for each kernel that was pruned."""
    wrong = []
    for (method, fraction), network in networks.items():
        for name in KERNELS:
            pruned, tuned = (np.asarray(params[name]["kernel"]) for params in (network.pruned, network.tuned))
            expected = expected_zeros(method, fraction, pruned.shape[1:])
            where = f"{name} of {method} at {fraction:g}"
            if np.any(tuned[pruned == 0] != 0):
                wrong.append(f"In {where}, a zero did not stay.")
            for when, kernels in (("before", pruned), ("after", tuned)):
                counts = np.sum(kernels == 0, axis=(1, 2))
                if np.any(counts != expected):
                    wrong.append(f"In {where}, {counts} weights are zero {when} fine-tuning, and not {expected}.")
                if method == NEIGHBORS and np.any(np.sum(kernels.reshape(len(kernels), -1, 4, WIDTH) != 0, axis=2) > 2):
                    wrong.append(f"In {where}, more than two of four neighbors are not zero {when} fine-tuning.")
                if method == UNITS and np.any(np.sum(~kernels.any(axis=1), axis=1) != round(fraction * WIDTH)):
                    wrong.append(f"In {where}, another number of units is zero {when} fine-tuning.")
    return wrong


def share_of_zeros(params: Any) -> float:
    zeros = [np.asarray(params[name]["kernel"]) == 0 for name in KERNELS]
    return sum(np.sum(kernel) for kernel in zeros) / sum(kernel.size for kernel in zeros)


def report(networks: Networks, test_size: int) -> Table:
    seeds = len(networks[DENSE, 0.0].accuracy_after)
    table = Table(
        title=f"Means over {seeds} seeds, ± one standard deviation",
        caption=f"Accuracies are on {test_size} test digits. Zeros are counted in the hidden kernels.",
    )
    for column in ("pruning", "constraint"):
        table.add_column(column)
    for column in ("zeros", "after fine-tuning", "accuracy", "after fine-tuning"):
        table.add_column(column, justify="right", overflow="fold")
    shown = {
        (DENSE, 0.0): ("none", "-"),
        (GRADUAL, SHOWN): ("single weights, gradual", f"Sparsity to {SHOWN:g}"),
        (NEIGHBORS, 0.5): ("2 of 4 neighbors", "NM(2, 4)"),
        (UNITS, SHARE_OF_UNITS): ("units, gradual", f"GroupSparsity to {SHARE_OF_UNITS:g}"),
        (ONE_SHOT, SHOWN): ("single weights, one-shot", f"Sparsity({SHOWN:g}), once"),
    }
    for key, labels in shown.items():
        network = networks[key]
        zeros = (f"{share_of_zeros(params):.3%}" for params in (network.pruned, network.tuned))
        accuracies = (
            f"{100 * values.mean():.1f} ± {100 * values.std():.1f} %"
            for values in (network.accuracy_before, network.accuracy_after)
        )
        table.add_row(*labels, *zeros, *accuracies)
    return table


def draw(networks: Networks) -> Figure:
    figure = Figure(figsize=(11, 9.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.4, 1), hspace=0.04)

    panel = top.subplots()
    # Okabe and Ito's colors, which differ for every kind of color vision.
    styles = {
        (GRADUAL, "tuned"): ("#0072B2", "o-", "gradual, fine-tuned"),
        (GRADUAL, "pruned"): ("#56B4E9", "s--", "gradual, not fine-tuned"),
        (ONE_SHOT, "tuned"): ("#D55E00", "^-", "one-shot, fine-tuned"),
        (ONE_SHOT, "pruned"): ("#E69F00", "v--", "one-shot, not fine-tuned"),
    }
    dense = networks[DENSE, 0.0].accuracy_after.mean()
    panel.axhline(dense, color="#000000", linestyle=":", label="dense")
    for (method, which), (color, style, label) in styles.items():
        runs = {fraction: network for (name, fraction), network in networks.items() if name == method}
        values = [run.accuracy_after if which == "tuned" else run.accuracy_before for run in runs.values()]
        mean, spread = np.mean(values, axis=1), np.std(values, axis=1)
        remaining = 1 - np.array(list(runs))
        panel.plot(remaining, mean, style, color=color, label=label)
        panel.fill_between(remaining, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
    # The axis is that of the weights that remain, so that high sparsities lie apart from each other.
    panel.set(xscale="log", xlabel="share of zeros in the hidden kernels", ylabel="test accuracy")
    fractions = [fraction for name, fraction in networks if name == GRADUAL]
    panel.set_xticks([1 - fraction for fraction in fractions], [f"{fraction:.0%}" for fraction in fractions])
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(axis="x", which="minor", length=0)
    panel.invert_xaxis()
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.grid(alpha=0.3)
    seeds = len(networks[DENSE, 0.0].accuracy_after)
    title = f"Pruning of single weights; means over {seeds} seeds, ± one standard deviation"
    top.legend(loc="outside upper center", ncols=len(styles) + 1, frameon=False, title=title)

    panels = bottom.subplots(1, 3, sharey=True)
    titles = {
        (GRADUAL, SHOWN): f"single weights: {SHOWN:.0%} are zero",
        (NEIGHBORS, 0.5): "neighbors: 2 of 4 are zero",
        (UNITS, SHARE_OF_UNITS): f"units: {SHARE_OF_UNITS:.0%} are zero",
    }
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        # A corner of the kernel of the first seed, so that single weights are seen.
        kernel = np.asarray(networks[key].tuned["hidden_2"]["kernel"][0, :32, :40])
        panel.imshow(kernel != 0, cmap=ListedColormap(["#E5E5E5", "#0072B2"]), vmin=0, vmax=1, interpolation="none")
        panel.set(title=title, xlabel="unit")
    panels[0].set_ylabel("input")
    handles = [Patch(color="#0072B2", label="weight"), Patch(color="#E5E5E5", label="zero")]
    bottom.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    bottom.suptitle("A corner of the second hidden kernel, after fine-tuning")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="of training; fine-tuning takes half of them")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--smoke", action="store_true", help="100 steps, two seeds and fractions, and 300 digits")
    args = parser.parse_args()
    steps, seeds, limit = (100, 2, 300) if args.smoke else (args.steps, args.seeds, None)
    fractions = [0.5, SHOWN] if args.smoke else [0.5, 0.8, SHOWN, 0.95, 0.98, 0.99]
    paths = {
        DENSE: [0.0],
        GRADUAL: fractions,
        NEIGHBORS: [0.5],
        UNITS: [SHARE_OF_UNITS],
        ONE_SHOT: fractions,
    }

    data = load_data(limit)
    networks = train_all(paths, data, steps, seeds)
    Console(width=120).print(report(networks, len(data[2])))
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "prune.png"
    draw(networks).savefig(path, dpi=150)
    print(f"\nSaved {path}")
    if wrong := check(networks):
        raise SystemExit("\n".join(wrong))
    print("Every zero stayed in fine-tuning, and each kernel has exactly as many as it was to have.")


if __name__ == "__main__":
    main()
