"""Adam solves scikit-learn's Lasso, coefficient by coefficient, when its prox step is taken in Adam's own metric.

The Lasso of a real regression, ½·mean((y − Xw)²) + α·Σ|w|, has one solution, which scikit-learn finds by coordinate
descent. Adam looks for it in three ways, with the same steps and rates:

- `jaxreg.proximal_adam` finds it, with the same coefficients exactly zero;
- `jaxreg.proximal(..., metric="euclidean")` solves another problem: Adam brings every gradient to about the size 1
  and leaves the penalty as it is, so that an α far below 1 gives way, and the result is close to least squares;
- `jaxreg.add_penalty_gradients`, the subgradient, comes near to the solution, and no coefficient becomes exactly zero.

The script fails if the first has other zeros than scikit-learn, or an error above 1e-8.

    python examples/lasso.py              # a few seconds
    python examples/lasso.py --smoke      # few steps, and the solution is not checked
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso
from sklearn.preprocessing import scale
from tqdm import tqdm

import jaxreg

TOLERANCE = 1e-8


def train(tx: optax.GradientTransformation, features: jax.Array, target: jax.Array, steps: int) -> jax.Array:
    """The coefficients after `steps` full-batch steps from zero, all of them in one program."""

    def task_loss(params: dict[str, jax.Array]) -> jax.Array:
        return 0.5 * jnp.mean(jnp.square(features @ params["coefficients"] - target))

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(task_loss)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    params = {"coefficients": jnp.zeros(features.shape[1])}
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return params["coefficients"]


def report(
    names: list[str], expected: np.ndarray, found: dict[str, np.ndarray], unpenalized: np.ndarray, strength: float
) -> Table:
    table = Table(title=f"Coefficients of the Lasso on scikit-learn's diabetes data, α = {strength:g}")
    table.add_column("feature")
    columns = {"scikit-learn": expected, **found, "least squares": unpenalized}
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for name, *values in zip(names, *columns.values(), strict=True):
        table.add_row(name, *("[bold]0[/]" if value == 0 else f"{value:+.10f}" for value in values))
    table.add_section()
    table.add_row("exact zeros", *(str(np.sum(values == 0)) for values in columns.values()))
    for label, reference in (("largest error", expected), ("from least squares", unpenalized)):
        table.add_row(label, *(f"{np.abs(values - reference).max():.1e}" for values in columns.values()))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--strength", type=float, default=0.05, help="α in scikit-learn, `factor` in jaxreg.L1")
    parser.add_argument("--smoke", action="store_true", help="50 steps")
    args = parser.parse_args()
    steps = 50 if args.smoke else args.steps

    # Only float64 can show an agreement better than 1e-7.
    jax.config.update("jax_enable_x64", True)
    data = load_diabetes()
    features, target = scale(data.data), scale(data.target)

    rules = jaxreg.Rules((r"coefficients$", jaxreg.L1(args.strength)))
    schedule = optax.cosine_decay_schedule(0.05, steps)  # Adam's steps are as long as the rate, so it must end at 0
    adam = optax.adam(schedule)
    optimizers = {
        "prox, Adam's metric": jaxreg.proximal_adam(schedule, rules),
        "prox, Euclidean": jaxreg.proximal(adam, rules, schedule, metric="euclidean"),
        "subgradient": optax.chain(jaxreg.add_penalty_gradients(rules), adam),
    }
    found = {}
    with tqdm(optimizers.items(), unit="optimizer") as progress:
        for name, tx in progress:
            progress.set_description(f"{name:>19}")
            solve = jax.jit(train, static_argnums=(0, 3))
            found[name] = np.asarray(solve(tx, jnp.asarray(features), jnp.asarray(target), steps))

    lasso = Lasso(alpha=args.strength, fit_intercept=False, tol=1e-14, max_iter=100_000)
    expected = lasso.fit(features, target).coef_
    unpenalized = np.linalg.lstsq(features, target)[0]
    Console(width=120).print(report(data.feature_names, expected, found, unpenalized, args.strength))

    if not args.smoke:
        metric = found["prox, Adam's metric"]
        if np.any((metric == 0) != (expected == 0)):
            raise SystemExit("The prox in Adam's metric has other exact zeros than scikit-learn.")
        if (error := np.abs(metric - expected).max()) > TOLERANCE:
            raise SystemExit(f"The prox in Adam's metric is {error:.1e} away from scikit-learn, above {TOLERANCE:g}.")


if __name__ == "__main__":
    main()
