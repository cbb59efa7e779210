"""A hyperball optimizer in a few lines: kernels keep their norms, and steps are as long as the learning rate says.

The hyperball optimizer (arXiv 2606.16899) has two parts. Each matrix keeps the Frobenius norm R that it had at the
start, and each update is scaled to the length learning rate · R. Together they make the learning rate the angle by
which a matrix turns, and no weight decay is needed to hold the norms. Both parts are compositions here:

- `jaxreg.proximal(..., rules)` with `constraints.KeepNorm(group_axis=())` scales each matrix back after each step. All
  rules are constraints, so it takes no learning rate;
- `normalized`, a stateless transformation of this file, stands between `optax.scale_by_adam` and the learning rate.

Norms and directions are for matrices, so that kernels and embeddings alone train in this way. The scales and biases
train under plain Adam, by `optax.partition`.

It is compared with `optax.adamw` on a character-level transformer that reads the help topics which Python ships. Both
train for the same steps at a path of three learning rates. The script fails if the norm of a matrix has changed by
more than rounding. The model and the text are small, so the losses say that the composition works, and not which
optimizer is better for a large model.

    python examples/hyperball.py             # about TIME on two cores
    python examples/hyperball.py --smoke     # the same path, with less of everything

The picture is `examples/output/hyperball.png`; `--output FOLDER` puts it elsewhere.
"""

import argparse
import pydoc_data.topics
from collections.abc import Callable
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
LEARNING_RATES = {ADAMW: [1e-3, 3e-3, 1e-2], HYPERBALL: [3e-3, 1e-2, 3e-2]}
MATRICES = r"(kernel|embedding)$"
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
    """Training at several learning rates, with arrays that have these along the first axis."""

    losses: np.ndarray  # validation losses, (learning rates, evaluations)
    norm_changes: np.ndarray  # the largest relative change of the norm of a matrix


def load_text() -> tuple[np.ndarray, np.ndarray, int]:
    """Python's help topics as numbers of characters, for training and for validation, and how many there are."""
    text = "".join(pydoc_data.topics.topics.values())
    characters, numbers = np.unique(list(text), return_inverse=True)
    cut = 9 * len(text) // 10
    return numbers[:cut].astype(np.int32), numbers[cut:].astype(np.int32), len(characters)


def windows(text: np.ndarray, starts: np.ndarray) -> jax.Array:
    """Pieces of a text, each one character longer than the context, whose last character is only predicted."""
    return jnp.asarray(text[starts[..., None] + np.arange(CONTEXT + 1)])


def normalized() -> optax.GradientTransformation:
    """Scales each update to the norm of its parameter, so that the learning rate is the share of it."""

    def update(updates: Any, params: Any) -> Any:
        def scaled(update: jax.Array, param: jax.Array) -> jax.Array:
            # The bound keeps an update of zeros, such as that of unused weights, from dividing by 0.
            return update * (jnp.linalg.norm(param.ravel()) / jnp.maximum(jnp.linalg.norm(update.ravel()), 1e-12))

        return jax.tree.map(scaled, updates, params)

    return optax.stateless(update)


def kinds(params: Any) -> Any:
    """"matrix" or "vector" for each parameter, by its name."""
    return jax.tree.map_with_path(
        lambda path, _: "matrix" if path[-1].key in ("kernel", "embedding") else "vector", params
    )


def make_optimizer(method: str, learning_rate: jax.Array, shape: optax.Schedule) -> optax.GradientTransformation:
    """An optimizer whose learning rate has a shape over time, and is to be multiplied by `learning_rate`."""

    def schedule(count: jax.Array) -> jax.Array:
        return learning_rate * shape(count)

    if method == ADAMW:
        is_matrix = lambda params: jax.tree.map(lambda kind: kind == "matrix", kinds(params))  # noqa: E731
        return optax.adamw(schedule, b2=0.99, weight_decay=0.1, mask=is_matrix)
    rules = jaxreg.Rules((MATRICES, jaxreg.constraints.KeepNorm(group_axis=())))
    steps = optax.chain(optax.scale_by_adam(b2=0.99), normalized(), optax.scale_by_learning_rate(schedule))
    vectors = optax.adam(lambda count: 3e-3 * shape(count), b2=0.99)
    return optax.partition({"matrix": jaxreg.proximal(steps, rules), "vector": vectors}, kinds)


def make_training(
    method: str, model: nn.Module, shape: optax.Schedule, validation: jax.Array
) -> Callable[..., tuple[Any, jax.Array]]:
    """A function from a learning rate, parameters and batches to trained parameters and validation losses."""

    def loss_of(params: Any, pieces: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, pieces[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, pieces[:, 1:]).mean()

    def train(learning_rate: jax.Array, params: Any, batches: jax.Array) -> tuple[Any, jax.Array]:
        tx = make_optimizer(method, learning_rate, shape)

        def step(carry: tuple, batch: jax.Array) -> tuple[tuple, None]:
            params, opt_state = carry
            updates, opt_state = tx.update(jax.grad(loss_of)(params, batch), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        def stretch(carry: tuple, batches: jax.Array) -> tuple[tuple, jax.Array]:
            carry, _ = jax.lax.scan(step, carry, batches)
            return carry, loss_of(carry[0], validation)

        carry, losses = jax.lax.scan(stretch, (params, tx.init(params)), batches)
        return carry[0], losses

    return train
