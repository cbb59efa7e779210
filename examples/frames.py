"""Gradient descent spreads vectors as evenly as they can be, and reaches frames that are known to be the best.

A few vectors in few dimensions cannot all be orthogonal. What is best then depends on the measure, and for some numbers
of vectors and dimensions the best is known in closed form:

- `FramePotential`, the mean cos²: a tight frame, with Σ cos² over all pairs, each vector with itself too, equal to
  max(n, n²/d). Every local minimum is one;
- `PFrame(p=4)`, the mean cos⁴: six vectors in three dimensions become the diagonals of an icosahedron;
- `MutualCoherence`, the largest |cos|: equiangular vectors, at √((n−d)/(d(n−1))), the Welch bound. It is reached by a
  smooth maximum, whose sharpness grows, and from several starts, since there are local minima.

All starts of one frame descend together, under `jax.vmap`.

    python examples/frames.py             # a quarter of a minute on two cores
    python examples/frames.py --smoke     # the same path, with less of everything

The picture is `examples/output/frames.png`; `--output FOLDER` puts it elsewhere.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import jaxreg

# The steps of one descent, and the sharpness of the smooth maximum in each of the descents that follow each other.
SHARPNESS = (20.0, 200.0, 2000.0)


class Frame(NamedTuple):
    """So many vectors in so many dimensions, the regularizers to descend in turn, and the best that is known."""

    measure: str
    count: int
    dimensions: int
    regularizers: tuple[Callable[[jax.Array], jax.Array], ...]
    of_cosines: Callable[[np.ndarray], float]
    best: float


def cosines(vectors: np.ndarray) -> np.ndarray:
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.abs(units @ units.T)


def tight(count: int, dimensions: int) -> Frame:
    best = max(count, count**2 / dimensions)
    regularizers = (jaxreg.FramePotential(1.0),)
    return Frame("sum of cos²", count, dimensions, regularizers, lambda c: float(np.sum(c**2)), best)


def equiangular(count: int, dimensions: int) -> Frame:
    best = np.sqrt((count - dimensions) / (dimensions * (count - 1)))
    regularizers = tuple(jaxreg.MutualCoherence(1.0, sharpness=sharpness) for sharpness in SHARPNESS)
    return Frame("largest |cos|", count, dimensions, regularizers, lambda c: float(np.max(c - np.eye(count))), best)


FRAMES = [
    *(tight(*shape) for shape in ((6, 3), (16, 6), (7, 3), (40, 6), (5, 8))),
    Frame("sum of cos⁴", 6, 3, (jaxreg.PFrame(1.0, p=4),), lambda c: float(np.sum(c**4)), 7.2),
    *(equiangular(*shape) for shape in ((3, 2), (4, 3), (6, 3), (6, 5), (7, 6))),
]
DRAWN = ("sum of cos²", "sum of cos⁴", "largest |cos|")  # six vectors in three dimensions, under each measure


def descend(frame: Frame, starts: int, steps: int) -> np.ndarray:
    """Returns the vectors of the best start."""

    def one(vectors: jax.Array) -> jax.Array:
        for regularizer in frame.regularizers:
            tx = optax.adam(optax.cosine_decay_schedule(0.03, steps))

            def step(state: tuple, _: None, tx=tx, regularizer=regularizer) -> tuple:
                vectors, inner = state
                updates, inner = tx.update(jax.grad(regularizer)(vectors), inner)
                return (optax.apply_updates(vectors, updates), inner), None

            (vectors, _), _ = jax.lax.scan(step, (vectors, tx.init(vectors)), None, length=steps)
        return vectors

    begun = jax.random.normal(jax.random.key(0), (starts, frame.count, frame.dimensions))
    ended = np.asarray(jax.jit(jax.vmap(one))(begun), np.float64)
    return min(ended, key=lambda vectors: frame.of_cosines(cosines(vectors)))


def report(found: dict[Frame, np.ndarray], starts: int) -> Table:
    table = Table(title=f"The best of {starts} random starts")
    table.add_column("measure")
    for column in ("vectors", "dimensions", "the best there is", "reached", "apart"):
        table.add_column(column, justify="right")
    previous = ""
    for frame, vectors in found.items():
        if previous and frame.measure != previous:
            table.add_section()
        reached = frame.of_cosines(cosines(vectors))
        values = f"{frame.best:.6f}", f"{reached:.6f}", f"{reached - frame.best:.0e}"
        table.add_row(frame.measure, str(frame.count), str(frame.dimensions), *values)
        previous = frame.measure
    return table


def draw(found: dict[Frame, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 8), layout="constrained")
    for column, measure in enumerate(DRAWN):
        (chosen,) = (f for f in found if f.measure == measure and (f.count, f.dimensions) == (6, 3))
        vectors = found[chosen] / np.linalg.norm(found[chosen], axis=1, keepdims=True)
        panel = figure.add_subplot(2, 3, column + 1, projection="3d")
        for end in vectors:
            panel.plot(*np.stack([-end, end]).T, color="#0072B2", linewidth=2.5, marker="o", markersize=4)
        panel.set_box_aspect((1, 1, 1))
        panel.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1), xticks=[], yticks=[], zticks=[])
        panel.set_title(f"six lines in space\nleast {measure}")
        values = np.sort(cosines(found[chosen])[np.triu_indices(6, 1)])
        below = figure.add_subplot(2, 3, column + 4)
        below.axhline(1 / np.sqrt(5), color="#D55E00", linestyle="--", label="1/√5, all angles alike")
        below.plot(np.arange(1, 16), values, "o", color="#0072B2")
        below.set(xlabel="pairs, in order", ylabel="|cos| of the pair", ylim=(-0.03, 1.03))
        below.grid(alpha=0.3)
        below.legend(frameon=False, loc="upper left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000, help="steps of each descent")
    parser.add_argument("--starts", type=int, default=8, help="random starts of each frame")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--smoke", action="store_true", help="50 steps, two starts, and six frames")
    args = parser.parse_args()
    steps, starts = (50, 2) if args.smoke else (args.steps, args.starts)
    frames = [f for f in FRAMES if (f.count, f.dimensions) in ((6, 3), (5, 8))] if args.smoke else FRAMES

    found = {frame: descend(frame, starts, steps) for frame in tqdm(frames, unit="frame")}
    Console(width=120).print(report(found, starts))
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "frames.png"
    draw(found).savefig(path, dpi=150)
    print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
