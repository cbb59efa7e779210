"""A penalty of two arrays at once: the size of a LoRA update, and not of its two factors.

An NNX MLP learns to read scikit-learn's digits. LoRA then adapts it to digits that are turned by a quarter, of which it
sees a few: to each kernel it adds a product ab of two thin factors, which alone are trained. Three ways to hold the
update back are compared:

- nothing;
- weight decay of the factors, `jaxreg.Rules((r"lora_[ab]$", jaxreg.L2(strength)))`. At the best split of a product
  between its factors, ‖a‖² + ‖b‖² is twice its nuclear norm, so that the update loses rank;
- weight decay of the product, `jaxreg.penalties.product_l2(a, b)`. That is the decay which full fine-tuning would have,
  without the kernel-sized array. It needs both factors, so it is no rule for a leaf but a function of the tree, which
  finds the pairs by their path. The loss, `add_penalty_gradients` and `decoupled` take it in place of rules.

Each method trains at a path of strengths, with all strengths and seeds at once by `jax.vmap`. The strength in the table
is the largest that loses at most one point of accuracy on validation digits against the best one. The numbers shown are
those of test digits. All three read about as many digits. The decay of the product gets there with the smallest update,
whose singular values are the most even.

    python examples/lora.py             # about a quarter of a minute on two cores
    python examples/lora.py --smoke     # the same path, with less of everything

The picture, `examples/output/lora.png`, shows the singular values of the update of the first kernel. `--output FOLDER`
puts it elsewhere.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jaxreg

NOTHING, FACTORS, PRODUCT = "nothing", "decay of the factors", "decay of the product"
STRENGTHS = {NOTHING: np.zeros(1), FACTORS: np.logspace(-4, -1, 7), PRODUCT: np.logspace(-4, -1, 7)}
RANK, WIDTH, SHOWN = 8, 64, 120  # of the factors, of the hidden layer, and so many turned digits are trained on


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.hidden(images)))


def with_lora(model: MLP, rngs: nnx.Rngs) -> MLP:
    """Puts thin factors beside both kernels. The second factor starts at 0, so nothing changes yet."""
    model.hidden = nnx.LoRA(64, RANK, WIDTH, base_module=model.hidden, rngs=rngs)
    model.head = nnx.LoRA(WIDTH, RANK, 10, base_module=model.head, rngs=rngs)
    return model


class Digits(NamedTuple):
    images: jax.Array
    labels: jax.Array


def load_data() -> tuple[Digits, Digits, Digits, Digits]:
    """Upright digits for pretraining, and turned ones for training, validation and testing."""
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8).astype(np.float32) / 16

    def halves(images: np.ndarray, labels: np.ndarray, size: float) -> tuple[tuple, tuple]:
        parts = train_test_split(images, labels, test_size=size, stratify=labels, random_state=0)
        return tuple(parts[::2]), tuple(parts[1::2])

    def as_digits(images: np.ndarray, labels: np.ndarray) -> Digits:
        return Digits(jnp.asarray(images.reshape(len(images), -1)), jnp.asarray(labels))

    upright, others = halves(images, labels, 0.5)
    turned, test = halves(np.rot90(others[0], axes=(1, 2)), others[1], 0.5)
    training, validation = (turned[0][:SHOWN], turned[1][:SHOWN]), (turned[0][SHOWN:], turned[1][SHOWN:])
    return as_digits(*upright), as_digits(*training), as_digits(*validation), as_digits(*test)


def pairs(params: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Returns the two factors of each update by the path of their layer."""
    factors = {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(params)}
    layers = [path.removesuffix("/lora_a") for path in factors if path.endswith("/lora_a")]
    return {layer: (factors[f"{layer}/lora_a"], factors[f"{layer}/lora_b"]) for layer in layers}


def decay_of_products(strength: jax.Array, params: Any) -> jax.Array:
    """The penalty of all updates, as a function of the tree."""
    values = [jaxreg.penalties.product_l2(a, b) for a, b in pairs(params).values()]
    return strength * jnp.sum(jnp.stack(values))


def train(rest: Any, graph: Any, tx: optax.GradientTransformation, params: Any, digits: Digits, batches: Any) -> Any:
    def task_loss(params: Any, batch: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params, rest)(digits.images[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, digits.labels[batch]).mean()

    def step(carry: tuple, batch: jax.Array) -> tuple[tuple, None]:
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(task_loss)(params, batch), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, (params, tx.init(params)), batches)[0][0]


