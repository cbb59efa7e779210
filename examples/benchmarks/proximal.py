"""Times a whole step of `proximal(optax.adam(...))` with penalties or constraints on all kernels, against `optax.adam`.

The parameters are those of a GPT-like transformer, about 100 M weights, as in `transform.py`. A step is the update and
`apply_updates`, compiled together with the parameters and the state donated, as in training. The runs are interleaved,
and the ratios are of runs that stand next to each other.

    python examples/benchmarks/proximal.py
    python examples/benchmarks/proximal.py --only Sparsity
"""

import argparse
import functools
import itertools
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

TERMS = (
    jaxreg.L1(1e-5),
    jaxreg.GroupLasso(1e-5),
    jaxreg.Anchor(1e-5),
    jaxreg.constraints.MaxNorm(2.0),
    jaxreg.constraints.Sparsity(0.9),
    jaxreg.constraints.NM(2, 4),
)


def compiled_step(tx: optax.GradientTransformation, params: dict, grads: dict):
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step.lower(params, jax.eval_shape(tx.init, params), grads).compile()


def sides_of(rules: jaxreg.Rules, rate: float) -> dict[str, optax.GradientTransformation]:
    """Adam alone, and with the projection of a constraint, or with the prox of a penalty in both metrics."""
    term = rules.regularizers[0]
    sides = {"optax.adam": optax.adam(rate)}
    if isinstance(term, jaxreg.constraints.Constraint):
        return sides | {f"proximal, {term!r}": jaxreg.proximal(optax.adam(rate), rules)}
    for metric, track in itertools.product(("euclidean", "adam"), (False, True)):
        tx = jaxreg.proximal(optax.adam(rate), rules, rate, metric=metric, track=track)
        sides[f"proximal, {type(term).__name__}, {metric} metric{', tracked' if track else ''}"] = tx
    return sides


def add_rows(table: Table, rules: jaxreg.Rules, params: dict, repeats: int) -> None:
    """The steps of each side, interleaved."""
    rate, grads = 1e-4, jax.tree.map(lambda p: jnp.full_like(p, 1e-3), params)
    name, sides = type(rules.regularizers[0]).__name__, sides_of(rules, rate)
    steps = {side: compiled_step(tx, params, grads) for side, tx in sides.items()}
    carries = {side: (jax.tree.map(jnp.copy, params), tx.init(params)) for side, tx in sides.items()}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in tqdm(range(repeats + 1), desc=f"interleaved runs, {name}", leave=False):
        for side, step in steps.items():
            start = time.perf_counter()
            carries[side] = jax.block_until_ready(step(*carries[side], grads))
            if repeat:  # the first run of each is not counted
                seconds[side].append(time.perf_counter() - start)
    for side, step in steps.items():
        ratio = np.array(seconds[side]) / np.array(seconds["optax.adam"])
        low, high = np.percentile(ratio, [25, 75])
        temporaries = step.memory_analysis().temp_size_in_bytes / 2**20
        cells = (f"{1e3 * np.median(seconds[side]):.1f}", f"{np.median(ratio):.3f}", f"{low:.3f} to {high:.3f}")
        table.add_row(side, *cells, f"{temporaries:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--only", choices=[type(term).__name__ for term in TERMS], help="one of the penalties and sets")
    parser.add_argument("--smoke", action="store_true", help="a small model and a few repeats")
    args = parser.parse_args()
    params = gpt_like(2, 64, 500) if args.smoke else gpt_like(12, 768, 20_000)
    repeats = 3 if args.smoke else args.repeats
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))

    device = jax.devices()[0].device_kind
    table = Table(title=f"{weights / 1e6:.1f} M weights, {repeats} repeats, {device}, jax {jax.__version__}")
    for column in ("step", "median ms", "median ratio", "quartiles of the ratio", "temporaries MiB"):
        table.add_column(column, justify="left" if column == "step" else "right", overflow="fold")
    # Each regularizer in a run of its own, since what one leaves in memory slows the next.
    for term in TERMS:
        if args.only in (None, type(term).__name__):
            add_rows(table, jaxreg.Rules((r"kernel$", term)), params, repeats)
            table.add_section()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
