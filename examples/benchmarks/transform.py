"""Times `add_penalty_gradients` with L2 against `optax.add_decayed_weights` with the same mask.

The parameters have the shapes of a GPT-like transformer of 12 layers, about 100 M weights. Each side is its `update`
alone, compiled; the runs are interleaved, and the ratios are of runs that stand next to each other.

    python examples/benchmarks/transform.py
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import jaxreg


def gpt_like(layers: int, width: int, vocabulary: int) -> dict:
    """Parameters with the names and shapes of a GPT, values of a tenth."""
    shapes = {
        "attention/qkv": {"kernel": (width, 3 * width), "bias": (3 * width,)},
        "attention/out": {"kernel": (width, width), "bias": (width,)},
        "mlp/up": {"kernel": (width, 4 * width), "bias": (4 * width,)},
        "mlp/down": {"kernel": (4 * width, width), "bias": (width,)},
        "norm_1": {"scale": (width,), "bias": (width,)},
        "norm_2": {"scale": (width,), "bias": (width,)},
    }
    tree = {f"layer_{i}": shapes for i in range(layers)} | {"embed": {"embedding": (vocabulary, width)}}
    return jax.tree.map(lambda shape: jnp.full(shape, 0.1), tree, is_leaf=lambda node: isinstance(node, tuple))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--smoke", action="store_true", help="a small model and a few repeats")
    args = parser.parse_args()
    params = gpt_like(2, 64, 500) if args.smoke else gpt_like(12, 768, 20_000)
    repeats = 3 if args.smoke else args.repeats

    strength = 1e-4
    rules = jaxreg.Rules((r"kernel$", jaxreg.L2(strength / 2)))
    mask = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
    sides = {
        "optax.add_decayed_weights": optax.add_decayed_weights(strength, mask=mask),
        "add_penalty_gradients(track=False)": jaxreg.add_penalty_gradients(rules, track=False),
        "add_penalty_gradients(track=True)": jaxreg.add_penalty_gradients(rules),
    }
    updates = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), params)
    states = {name: tx.init(params) for name, tx in sides.items()}
    steps = {name: jax.jit(tx.update).lower(updates, states[name], params).compile() for name, tx in sides.items()}
    seconds = {name: [] for name in sides}
    for name, step in steps.items():  # the first run of each is not counted
        jax.block_until_ready(step(updates, states[name], params))
    for _ in tqdm(range(repeats), desc="interleaved runs", leave=False):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(updates, states[name], params))
            seconds[name].append(time.perf_counter() - start)

    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    device = jax.devices()[0].device_kind
    table = Table(title=f"{weights / 1e6:.1f} M weights, {repeats} repeats, {device}, jax {jax.__version__}")
    for column in ("update", "median ms", "median ratio", "quartiles of the ratio", "temporaries MiB"):
        table.add_column(column, justify="left" if column == "update" else "right", overflow="fold")
    reference = np.array(seconds["optax.add_decayed_weights"])
    for name, step in steps.items():
        ratio = np.array(seconds[name]) / reference
        low, high = np.percentile(ratio, [25, 75])
        temporaries = step.memory_analysis().temp_size_in_bytes / 2**20
        cells = (f"{1e3 * np.median(seconds[name]):.1f}", f"{np.median(ratio):.3f}", f"{low:.3f} to {high:.3f}")
        table.add_row(name, *cells, f"{temporaries:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
