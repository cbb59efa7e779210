"""Group lasso takes whole units and filters out of networks for scikit-learn's digits, and smaller networks remain.

An MLP and a CNN train under Adam with `jaxreg.GroupLasso` on the incoming weights of each hidden unit or filter, at a
path of strengths and in three ways:

- `jaxreg.proximal_adam` minimizes loss plus penalty, with units that are exactly zero;
- `jaxreg.proximal(..., metric="euclidean")` reaches zero units too, but it minimizes something else: Adam rescales
  the gradient and not the penalty, so that its strengths are on another scale, and are a hundred times as large here;
- `jaxreg.add_penalty_gradients`, the subgradient, has the objective of the first. Units come near to zero, and none
  becomes exactly zero.

The dead units are then cut out of the networks of the first kind. A unit without weights puts out the constant
relu(bias), which goes into the bias of the next layer. The script fails if a smaller network has other outputs.

    python examples/sparse_digits.py             # about half a minute on two cores
    python examples/sparse_digits.py --smoke     # the same path, with less of everything

The pictures are `sparse_digits.png` and, for the README, `hidden_weights.png`, in `examples/output`; `--output FOLDER`
puts them elsewhere.
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
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jaxreg

METRIC, EUCLIDEAN, SUBGRADIENT = "prox, Adam's metric", "prox, Euclidean", "subgradient"
SCALES = {METRIC: 1.0, EUCLIDEAN: 100.0, SUBGRADIENT: 1.0}
TOLERANCE = 1e-4


class MLP(nn.Module):
    units: int = 128

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(self.units, name="hidden")(images.reshape(len(images), -1)))
        return nn.Dense(10, name="head")(x)


class CNN(nn.Module):
    units: int = 24

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(self.units, (3, 3), padding="VALID", name="hidden")(images))
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


class Network(NamedTuple):
    params: Any
    accuracy: float
    dead: np.ndarray  # which hidden units have no weights
    smallest: float  # norm of a hidden unit's weights


Trained = dict[tuple[str, str, float], Network]  # by model, method and strength


def load_data(limit: int | None) -> list[jax.Array]:
    """Images and labels for training, then for testing: a fixed split of the first `limit` digits."""
    pixels, labels = (array[:limit] for array in load_digits(return_X_y=True))
    images = pixels.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    return [jnp.asarray(parts[i]) for i in (0, 2, 1, 3)]


def make_optimizer(method: str, rules: jaxreg.Rules, steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(3e-3, steps)
    adam = optax.adam(schedule)
    if method == SUBGRADIENT:
        return optax.chain(jaxreg.add_penalty_gradients(rules), adam)
    if method == METRIC:
        return jaxreg.proximal_adam(schedule, rules)
    return jaxreg.proximal(adam, rules, schedule, metric="euclidean")


def make_training(model: nn.Module, method: str, data: list[jax.Array], steps: int) -> Callable[[jax.Array, Any], Any]:
    """A function from a strength and initial parameters to trained ones, in one program for all strengths."""
    images, labels = data[:2]

    def task_loss(params: Any, batch: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, images[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

    @jax.jit
    def train(strength: jax.Array, params: Any) -> Any:
        rules = jaxreg.Rules((r"hidden/kernel$", jaxreg.GroupLasso(strength)))
        tx = make_optimizer(method, rules, steps)

        def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            params, opt_state = carry
            batch = jax.random.randint(key, (64,), 0, len(images))
            updates, opt_state = tx.update(jax.grad(task_loss)(params, batch), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        keys = jax.random.split(jax.random.key(1), steps)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

    return train


# Full precision, so that a smaller network is compared and not the rounding of an accelerator.
@partial(jax.jit, static_argnums=0)
@jax.default_matmul_precision("highest")
def logits_of(model: nn.Module, params: Any, images: jax.Array) -> jax.Array:
    return model.apply({"params": params}, images)


def accuracy_of(model: nn.Module, params: Any, data: list[jax.Array]) -> float:
    return float(jnp.mean(logits_of(model, params, data[2]).argmax(-1) == data[3]))


def cut_out(params: Any, dead: np.ndarray) -> Any:
    """The parameters without the dead hidden units, whose constant outputs go into the bias of the head.

    This is exact for the CNN because its convolution has no padding and a dead filter puts out its bias everywhere.
    """
    hidden, head = params["hidden"], params["head"]
    kernel = head["kernel"].reshape(-1, len(dead), 10)  # positions in the image, units, classes
    constants = jnp.einsum("u,puc->c", nn.relu(hidden["bias"][dead]), kernel[:, dead], precision="highest")
    return {
        "hidden": {"kernel": hidden["kernel"][..., ~dead], "bias": hidden["bias"][~dead]},
        "head": {"kernel": kernel[:, ~dead].reshape(-1, 10), "bias": head["bias"] + constants},
    }


def train_all(models: dict[str, nn.Module], strengths: list[float], data: list[jax.Array], steps: int) -> Trained:
    trained: Trained = {}
    with tqdm(total=len(models) * len(SCALES) * len(strengths), unit="network") as progress:
        for name, model in models.items():
            initial = jax.jit(model.init)(jax.random.key(0), data[0][:1])["params"]
            for method, scale in SCALES.items():
                progress.set_description(f"{name}, {method:>19}")
                train = make_training(model, method, data, steps)
                for strength in strengths:
                    params = train(jnp.float32(scale * strength), initial)
                    kernel = np.asarray(params["hidden"]["kernel"]).reshape(-1, model.units)
                    dead = np.asarray(jaxreg.diagnostics.dead_units(params)["hidden"]["kernel"])
                    smallest = float(np.linalg.norm(kernel, axis=0).min())
                    network = Network(params, accuracy_of(model, params, data), dead, smallest)
                    trained[name, method, scale * strength] = network
                    progress.update()
    return trained


def report(trained: Trained, test_size: int) -> Table:
    table = Table(
        title="Group lasso on the hidden layer",
        caption=f"One seed and {test_size} test digits, so that differences of a point or two are noise.",
    )
    for column in ("network", "method"):
        table.add_column(column)
    for column in ("strength", "test accuracy", "exactly zero units", "smallest norm of a unit"):
        table.add_column(column, justify="right", overflow="fold")
    previous = None
    for (name, method, strength), network in trained.items():
        if previous not in (None, (name, method)):
            table.add_section()
        labels = (name, method) if previous != (name, method) else ("", "")
        previous = name, method
        dead = f"{network.dead.sum()} of {len(network.dead)}"
        smallest = f"{network.smallest:.1e}" if network.smallest else "0"
        table.add_row(*labels, f"{strength:g}", f"{network.accuracy:.1%}", dead, smallest)
    return table


def cut_all(models: dict[str, nn.Module], trained: Trained, data: list[jax.Array]) -> tuple[Table, float]:
    """Smaller networks beside the whole ones, and the largest difference between their logits."""
    table = Table(title=f"Dead units cut out, {METRIC}")
    table.add_column("network")
    for column in ("strength", "units", "weights", "test accuracy", "largest difference of logits"):
        table.add_column(column, justify="right", overflow="fold")
    largest = 0.0
    for (name, method, strength), network in trained.items():
        if method != METRIC or not network.dead.any():
            continue
        smaller = cut_out(network.params, network.dead)
        smaller_model = models[name].clone(units=int(np.sum(~network.dead)))
        logits = logits_of(models[name], network.params, data[2])
        difference = float(jnp.abs(logits - logits_of(smaller_model, smaller, data[2])).max())
        largest = max(largest, difference)
        weights = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (network.params, smaller)]
        table.add_row(
            name,
            f"{strength:g}",
            f"{len(network.dead)} → {smaller_model.units}",
            f"{weights[0]:,} → {weights[1]:,}",
            f"{network.accuracy:.1%} → {accuracy_of(smaller_model, smaller, data):.1%}",
            f"{difference:.1e}",
        )
    return table, largest


def draw_paths(figure: FigureBase, trained: Trained, models: dict[str, nn.Module], test_size: int) -> None:
    # Okabe and Ito's colors, which differ for every kind of color vision.
    styles = {METRIC: ("#0072B2", "o-"), EUCLIDEAN: ("#E69F00", "s--"), SUBGRADIENT: ("#CC79A7", "^")}

    for panel, name in zip(figure.subplots(1, 2, sharey=True), models, strict=True):
        for method, (color, style) in styles.items():
            runs = [(key[2], network) for key, network in trained.items() if key[:2] == (name, method)]
            shares = [network.dead.mean() for _, network in runs]
            accuracies = [network.accuracy for _, network in runs]
            label = method if name == "MLP" else None
            panel.plot(shares, accuracies, style, color=color, label=label)
            if method == METRIC:
                for share, accuracy, (strength, _) in list(zip(shares, accuracies, runs, strict=True))[1:]:
                    panel.annotate(f"{strength:g}", (share, accuracy), (6, 6), textcoords="offset points")
                # That of a share of `test_size` independent digits, at the network without a penalty.
                error = np.sqrt(accuracies[0] * (1 - accuracies[0]) / test_size)
                band = panel.axhspan(accuracies[0] - error, accuracies[0] + error, color="#DDDDDD", zorder=0)
                band.set_label("no penalty, ± one standard error" if name == "MLP" else None)
        what = "units" if name == "MLP" else "filters"
        panel.set(title=f"{name}, {models[name].units} hidden {what}", xlabel=f"share of {what} that are exactly zero")
        panel.set(xlim=(-0.05, 1), ylabel="test accuracy")
        panel.label_outer()
        panel.margins(y=0.2)
        panel.xaxis.set_major_formatter(PercentFormatter(1))
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        panel.grid(alpha=0.3)
    title = "Each line is a path of strengths; those of the prox in Adam's metric are written at its points"
    figure.legend(loc="outside upper center", ncols=len(styles) + 1, frameon=False, title=title)


def draw_weights(figure: FigureBase, trained: Trained, shown: float) -> None:
    panels = figure.subplots(2, 1, sharex=True)
    networks = {method: trained["MLP", method, shown] for method in (METRIC, SUBGRADIENT)}
    # A few large weights would leave the others pale.
    limit = max(np.quantile(np.abs(network.params["hidden"]["kernel"]), 0.99) for network in networks.values())
    for panel, (method, network) in zip(panels, networks.items(), strict=True):
        kernel = np.asarray(network.params["hidden"]["kernel"])
        image = panel.imshow(kernel, vmin=-limit, vmax=limit, cmap="RdBu_r", aspect="auto", interpolation="none")
        dead = np.ma.masked_equal(np.broadcast_to(network.dead, kernel.shape), False)
        panel.imshow(dead, cmap=ListedColormap(["#8C8C8C"]), aspect="auto", interpolation="none")
        title = f"{method}: {network.dead.sum()} of {len(network.dead)} units are exactly zero"
        panel.set(title=title, ylabel="input pixel")
    panels[-1].set_xlabel("hidden unit")
    handles = [Patch(color="#8C8C8C", label="all weights exactly zero")]
    figure.legend(handles=handles, loc="outside lower center", frameon=False)
    figure.colorbar(image, ax=panels, label="weight", extend="both")
    figure.suptitle(f"Hidden weights of the MLP at the strength {shown:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--smoke", action="store_true", help="60 steps, two strengths and 300 digits")
    args = parser.parse_args()
    steps, limit, strengths = (60, 300, [0.0, 0.05]) if args.smoke else (args.steps, None, [0.0, 3e-3, 1e-2, 2e-2])

    data = load_data(limit)
    models = {"MLP": MLP(), "CNN": CNN()}
    trained = train_all(models, strengths, data, steps)
    shown = strengths[-2] if len(strengths) > 2 else strengths[-1]

    console = Console(width=120)
    console.print(report(trained, len(data[2])))
    print(f"\nThe CNN at the strength {shown:g}, {METRIC}:\n")
    print(jaxreg.diagnostics.sparsity_table(trained["CNN", METRIC, shown].params), "\n")
    table, largest = cut_all(models, trained, data)
    console.print(table)

    args.output.mkdir(parents=True, exist_ok=True)
    both = Figure(figsize=(12, 9), layout="constrained")
    top, bottom = both.subfigures(2, 1, height_ratios=(1, 1.25), hspace=0.04)
    draw_paths(top, trained, models, len(data[2]))
    draw_weights(bottom, trained, shown)
    alone = Figure(figsize=(12, 4.5), layout="constrained")
    draw_weights(alone, trained, shown)
    for name, figure in {"sparse_digits": both, "hidden_weights": alone}.items():
        path = args.output / f"{name}.png"
        figure.savefig(path, dpi=100 if figure is alone else 150)
        print(f"\nSaved {path}")
    if largest > TOLERANCE:
        raise SystemExit(f"A smaller network differs by {largest:.1e} from the whole one, more than {TOLERANCE:g}.")


if __name__ == "__main__":
    main()
