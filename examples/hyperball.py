"""A hyperball optimizer in a few lines: kernels keep their norms, and steps are as long as the learning rate says.

The hyperball optimizer (arXiv 2606.16899) has two parts. Each matrix keeps the Frobenius norm R that it had at the
start, and each update is scaled to the length learning rate · R. The learning rate is then about the angle, in
radians, by which a matrix turns in a step, and no weight decay is needed to hold the norms. Two parts of a composition
do this:

- `jaxreg.proximal(..., rules)` with `constraints.KeepNorm(group_axis=())` scales each matrix back after each step. All
  rules are constraints, so it takes no learning rate;
- `normalized`, a stateless transformation of this file, stands between `optax.scale_by_adam` and the learning rate.

Only the kernels and embeddings train in this way. The scales of norms and the biases train under plain Adam, by
`optax.partition`.

It is compared with `optax.adamw` on a character-level transformer that reads the help topics which Python ships. Both
train for the same steps at a path of three learning rates. The script fails if the norm of a matrix has changed by
more than rounding. The model and the text are small and there is one seed, so the losses say that the composition
works, and not which optimizer is better for a large model.

    python examples/hyperball.py             # about a minute and a half on two cores
    python examples/hyperball.py --smoke     # the same path, with less of everything

The picture is `examples/output/hyperball.png`; `--output FOLDER` puts it elsewhere.
"""

import argparse
import pydoc_data.topics
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import jaxreg

ADAMW, HYPERBALL = "AdamW", "hyperball"
LEARNING_RATES = {ADAMW: [3e-3, 1e-2, 3e-2], HYPERBALL: [7e-3, 1.5e-2, 3e-2]}
CONTEXT = 64
TOLERANCE = 1e-5


class Transformer(nn.Module):
    characters: int
    layers: int
    width: int = 64

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        x = nn.Embed(self.characters, self.width, name="characters_in")(text)
        x += nn.Embed(CONTEXT, self.width, name="positions")(jnp.arange(text.shape[-1]))
        mask = nn.make_causal_mask(text)
        for i in range(self.layers):
            y = nn.RMSNorm(name=f"attention_norm_{i}")(x)
            x += nn.MultiHeadDotProductAttention(4, use_bias=False, name=f"attention_{i}")(y, mask=mask)
            y = nn.RMSNorm(name=f"mlp_norm_{i}")(x)
            y = nn.gelu(nn.Dense(4 * self.width, name=f"mlp_in_{i}")(y))
            x += nn.Dense(self.width, name=f"mlp_out_{i}")(y)
        return nn.Dense(self.characters, name="head")(nn.RMSNorm(name="norm")(x))


class Runs(NamedTuple):
    """Training at several learning rates, which are the first axis of each array."""

    losses: np.ndarray  # validation losses, (learning rates, evaluations)
    norms: dict[str, np.ndarray]  # norms of each matrix over that at the start, (learning rates, evaluations)
    changes: np.ndarray  # the largest relative change of a norm from start to end, (learning rates,)


def load_text() -> tuple[np.ndarray, np.ndarray, int]:
    """Python's help topics as numbers of characters, for training and for validation, and how many there are."""
    text = "".join(pydoc_data.topics.topics.values())
    characters, numbers = np.unique(list(text), return_inverse=True)
    cut = 9 * len(text) // 10
    return numbers[:cut].astype(np.int32), numbers[cut:].astype(np.int32), len(characters)


def windows(text: np.ndarray, starts: np.ndarray) -> jax.Array:
    """Pieces of a text, each one character longer than the context, whose last character is only predicted."""
    return jnp.asarray(text[starts[..., None] + np.arange(CONTEXT + 1)])


def norm_of(matrix: jax.Array) -> jax.Array:
    return jnp.linalg.norm(matrix.ravel())


def exact_norm(matrix: jax.Array) -> float:
    """The norm in float64, so that the check does not see the rounding of a float32 sum."""
    return float(np.linalg.norm(np.asarray(matrix, np.float64).ravel()))


def best_of(run: Runs) -> int:
    """The place of the learning rate with the lowest loss at the end."""
    return int(np.argmin(run.losses[:, -1]))


def normalized() -> optax.GradientTransformation:
    """Scales each update to the norm of its parameter, so that the learning rate is the share of it."""

    def update(updates: Any, params: Any) -> Any:
        def scaled(update: jax.Array, param: jax.Array) -> jax.Array:
            # The bound keeps an update of zeros, such as that of unused weights, from dividing by 0.
            return update * (norm_of(param) / jnp.maximum(norm_of(update), 1e-12))

        return jax.tree.map(scaled, updates, params)

    return optax.stateless(update)


def is_matrix(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), params)


def matrices(params: Any) -> dict[str, jax.Array]:
    """The kernels and embeddings by their paths."""
    chosen = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(is_matrix(params)), strict=True)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for (path, leaf), is_one in chosen if is_one}


def make_optimizer(method: str, learning_rate: jax.Array, shape: optax.Schedule) -> optax.GradientTransformation:
    """An optimizer whose learning rate has a shape over time, and is to be multiplied by `learning_rate`."""

    def schedule(count: jax.Array) -> jax.Array:
        return learning_rate * shape(count)

    if method == ADAMW:
        return optax.adamw(schedule, b2=0.99, weight_decay=0.1, mask=is_matrix)
    rules = jaxreg.Rules((r"(kernel|embedding)$", jaxreg.constraints.KeepNorm(group_axis=())))
    steps = optax.chain(optax.scale_by_adam(b2=0.99), normalized(), optax.scale_by_learning_rate(schedule))
    # Their rate is the middle one of AdamW, which trains them in the same way.
    others = optax.adam(lambda count: 1e-2 * shape(count), b2=0.99)
    return optax.partition({True: jaxreg.proximal(steps, rules), False: others}, is_matrix)