def adapt(method: str, graph: Any, rest: Any, digits: Digits, strength: Any, params: Any, batches: Any) -> Any:
    """Trains the factors at one strength and with one seed."""
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, len(batches)))
    if method == FACTORS:
        rules = jaxreg.Rules((r"lora_[ab]$", jaxreg.L2(strength)))
        tx = optax.chain(jaxreg.add_penalty_gradients(rules), tx)
    if method == PRODUCT:
        tx = optax.chain(jaxreg.add_penalty_gradients(partial(decay_of_products, strength)), tx)
    return train(rest, graph, tx, params, digits, batches)


def accuracy(graph: Any, rest: Any, params: Any, digits: Digits) -> jax.Array:
    return jnp.mean(jnp.argmax(nnx.merge(graph, params, rest)(digits.images), axis=1) == digits.labels)


def batches_of(digits: Digits, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(len(digits.images), size=shape))


class Result(NamedTuple):
    """What a method has reached at the strength that is chosen: for each seed an accuracy, and the singular values."""

    strength: float
    accuracies: np.ndarray
    spectra: np.ndarray


def run(steps: int, seeds: int) -> dict[str, Result]:
    upright, training, validation, test = load_data()
    graph, params, rest = nnx.split(MLP(nnx.Rngs(0)), nnx.Param, ...)
    learn = jax.jit(partial(train, rest, graph, optax.adam(3e-3)))
    pretrained = learn(params, upright, batches_of(upright, steps, 64))
    base = nnx.merge(graph, pretrained, rest)
    starts = [with_lora(nnx.clone(base), nnx.Rngs(seed)) for seed in range(seeds)]
    graph, _, rest = nnx.split(starts[0], nnx.LoRAParam, ...)
    factors = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nnx.state(model, nnx.LoRAParam) for model in starts))
    batches = batches_of(training, seeds, steps, 32)
    results = {}
    for method in (bar := tqdm(STRENGTHS, disable=None)):
        bar.set_description(method)
        of_seeds = jax.vmap(partial(adapt, method, graph, rest, training), in_axes=(None, 0, 0))
        strengths = jnp.asarray(STRENGTHS[method], jnp.float32)
        adapted = jax.jit(jax.vmap(of_seeds, in_axes=(0, None, None)))(strengths, factors, batches)
        measure = jax.jit(jax.vmap(jax.vmap(partial(accuracy, graph, rest), (0, None)), (0, None)))
        validated = np.mean(measure(adapted, validation), axis=1)
        best = int(np.flatnonzero(validated >= validated.max() - 0.01)[-1])
        chosen = jax.tree.map(lambda leaf, best=best: leaf[best], adapted)
        a, b = pairs(chosen)["hidden"]
        spectra = jnp.linalg.svd(a @ b, compute_uv=False)[:, :RANK]
        results[method] = Result(float(strengths[best]), measure(adapted, test)[best], np.asarray(spectra))
    return results


def table_of(results: dict[str, Result]) -> Table:
    table = Table(
        title="LoRA on turned digits: test accuracy, and the update of the first kernel", title_justify="left"
    )
    for name in ("method", "strength", "accuracy", "norm of the update", "stable rank"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for method, (strength, accuracies, spectra) in results.items():
        squares = np.sum(spectra**2, axis=1)
        ranks = squares / spectra[:, 0] ** 2
        spread = f"{np.mean(accuracies):.1%} ± {np.std(accuracies):.1%}"
        shown = "-" if method == NOTHING else f"{strength:.2g}"
        table.add_row(method, shown, spread, f"{np.mean(np.sqrt(squares)):.2f}", f"{np.mean(ranks):.2f}")
    return table


def draw(results: dict[str, Result]) -> Figure:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(1, RANK + 1)
    for method, result in results.items():
        mean = np.mean(result.spectra, axis=0)
        axes.plot(places, mean, marker="o", label=method)
        axes.fill_between(places, result.spectra.min(axis=0), result.spectra.max(axis=0), alpha=0.2)
    axes.set(xlabel="singular value", ylabel="size", title="The update of the first kernel", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each run")
    parser.add_argument("--seeds", type=int, default=8, help="runs of each strength")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder of the picture")
    parser.add_argument("--smoke", action="store_true", help="a short run of the same path")
    options = parser.parse_args()
    if options.smoke:
        options.steps, options.seeds = 30, 2
    results = run(options.steps, options.seeds)
    Console(width=100).print(table_of(results))
    options.output.mkdir(parents=True, exist_ok=True)
    draw(results).savefig(options.output / "lora.png", dpi=150)
    print(f"\nSaved {options.output / 'lora.png'}")


if __name__ == "__main__":
    main()
