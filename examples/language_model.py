"""A small NNX transformer reads Python's help topics under rules for its heads, units and embeddings.

The model predicts characters of the topics that `help()` shows, which every Python has. Two sets of rules choose by
path. Together with the loss they make one objective, which one optimizer minimizes:

- `GroupLasso` on each hidden unit of the MLPs, and on each attention head by its part of the output kernel. It makes
  whole units and heads exactly zero, by `jaxreg.proximal_adam`;
- `L2` on the other kernels of the blocks, by the same prox;
- `OrthogonalRegularizer` on the queries and keys, with each head a matrix of its own. It has no prox, so
  `jaxreg.add_penalty_gradients` adds its gradient in front of Adam;
- nothing on embeddings, norms and the head, whose rule is None.

The progress bar shows the loss and the penalty live. The optimizer's state tracks the penalty, so that reading it costs
nothing. A network without rules trains on the same batches. A model this small does not overfit the text, so the rules
make its loss higher. What they give are zero units and heads, which can be cut out.

    python examples/language_model.py             # about two minutes on two cores
    python examples/language_model.py --smoke     # the same path, with less of everything

The picture is `examples/output/language_model.png`; `--output FOLDER` puts it elsewhere.
"""

import argparse
import pydoc_data.topics
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import jaxreg

CONTEXT, WIDTH, HEADS, BATCH = 64, 64, 4, 16
PLAIN, RULES = "no rules", "rules"

SPARSE = jaxreg.Rules(
    (r"embed|norm|^head/", None),
    (r"mlp/up/kernel$", jaxreg.GroupLasso(2e-3)),  # a group for each hidden unit
    (r"attention/out/kernel$", jaxreg.GroupLasso(3e-2, group_axis=0)),  # (heads, head_dim, out), a group for each head
    (r"attention/value/kernel$|mlp/down/kernel$", jaxreg.L2(1e-3)),
)
ANGLES = jaxreg.Rules(
    # (in, heads, head_dim): the units of a head are compared with each other, and not with those of another head.
    (r"(query|key)/kernel$", jaxreg.OrthogonalRegularizer(3e-2, mode="columns", batch_axis=1)),
)
NAMES = {  # of the rules, for the picture
    "units of MLPs, GroupLasso": (SPARSE, 1),
    "heads, GroupLasso": (SPARSE, 2),
    "values and MLP outputs, L2": (SPARSE, 3),
    "queries and keys, orthogonal": (ANGLES, 0),
}


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        # Without a bias, a unit whose kernel column is zero puts out gelu(0) = 0, and can be cut out.
        return self.down(nnx.gelu(self.up(x)))


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.attention_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, use_bias=False, decode=False, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.mlp = MLP(rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x += self.attention(self.attention_norm(x), mask=mask)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nnx.Module):
    def __init__(self, characters: int, layers: int, rngs: nnx.Rngs):
        self.embed = nnx.Embed(characters, WIDTH, rngs=rngs)
        self.positions_embed = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(layers)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, characters, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        x = self.embed(text) + self.positions_embed(jnp.arange(text.shape[-1]))
        mask = nnx.make_causal_mask(text)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


class Run(NamedTuple):
    """What was measured at each evaluation, and the trained model."""

    model: Transformer
    steps: list[int]
    losses: list[float]  # of the steps since the last evaluation, without the penalty
    validation: list[float]
    penalties: list[list[float]]  # of each rule
    dead_units: list[float]  # share
    dead_heads: list[float]  # share


def load_text() -> tuple[np.ndarray, np.ndarray, int]:
    """Python's help topics as numbers of characters, for training and for validation, and how many there are."""
    text = "".join(pydoc_data.topics.topics.values())
    characters, numbers = np.unique(list(text), return_inverse=True)
    cut = 9 * len(text) // 10
    return numbers[:cut].astype(np.int32), numbers[cut:].astype(np.int32), len(characters)


