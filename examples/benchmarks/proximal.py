"""Times a whole step of `proximal(optax.adam(...))` with L1 on all kernels against plain `optax.adam`.

The parameters are those of a GPT-like transformer, about 100 M weights, as in `transform.py`. A step is the update and
`apply_updates`, compiled together with the parameters and the state donated, as in training. The runs are interleaved,
and the ratios are of runs that stand next to each other.

    python examples/benchmarks/proximal.py
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transform import gpt_like

import jaxreg


def compiled_step(tx: optax.GradientTransformation, params: dict, grads: dict):
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step.lower(params, jax.eval_shape(tx.init, params), grads).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--smoke", action="store_true", help="a small model and a few repeats")
    args = parser.parse_args()
    params = gpt_like(2, 64, 500) if args.smoke else gpt_like(12, 768, 20_000)
    repeats = 3 if args.smoke else args.repeats
    grads = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), params)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))

    rate, sparse = 1e-4, jaxreg.Rules((r"kernel$", jaxreg.L1(1e-5)))
    groups = jaxreg.Rules((r"kernel$", jaxreg.GroupLasso(1e-5)))
    sides = {
        "optax.adam": optax.adam(rate),
        "proximal, L1, Euclidean": jaxreg.proximal(optax.adam(rate), sparse, rate),
        "proximal, L1, Adam's metric": jaxreg.proximal(optax.adam(rate), sparse, rate, metric="adam"),
        "proximal, GroupLasso, Euclidean": jaxreg.proximal(optax.adam(rate), groups, rate),
        "proximal, GroupLasso, Adam's metric": jaxreg.proximal(optax.adam(rate), groups, rate, metric="adam"),
    }
    steps = {name: compiled_step(tx, params, grads) for name, tx in sides.items()}
    carries = {name: (jax.tree.map(jnp.copy, params), tx.init(params)) for name, tx in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in tqdm(range(repeats + 1), desc="interleaved runs", leave=False):
        for name, step in steps.items():
            start = time.perf_counter()
            carries[name] = jax.block_until_ready(step(*carries[name], grads))
            if repeat:  # the first run of each is not counted
                seconds[name].append(time.perf_counter() - start)

    device = jax.devices()[0].device_kind
    table = Table(title=f"{weights / 1e6:.1f} M weights, {repeats} repeats, {device}, jax {jax.__version__}")
    for column in ("step", "median ms", "median ratio", "quartiles of the ratio", "temporaries MiB"):
        table.add_column(column, justify="left" if column == "step" else "right", overflow="fold")
    reference = np.array(seconds["optax.adam"])
    for name, step in steps.items():
        ratio = np.array(seconds[name]) / reference
        low, high = np.percentile(ratio, [25, 75])
        temporaries = step.memory_analysis().temp_size_in_bytes / 2**20
        cells = (f"{1e3 * np.median(seconds[name]):.1f}", f"{np.median(ratio):.3f}", f"{low:.3f} to {high:.3f}")
        table.add_row(name, *cells, f"{temporaries:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
