"""An Equinox MLP chooses its input features, by a group lasso whose prox follows each step of a loop written by hand.

The data are scikit-learn's breast cancer measurements: 30 features of a tumor, and whether it is benign. Each feature
comes a second time as a decoy, shuffled over the patients, which says nothing. A method that chooses well keeps no
decoys.

Equinox's kernels are `(out, in)`, so the rules name the axes:

- `GroupLasso(group_axis=1)` on the first kernel has a group for each input, and takes whole features away;
- `GroupLasso(group_axis=0)` on the second has a group for each unit, and takes whole units away;
- `L2` on the last kernel keeps it from growing while the others shrink;
- `OrthogonalRegularizer(mode="columns", out_axis=0)` spreads the units of the second kernel. It has no prox, so it
  stands in the loss.

Each step is a gradient step and `rules.prox(model, rate)`, in `eqx.filter_jit` with `eqx.filter_value_and_grad`. It
needs no optimizer. The features that are left are compared with those of scikit-learn's `LinearSVC`, a linear
classifier with an L1 penalty. Both train at a path of strengths on the same splits of the patients. A linear classifier
suffices for these data, so the MLP is no more accurate. It shows how a network is told to choose.

    python examples/equinox_mlp.py             # about a minute on two cores
    python examples/equinox_mlp.py --smoke     # the same path, with less of everything

The picture is `examples/output/equinox_mlp.png`; `--output FOLDER` puts it elsewhere.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.svm import LinearSVC
from tqdm import tqdm

import jaxreg

MLP, LINEAR = "MLP, group lasso", "LinearSVC, L1"
STRENGTHS = [0.0, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1]
INVERSE_STRENGTHS = [1.0, 0.1, 0.05, 0.02, 0.01, 0.005, 0.003]  # `C` of scikit-learn, from weak to strong
RATE = 0.1
UNITS = 16

IN_THE_LOSS = jaxreg.Rules(
    (r"layers/1/weight$", jaxreg.OrthogonalRegularizer(1e-2, mode="columns", out_axis=0)),
)


def sparse_rules(strength: float | jax.Array) -> jaxreg.Rules:
    return jaxreg.Rules(
        (r"layers/0/weight$", jaxreg.GroupLasso(strength, group_axis=1)),
        (r"layers/1/weight$", jaxreg.GroupLasso(strength, group_axis=0)),
        (r"layers/2/weight$", jaxreg.L2(1e-2)),
    )


class Split(NamedTuple):
    features: np.ndarray
    labels: np.ndarray
    test_features: np.ndarray
    test_labels: np.ndarray


class Fit(NamedTuple):
    """Results of a method at one strength, on one split."""

    kept: np.ndarray  # which features are used, the decoys last
    accuracy: float  # on test patients
    units: int | None  # of the second layer that are used


Fits = dict[tuple[str, float], list[Fit]]  # by method and strength, one for each split


def load_splits(count: int) -> tuple[list[str], list[Split]]:
    """The names of the features, and random splits of the patients with decoys, scaled by the training part."""
    data = load_breast_cancer()
    splits = []
    for seed in range(count):
        decoys = np.random.default_rng(seed).permuted(data.data, axis=0)
        parts = train_test_split(
            np.hstack([data.data, decoys]), data.target, test_size=0.3, stratify=data.target, random_state=seed
        )
        mean, deviation = parts[0].mean(axis=0), parts[0].std(axis=0)
        train, test = (((part - mean) / deviation).astype(np.float32) for part in parts[:2])
        splits.append(Split(train, parts[2], test, parts[3]))
    return list(data.feature_names), splits


def logits_of(model: eqx.nn.MLP, features: jax.Array) -> jax.Array:
    return jax.vmap(model)(features)


@eqx.filter_jit
def make_step(
    model: eqx.nn.MLP, rules: jaxreg.Rules, features: jax.Array, labels: jax.Array
) -> tuple[eqx.nn.MLP, jax.Array]:
    """One step of proximal gradient descent on all patients, and the loss before it."""

    @eqx.filter_value_and_grad
    def loss_of(model: eqx.nn.MLP) -> jax.Array:
        losses = optax.sigmoid_binary_cross_entropy(logits_of(model, features), labels)
        return losses.mean() + IN_THE_LOSS(model)

    loss, gradients = loss_of(model)
    model = eqx.apply_updates(model, jax.tree.map(lambda gradient: -RATE * gradient, gradients))
    return rules.prox(model, RATE), loss


def make_model(split: Split) -> eqx.nn.MLP:
    inputs = split.features.shape[1]
    return eqx.nn.MLP(inputs, "scalar", UNITS, depth=2, activation=jax.nn.tanh, key=jax.random.key(0))


def fit_mlp(split: Split, strength: float, steps: int) -> Fit:
    model = make_model(split)
    # An array is traced, so that all strengths share one compiled step. A Python number would be a constant.
    rules = sparse_rules(jnp.float32(strength))
    for _ in range(steps):
        model, _ = make_step(model, rules, split.features, split.labels)
    return Fit(
        kept=~np.asarray(jaxreg.diagnostics.dead_units(model.layers[0].weight, group_axis=1)),
        accuracy=float(np.mean((logits_of(model, split.test_features) > 0) == split.test_labels)),
        units=int(np.sum(~jaxreg.diagnostics.dead_units(model.layers[1].weight, group_axis=0))),
    )


def fit_linear(split: Split, inverse_strength: float) -> Fit:
    model = LinearSVC(penalty="l1", dual=False, C=inverse_strength, max_iter=100_000, random_state=0)
    model.fit(split.features, split.labels)
    return Fit(model.coef_[0] != 0, float(model.score(split.test_features, split.test_labels)), None)


def report(fits: Fits, inputs: int, splits: int) -> Table:
    table = Table(title=f"Means over splits of the patients ({splits}), ± one standard deviation")
    table.add_column("method")
    columns = ("strength, or C", f"features of {inputs}", f"decoys of {inputs}", f"units of {UNITS}", "test accuracy")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    previous = None
    for (method, strength), results in fits.items():
        if previous not in (None, method):
            table.add_section()
        kept = np.mean([fit.kept for fit in results], axis=0)
        accuracies = 100 * np.array([fit.accuracy for fit in results])
        table.add_row(
            method if method != previous else "",
            f"{strength:g}",
            f"{kept[:inputs].sum():.1f}",
            f"{kept[inputs:].sum():.1f}",
            "-" if method == LINEAR else f"{np.mean([fit.units for fit in results]):.1f}",
            f"{accuracies.mean():.1f} ± {accuracies.std():.1f} %",
        )
        previous = method
    return table


def draw(fits: Fits, names: list[str]) -> Figure:
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.5), wspace=0.03)
    top, bottom = left.subplots(2, 1, sharex=True)
    # Okabe and Ito's colors, which differ for every kind of color vision.
    for method, color, style in ((MLP, "#0072B2", "o-"), (LINEAR, "#D55E00", "s--")):
        results = [results for (name, _), results in fits.items() if name == method]
        kept = np.array([np.mean([fit.kept for fit in of_strength], axis=0) for of_strength in results])
        accuracies = np.array([[fit.accuracy for fit in of_strength] for of_strength in results])
        features, decoys = kept[:, : len(names)].sum(axis=1), kept[:, len(names) :].sum(axis=1)
        top.errorbar(features, accuracies.mean(axis=1), accuracies.std(axis=1), fmt=style, color=color, capsize=3)
        bottom.plot(features, decoys, style, color=color, label=method)
    top.set(title="Means over the splits, along a path of strengths", ylabel="test accuracy, ± one standard deviation")
    top.yaxis.set_major_formatter(PercentFormatter(1))
    bottom.set(xlabel="features that are used", ylabel="decoys that are used")
    bottom.legend(frameon=False)
    for panel in (top, bottom):
        panel.grid(alpha=0.3)

    for panel, method in zip(right.subplots(1, 2, sharey=True), (MLP, LINEAR), strict=True):
        paths = {strength: results for (name, strength), results in fits.items() if name == method}
        kept = np.array([np.mean([fit.kept for fit in results], axis=0) for results in paths.values()]).T
        shown = np.vstack([kept[: len(names)], kept[len(names) :].mean(axis=0)])
        image = panel.imshow(shown, vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="none")
        panel.set_xticks(range(len(paths)), [f"{strength:g}" for strength in paths], rotation=45)
        panel.set_yticks(range(len(shown)), [*names, "decoys, their mean"])
        panel.axhline(len(names) - 0.5, color="white", linewidth=2)
        panel.set(title=method, xlabel="strength" if method == MLP else "C, the inverse of a strength")
    right.colorbar(image, ax=right.axes, label="share of the splits in which a feature is used")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--smoke", action="store_true", help="100 steps, one split and two strengths")
    args = parser.parse_args()
    steps, count, every = (100, 1, 6) if args.smoke else (args.steps, args.splits, 1)

    names, splits = load_splits(count)
    model = make_model(splits[0])
    print(f"The rules of the prox, before training:\n\n{sparse_rules(0.02).explain(model)}\n")
    print(f"The rules in the loss:\n\n{IN_THE_LOSS.explain(model)}\n")

    fits: Fits = {}
    for strength in tqdm(STRENGTHS[::every], unit="strength"):
        fits[MLP, strength] = [fit_mlp(split, strength, steps) for split in splits]
    for inverse in INVERSE_STRENGTHS[::every]:
        fits[LINEAR, inverse] = [fit_linear(split, inverse) for split in splits]

    Console(width=120).print(report(fits, len(names), count))
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "equinox_mlp.png"
    draw(fits, names).savefig(path, dpi=150)
    print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