def windows(text: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Pieces of a text, each one character longer than the context, whose last character is only predicted."""
    return text[starts[..., None] + np.arange(CONTEXT + 1)]


def loss_of(model: Transformer, pieces: jax.Array) -> jax.Array:
    logits = model(pieces[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, pieces[:, 1:]).mean()


@nnx.jit
def train_step(model: Transformer, optimizer: nnx.Optimizer, pieces: jax.Array) -> jax.Array:
    loss, gradients = nnx.value_and_grad(loss_of)(model, pieces)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def evaluate(model: Transformer, pieces: jax.Array) -> tuple[jax.Array, list[jax.Array], jax.Array, jax.Array]:
    """The validation loss, the penalty of each rule, and the shares of MLP units and heads that are exactly zero."""
    penalties = [rules.by_rule(model)[number] for rules, number in NAMES.values()]
    units = [jnp.all(block.mlp.up.kernel[...] == 0, axis=0) for block in model.blocks]
    heads = [jnp.all(block.attention.out.kernel[...] == 0, axis=(1, 2)) for block in model.blocks]
    return loss_of(model, pieces), penalties, jnp.mean(jnp.stack(units)), jnp.mean(jnp.stack(heads))


def tracked_penalty(optimizer: nnx.Optimizer) -> float:
    """The penalty that the transforms of an optimizer have tracked, at the parameters of its last step."""
    penalties = optax.tree.get_all_with_path(optimizer.opt_state, "penalty")
    return sum(float(penalty[...]) for _, penalty in penalties)


def train(
    name: str, initial: Transformer, text: np.ndarray, validation: np.ndarray, steps: int, every: int, progress: tqdm
) -> Run:
    """Trains a copy of a model with or without the rules, and evaluates it after each `every` steps."""
    starts = np.random.default_rng(0).integers(len(text) - CONTEXT, size=(steps, BATCH))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)
    tx = optax.adam(schedule)
    if name == RULES:
        tx = optax.chain(jaxreg.add_penalty_gradients(ANGLES), jaxreg.proximal_adam(schedule, SPARSE))
    model = nnx.clone(initial)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    evaluations, recent = [], []
    for step in range(1, steps + 1):
        recent.append(train_step(model, optimizer, windows(text, starts[step - 1])))
        progress.update()
        if step % every == 0:
            loss = float(np.mean(recent))
            recent.clear()
            penalty = f"{tracked_penalty(optimizer):.4f}" if name == RULES else "none"
            progress.set_postfix(loss=f"{loss:.3f}", penalty=penalty)
            evaluations.append((step, loss, *jax.device_get(evaluate(model, validation))))
    return Run(model, *zip(*evaluations, strict=True))


def mean_cosine(model: Transformer) -> float:
    """The mean |cosine| between two units of the same head, in queries and keys."""
    kernels = [kernel[...] for b in model.blocks for kernel in (b.attention.query.kernel, b.attention.key.kernel)]
    cosines = [np.abs(jaxreg.diagnostics.cosines(k, mode="columns", batch_axis=1)) for k in kernels]
    size = WIDTH // HEADS
    return float(np.mean([matrix[:, ~np.eye(size, dtype=bool)] for matrix in cosines]))


def report(runs: dict[str, Run]) -> Table:
    table = Table(title="After the same steps on the same batches", caption="One seed, so small differences are noise.")
    table.add_column("network")
    for column in ("training loss", "validation loss", "zero units of MLPs", "zero heads", "mean |cos| in a head"):
        table.add_column(column, justify="right", overflow="fold")
    for name, run in runs.items():
        table.add_row(
            name,
            f"{run.losses[-1]:.3f}",
            f"{run.validation[-1]:.3f}",
            f"{run.dead_units[-1]:.1%}",
            f"{run.dead_heads[-1]:.1%}",
            f"{mean_cosine(run.model):.3f}",
        )
    return table


def draw(runs: dict[str, Run]) -> Figure:
    figure = Figure(figsize=(14, 5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    # Okabe and Ito's colors, which differ for every kind of color vision.
    for (name, run), color in zip(runs.items(), ("#000000", "#0072B2"), strict=True):
        left.plot(run.steps, run.losses, ":", color=color, label=f"{name}, training")
        left.plot(run.steps, run.validation, color=color, label=f"{name}, validation")
    left.set(title="Loss, without the penalty", ylabel="cross-entropy of a character, in nats")

    run = runs[RULES]
    areas = np.transpose(run.penalties)
    middle.stackplot(run.steps, areas, labels=list(NAMES), colors=("#E69F00", "#D55E00", "#009E73", "#56B4E9"))
    middle.set(title="Penalty of each rule, stacked", ylabel="penalty")
    middle.margins(x=0)
    right.plot(run.steps, run.dead_units, color="#E69F00", label="units of MLPs")
    right.plot(run.steps, run.dead_heads, "--", color="#D55E00", label="attention heads")
    right.set(title="Exact zeros under the rules", ylabel="share that is exactly zero")
    right.set_ylim(-0.02, 1)
    right.yaxis.set_major_formatter(PercentFormatter(1))
    for panel in (left, middle, right):
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--smoke", action="store_true", help="20 steps and one layer")
    args = parser.parse_args()
    steps, layers, every = (20, 1, 5) if args.smoke else (args.steps, 2, 20)

    text, held_out, characters = load_text()
    validation = windows(held_out, np.linspace(0, len(held_out) - CONTEXT - 1, 4 * BATCH).astype(int))
    model = Transformer(characters, layers, nnx.Rngs(0))
    print(
        f"The rules of the prox:\n\n{SPARSE.explain(model)}\n\nThe rules of the gradient:\n\n{ANGLES.explain(model)}\n"
    )
    runs = {}
    with tqdm(total=2 * steps, unit="step") as progress:
        for name in (PLAIN, RULES):
            progress.set_description(f"{name:>8}")
            runs[name] = train(name, model, text, validation, steps, every, progress)

    Console(width=120).print(report(runs))
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "language_model.png"
    draw(runs).savefig(path, dpi=150)
    print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
