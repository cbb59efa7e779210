"""Five ways to regularize one CNN on scikit-learn's digits, from one list of `(name, jaxreg.Rules)`.

Every variant has the same model, initial weights, order of the data and optimizer; only the rules differ. They enter
through `optax.chain(jaxreg.add_penalty_gradients(rules), optax.adam(...))`, whose state tracks the penalty. All seeds
of a variant train at once, in one `jax.vmap`. A table then says what each penalty did to the accuracy and the weights,
and a picture shows the training curves and the cosines between the filters of one convolution.

    python examples/digits.py             # about a minute on two cores
    python examples/digits.py --smoke     # the same path, with less of everything

The picture is `examples/output/digits.png`; `--output FOLDER` puts it elsewhere.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jaxreg

VARIANTS = [
    ("no regularizer", jaxreg.Rules((r"", None))),
    ("L2", jaxreg.Rules((r"kernel$", jaxreg.L2(3e-3)))),
    ("L1L2", jaxreg.Rules((r"kernel$", jaxreg.L1L2(l1=1e-3, l2=1e-3)))),
    ("orthogonal", jaxreg.Rules((r"kernel$", jaxreg.OrthogonalRegularizer(3.0, mode="columns")))),
    (
        "mixed",
        jaxreg.Rules(
            (r"head/", None),
            (r"conv_\d/kernel$", jaxreg.OrthogonalRegularizer(3.0, mode="columns")),
            (r"kernel$", jaxreg.L1L2(l1=1e-3, l2=1e-3)),
        ),
    ),
]

# Its 32 filters have a fan-in of 3 * 3 * 8 = 72, so all of them can be orthogonal to each other.
INSPECTED = "conv_2"

Curves = dict[str, dict[str, np.ndarray]]  # variant -> metric -> (epochs, seeds)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for i, features in enumerate((8, 32), start=1):
            x = nn.Conv(features, (3, 3), use_bias=False, name=f"conv_{i}")(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"norm_{i}")(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(64, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(10, name="head")(x)


def load_data(limit: int | None) -> list[jax.Array]:
    """Images and labels for training, then for testing: a fixed split of the first `limit` digits."""
    pixels, labels = (array[:limit] for array in load_digits(return_X_y=True))
    images = pixels.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    return [jnp.asarray(parts[i]) for i in (0, 2, 1, 3)]


def make_epoch(tx: optax.GradientTransformation, data: list[jax.Array], batch_size: int) -> Callable:
    """One epoch of one seed, with the mean loss and penalty of its steps and the test accuracy at its end."""
    images, labels, test_images, test_labels = data
    steps = len(images) // batch_size

    def step(carry: tuple, batch: jax.Array) -> tuple[tuple, dict[str, jax.Array]]:
        variables, opt_state = carry

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            logits, updated = CNN().apply(
                {**variables, "params": params}, images[batch], train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean(), updated

        (loss, updated), gradients = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(gradients, opt_state, variables["params"])
        variables = {"params": optax.apply_updates(variables["params"], updates), **updated}
        return (variables, opt_state), {"loss": loss, "penalty": optax.tree.get(opt_state, "penalty")}

    def run_epoch(carry: tuple, seed: jax.Array, epoch: jax.Array) -> tuple[tuple, dict[str, jax.Array]]:
        order = jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), len(images))
        carry, metrics = jax.lax.scan(step, carry, order[: steps * batch_size].reshape(steps, batch_size))
        predicted = CNN().apply(carry[0], test_images, train=False).argmax(-1)
        return carry, {**jax.tree.map(jnp.mean, metrics), "accuracy": jnp.mean(predicted == test_labels)}

    return run_epoch


def coherence(params: Any) -> jax.Array:
    """The largest |cosine| between two filters of the inspected layer, for each seed."""
    return jax.vmap(partial(jaxreg.diagnostics.mutual_coherence, mode="columns"))(params[INSPECTED]["kernel"])


def near_zero(params: Any) -> float:
    """The share of the weights in kernels that are smaller than 1e-3."""
    kernels = [layer["kernel"].ravel() for layer in params.values() if "kernel" in layer]
    return float(jnp.mean(jnp.abs(jnp.concatenate(kernels)) < 1e-3))


def report(initial: Any, trained: dict[str, Any], curves: Curves) -> Table:
    seeds = len(curves["L2"]["accuracy"][-1])
    table = Table(
        title=f"Means over {seeds} seeds, ± one standard deviation",
        caption="Accuracies within a standard deviation are equal; the penalties show in the weights.",
    )
    table.add_column("rules")
    for column in ("test accuracy", "penalty before", "after", "kernels < 1e-3", f"largest |cos|, {INSPECTED}"):
        table.add_column(column, justify="right", overflow="fold")

    def of_weights(params: Any) -> tuple[str, str]:
        return f"{near_zero(params):.1%}", f"{coherence(params).mean():.3f}"

    table.add_row("(before training)", "-", "-", "-", *of_weights(initial), end_section=True)
    for name, rules in VARIANTS:
        accuracy = 100 * curves[name]["accuracy"][-1]
        penalty = jax.jit(jax.vmap(rules))
        penalties = [f"{penalty(params).mean():.4f}" for params in (initial, trained[name])]
        table.add_row(
            name,
            f"{accuracy.mean():.2f} ± {accuracy.std():.2f} %",
            *(penalties if jax.tree.leaves(rules) else ("-", "-")),
            *of_weights(trained[name]),
        )
    return table


def draw(initial: Any, trained: dict[str, Any], curves: Curves) -> Figure:
    figure = Figure(figsize=(12, 8), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.05), hspace=0.04)

    panels = top.subplots(1, 3)
    # Okabe and Ito's colors, which differ for every kind of color vision.
    colors = ("#000000", "#E69F00", "#009E73", "#0072B2", "#CC79A7")
    for (name, curve), color in zip(curves.items(), colors, strict=True):
        loss, accuracy, penalty = (curve[metric].mean(axis=1) for metric in ("loss", "accuracy", "penalty"))
        epochs = np.arange(1, len(loss) + 1)
        panels[0].plot(epochs, loss, color=color, label=name)
        panels[1].plot(epochs, 100 * (1 - accuracy), color=color)
        if penalty.any():
            panels[2].plot(epochs, penalty, color=color)
    titles = ("Training loss, without the penalty", "Test error", "Penalty, each with its own rules")
    for panel, title, unit in zip(panels, titles, ("cross-entropy", "%", "penalty"), strict=True):
        panel.set(title=title, xlabel="epoch", ylabel=unit, yscale="log")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
        panel.grid(alpha=0.3)
    top.legend(loc="outside upper center", ncols=len(curves), frameon=False, title="Means over the seeds")

    matrices = {}
    for title, params in (
        ("before training", initial),
        ("trained, no regularizer", trained["no regularizer"]),
        ("trained, orthogonal", trained["orthogonal"]),
    ):
        matrix = np.abs(jaxreg.diagnostics.cosines(params[INSPECTED]["kernel"][0], mode="columns"))
        np.fill_diagonal(matrix, np.nan)  # a filter's cosine with itself is 1 and would stretch the scale
        matrices[title] = matrix
    largest = np.nanmax(list(matrices.values()))
    panels = bottom.subplots(1, 3)
    for panel, (title, matrix) in zip(panels, matrices.items(), strict=True):
        image = panel.imshow(matrix, vmin=0, vmax=largest, cmap="viridis")
        panel.set(title=title, xlabel="filter", ylabel="filter")
    bottom.colorbar(image, ax=panels, label="|cosine|")
    bottom.suptitle(f"|cosine| between the filters of {INSPECTED}, first seed (the diagonal is left out)")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--smoke", action="store_true", help="two epochs, two seeds and 300 digits")
    args = parser.parse_args()
    epochs, seeds, limit = (2, jnp.arange(2), 300) if args.smoke else (args.epochs, jnp.arange(args.seeds), None)
    batch_size = 64

    data = load_data(limit)
    initial = jax.vmap(lambda seed: CNN().init(jax.random.key(seed), data[0][:1], train=False))(seeds)
    # The rate ends at 0, because a subgradient step leaves a weight as far from 0 as the rate is large.
    schedule = optax.cosine_decay_schedule(3e-3, epochs * (len(data[0]) // batch_size))

    trained: dict[str, Any] = {}
    curves: Curves = {}
    with tqdm(total=len(VARIANTS) * epochs, unit="epoch") as progress:
        for name, rules in VARIANTS:
            progress.set_description(f"{name:>14}")
            tx = optax.chain(jaxreg.add_penalty_gradients(rules), optax.adam(schedule))
            run_epoch = jax.jit(jax.vmap(make_epoch(tx, data, batch_size), in_axes=(0, 0, None)))
            carry, history = (initial, jax.vmap(tx.init)(initial["params"])), []
            for epoch in range(epochs):
                carry, metrics = run_epoch(carry, seeds, epoch)
                history.append(jax.device_get(metrics))
                progress.update()
            trained[name] = carry[0]["params"]
            curves[name] = jax.tree.map(lambda *values: np.stack(values), *history)

    first_seed = jax.tree.map(lambda leaf: leaf[0], initial["params"])
    print(f"\nThe mixed rules, before training, first seed:\n\n{dict(VARIANTS)['mixed'].explain(first_seed)}\n")
    Console(width=120).print(report(initial["params"], trained, curves))
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "digits.png"
    draw(initial["params"], trained, curves).savefig(path, dpi=150)
    print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