def train(
    method: str, model: nn.Module, params: Any, stretches: list[jax.Array], validation: jax.Array, progress: tqdm
) -> Runs:
    """Trains at all learning rates of a method at once, and evaluates after each stretch of batches."""
    steps = sum(map(len, stretches))
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)

    def loss_of(params: Any, pieces: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, pieces[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, pieces[:, 1:]).mean()

    def begin(learning_rate: jax.Array) -> tuple:
        return params, make_optimizer(method, learning_rate, shape).init(params)

    def stretch(learning_rate: jax.Array, carry: tuple, batches: jax.Array) -> tuple[tuple, tuple]:
        tx = make_optimizer(method, learning_rate, shape)

        def step(carry: tuple, batch: jax.Array) -> tuple[tuple, None]:
            params, opt_state = carry
            updates, opt_state = tx.update(jax.grad(loss_of)(params, batch), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        carry, _ = jax.lax.scan(step, carry, batches)
        return carry, (loss_of(carry[0], validation), jax.tree.map(norm_of, matrices(carry[0])))

    rates = jnp.asarray(LEARNING_RATES[method])
    carry, history = jax.jit(jax.vmap(begin))(rates), []
    run_stretch = jax.jit(jax.vmap(stretch, in_axes=(0, 0, None)))
    for batches in stretches:
        carry, evaluation = run_stretch(rates, carry, batches)
        history.append(jax.device_get(evaluation))
        progress.update(len(batches))

    losses, norms = jax.tree.map(lambda *values: np.stack(values, axis=1), *history)
    start, end = matrices(params), matrices(carry[0])
    relative = {path: values / norm_of(start[path]) for path, values in norms.items()}
    changes = [
        [abs(exact_norm(matrix) / exact_norm(start[path]) - 1) for matrix in stacked] for path, stacked in end.items()
    ]
    return Runs(losses, relative, np.max(changes, axis=0))


def report(runs: dict[str, Runs]) -> Table:
    table = Table(title="After the same steps", caption="One seed. A star marks the lowest loss of each optimizer.")
    table.add_column("optimizer")
    for column in ("learning rate", "validation loss", "largest relative change of a matrix's norm"):
        table.add_column(column, justify="right", overflow="fold")
    for method, run in runs.items():
        for i, rate in enumerate(LEARNING_RATES[method]):
            loss = f"{'* ' if i == best_of(run) else ''}{run.losses[i, -1]:.3f}"
            is_last = i == len(run.losses) - 1
            table.add_row(method if i == 0 else "", f"{rate:g}", loss, f"{run.changes[i]:.1e}", end_section=is_last)
    return table


def draw(runs: dict[str, Runs], steps: np.ndarray) -> Figure:
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    # Okabe and Ito's colors, which differ for every kind of color vision.
    colors = {ADAMW: "#E69F00", HYPERBALL: "#0072B2"}
    for method, run in runs.items():
        for rate, losses, style in zip(LEARNING_RATES[method], run.losses, (":", "-", "--"), strict=True):
            left.plot(steps, losses, style, color=colors[method], label=f"{method}, {rate:g}")
        best = best_of(run)
        for i, norms in enumerate(run.norms.values()):
            label = f"{method}, {LEARNING_RATES[method][best]:g}" if i == 0 else None
            values = np.concatenate([[1.0], norms[best]])
            right.plot(np.concatenate([[0], steps]), values, color=colors[method], label=label, linewidth=1.2)
    left.set(title="Validation loss", xlabel="step", ylabel="cross-entropy of a character, in nats")
    left.legend(title="optimizer, learning rate", frameon=False)
    right.set(
        title="Norms of all kernels and embeddings, a line for each",
        xlabel="step",
        ylabel="norm over that at the start",
    )
    right.legend(title="best learning rate of each", frameon=False)
    for panel in (left, right):
        panel.grid(alpha=0.3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--smoke", action="store_true", help="20 steps, one layer and small batches")
    args = parser.parse_args()
    steps, layers, batch_size, evaluations = (20, 1, 4, 4) if args.smoke else (args.steps, 2, 16, 20)

    text, held_out, characters = load_text()
    model = Transformer(characters, layers)
    starts = np.random.default_rng(0).integers(len(text) - CONTEXT, size=(steps, batch_size))
    stretches = [windows(text, part) for part in np.array_split(starts, evaluations)]
    validation = windows(held_out, np.linspace(0, len(held_out) - CONTEXT - 1, 4 * batch_size).astype(int))
    params = jax.jit(model.init)(jax.random.key(0), validation[:1, :-1])["params"]

    runs = {}
    with tqdm(total=len(LEARNING_RATES) * steps, unit="step") as progress:
        for method in LEARNING_RATES:
            progress.set_description(f"{method:>9}, {len(LEARNING_RATES[method])} learning rates")
            runs[method] = train(method, model, params, stretches, validation, progress)

    Console(width=120).print(report(runs))
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "hyperball.png"
    draw(runs, np.cumsum([len(batches) for batches in stretches])).savefig(path, dpi=150)
    print(f"\nSaved {path}")
    largest = runs[HYPERBALL].changes.max()
    if not largest < TOLERANCE:
        raise SystemExit(f"The norm of a matrix changed by {largest:.1e} of it, which is more than {TOLERANCE:g}.")


if __name__ == "__main__":
    main()
