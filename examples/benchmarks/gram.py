"""Times the orthogonal penalty, value and gradient, against Keras 3 on JAX and against plain `jnp` under autodiff.

All sides compute the same number, which is checked, and take turns in one run. Their times stand beside the floor of
3n²d FLOPs at the rate of a large matrix product on the same machine; their memory is that of the temporaries of the
compiled program. The frame potential stands beside the squared cosines of the n × n matrix, and for n <= d beside
brainstate's `OrthogonalReg` of the unit rows, where that is installed: its ‖WᵀW − I‖² is then the same sum.

    python examples/benchmarks/gram.py             # some ten minutes on two cores
    python examples/benchmarks/gram.py --smoke
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from jaxreg import OrthogonalRegularizer as Orthogonal
from jaxreg import Rules, penalties
from jaxreg._gram import unit_vectors

SMALL = [(8, 8), (32, 32), (128, 128), (256, 256), (512, 512), (768, 768), (1024, 1024), (2048, 2048)]
LARGE = [(4096, 1024), (8192, 256), (16384, 128)]
PLOTTED = [(n, 256) for n in (512, 1024, 2048, 4096, 8192)]


def cosines(x: jax.Array) -> jax.Array:
    units = x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-7)
    return jnp.where(jnp.eye(len(x), dtype=bool), 0.0, units @ units.T)


def plain(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.abs(cosines(x))) / (len(x) * (len(x) - 1))


def plain_squares(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(cosines(x))) / (len(x) * (len(x) - 1))


def compile_gradient(function: Callable, x: jax.Array) -> Callable:
    return jax.jit(jax.value_and_grad(function)).lower(x).compile()


def product_rate(size: int) -> float:
    """FLOPs a second of a large matrix product."""
    a = jnp.ones((size, size))
    product = jax.jit(jnp.matmul).lower(a, a).compile()
    seconds = interleaved({"product": product}, (a, a), 15)["product"]
    return 2 * size**3 / seconds


def interleaved(programs: dict[str, Callable], arguments: tuple, repeats: int) -> dict[str, float]:
    """The median seconds of each program, which take turns; a first round is not counted.

    A program that took long has a pause after it, in which its memory goes back, not in the time of the next.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds[name].append(time.perf_counter() - start)
            time.sleep(0.2 if seconds[name][-1] > 0.1 else 0.0)
    return {name: float(np.median(times[1:])) for name, times in seconds.items()}


def measure(shape: tuple[int, int], sides: dict[str, Callable], repeats: int) -> dict[str, tuple[float, float]]:
    """The seconds and the MiB of temporaries of each side."""
    x = jax.random.normal(jax.random.key(0), shape)
    programs = {name: compile_gradient(function, x) for name, function in sides.items()}
    values = [float(program(x)[0]) for program in programs.values()]
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
    budget = max(5, min(200, int(2e10 / (shape[0] ** 2 * shape[1])))) if repeats == 0 else repeats
    seconds = interleaved(programs, (x,), budget)
    return {
        name: (seconds[name], program.memory_analysis().temp_size_in_bytes / 2**20)
        for name, program in programs.items()
    }


def tabulate(shapes: list[tuple[int, int]], rate: float, repeats: int) -> tuple[Table, dict]:
    sides = {"Keras": keras.regularizers.OrthogonalRegularizer(1.0), "plain jnp": plain, "jaxreg": penalties.orthogonal}
    table = Table(
        title=f"Mean |cosine|, value and gradient, float32; a matrix product runs at {rate / 1e9:.0f} GFLOP/s"
    )
    for column in ("n × d", "Keras ms", "jnp ms", "jaxreg ms", "Keras : jaxreg", "jnp : jaxreg", "share of the floor"):
        table.add_column(column, justify="right")
    for column in ("Keras MiB", "jnp MiB", "jaxreg MiB"):
        table.add_column(column, justify="right")
    results = {}
    for n, d in tqdm(shapes, desc="shapes", leave=False):
        results[n, d] = found = measure((n, d), sides, repeats)
        ours = found["jaxreg"][0]
        times = (f"{1e3 * seconds:.3g}" for seconds, _ in found.values())
        ratios = (f"{found[side][0] / ours:.2f}" for side in ("Keras", "plain jnp"))
        memory = (f"{mebibytes:.1f}" for _, mebibytes in found.values())
        table.add_row(f"{n} × {d}", *times, *ratios, f"{3 * n * n * d / rate / ours:.0%}", *memory)
    return table, results


def tabulate_frames(shapes: list[tuple[int, int]], repeats: int) -> Table:
    table = Table(title="Frame potential, value and gradient, float32")
    for column in ("n × d", "side", "ms", "side : jaxreg"):
        table.add_column(column, justify="left" if column == "side" else "right")
    try:
        from brainstate.nn import OrthogonalReg
    except ImportError:
        OrthogonalReg = None
    for n, d in shapes:
        excess = max(n - d, 0) / (d * (n - 1))
        sides = {
            "jaxreg": lambda x, excess=excess: penalties.frame_potential(x) + excess,
            "squares of the n × n matrix": plain_squares,
        }
        if OrthogonalReg is not None and n <= d:
            regularizer = OrthogonalReg(1.0)

            def brainstate(x: jax.Array, regularizer=regularizer) -> jax.Array:
                units = x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-7)
                return regularizer.loss(units.T) / (len(x) * (len(x) - 1))

            sides["brainstate, of unit rows"] = brainstate
        found = measure((n, d), sides, repeats)
        found |= measure((n, d), {"Keras's mean |cosine|": keras.regularizers.OrthogonalRegularizer(1.0)}, repeats)
        for side, (seconds, _) in found.items():
            table.add_row(f"{n} × {d}", side, f"{1e3 * seconds:.3g}", f"{seconds / found['jaxreg'][0]:.1f}")
    return table


def reference(x: np.ndarray, kernel_signs: np.ndarray) -> tuple[np.float64, np.ndarray, np.ndarray]:
    """The mean |cosine| in float64, its gradient, and that gradient with the kernel's signs of cosines below 1e-6."""
    x = x.astype(np.float64)
    pairs = len(x) * (len(x) - 1)
    norms = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-7)
    units = x / norms
    gram = units @ units.T
    np.fill_diagonal(gram, 0.0)

    def gradient(signs: np.ndarray) -> np.ndarray:
        sums = 2 * signs @ units / pairs
        return (sums - units * np.sum(units * sums, axis=1, keepdims=True)) / norms

    own = np.sign(gram)
    return np.abs(gram).sum() / pairs, gradient(own), gradient(np.where(np.abs(gram) < 1e-6, kernel_signs, own))


def tabulate_agreement(n: int, d: int, matrices: int) -> Table:
    """Relative errors of the float32 kernel against NumPy in float64; of a gradient, in norm."""
    program = compile_gradient(penalties.orthogonal, jnp.ones((n, d)))
    errors = []
    for seed in tqdm(range(matrices), desc="matrices", leave=False):
        x = jax.random.normal(jax.random.key(seed), (n, d))
        value, gradient = program(x)
        units = unit_vectors(x, 0)
        expected, *slopes = reference(np.asarray(x), np.sign(np.asarray(units @ units.T)))
        of_slopes = [np.linalg.norm(gradient - slope) / np.linalg.norm(slope) for slope in slopes]
        errors.append([abs(float(value) - expected) / expected, *of_slopes])
    table = Table(title=f"Agreement with NumPy in float64 on {matrices} matrices, {n} × {d}")
    table.add_column("relative error")
    for column in ("median", "largest"):
        table.add_column(column, justify="right")
    names = ("value", "gradient", "gradient, where |cosine| < 1e-6 with the kernel's signs")
    for name, column in zip(names, np.transpose(errors), strict=True):
        table.add_row(name, f"{np.median(column):.1e}", f"{np.max(column):.1e}")
    return table


def tabulate_compilation(layers: int, width: int) -> Table:
    """Seconds to trace and compile the gradient of orthogonal on every kernel of a transformer."""
    shapes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
    tree = {
        f"layer_{i}": {k: {"kernel": jax.ShapeDtypeStruct(s, jnp.float32)} for k, s in shapes.items()}
        for i in range(layers)
    }
    sides = {
        "jaxreg": Rules((r"kernel$", Orthogonal(1.0, "columns"))),
        "plain jnp": Rules((r"kernel$", lambda kernel: plain(kernel.T))),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(3):
        for side, rules in sides.items():
            jax.clear_caches()
            start = time.perf_counter()
            jax.jit(jax.value_and_grad(rules)).lower(tree).compile()
            seconds[side].append(time.perf_counter() - start)
    table = Table(title="Compiling a transformer's penalty")
    table.add_column(f"orthogonal on {4 * layers} kernels, width {width}")
    table.add_column("s", justify="right")
    for side, times in seconds.items():
        table.add_row(side, f"{np.median(times):.2f}")
    return table


def draw(results: dict) -> Figure:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    styles = {"Keras": ("#D55E00", "s"), "plain jnp": ("#E69F00", "^"), "jaxreg": ("#0072B2", "o")}
    for side, (color, marker) in styles.items():
        sizes = [n for n, _ in results]
        for panel, index, unit in ((panels[0], 0, 1e3), (panels[1], 1, 1.0)):
            values = [unit * found[side][index] for found in results.values()]
            panel.plot(sizes, values, color=color, marker=marker, label=side)
    for panel, title, label in zip(panels, ("Time", "Temporary memory"), ("ms", "MiB"), strict=True):
        panel.set(title=f"{title}, d = 256", xlabel="n", ylabel=label, xscale="log", yscale="log")
        panel.set_xticks(sizes, [str(n) for n in sizes])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "output")
    parser.add_argument("--smoke", action="store_true", help="small shapes, few repeats")
    args = parser.parse_args()
    console = Console(width=150)
    shapes, plotted, frames = SMALL + LARGE, PLOTTED, [(16384, 128), (512, 2048)]
    if args.smoke:
        shapes, plotted, frames = [(8, 8), (600, 16)], [(64, 256), (128, 256)], [(64, 8), (8, 64)]
    repeats = 2 if args.smoke else 0  # 0 leaves it to the size
    rate = product_rate(256 if args.smoke else 4096)
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}, keras {keras.__version__}")
    table, _ = tabulate(shapes, rate, repeats)
    console.print(table)
    console.print(tabulate_frames(frames, repeats))
    console.print(tabulate_agreement(*((100, 16, 2) if args.smoke else (4096, 1024, 8))))
    console.print(tabulate_compilation(*((1, 8) if args.smoke else (12, 768))))

    n, d = (1024, 16) if args.smoke else (65536, 256)
    x = jax.random.normal(jax.random.key(0), (n, d))
    program = compile_gradient(penalties.orthogonal, x)
    start = time.perf_counter()
    jax.block_until_ready(program(x))
    seconds, memory = time.perf_counter() - start, program.memory_analysis().temp_size_in_bytes / 2**20
    print(
        f"{n} × {d}: {seconds:.1f} s once, {memory:.0f} MiB of temporaries; one Gram matrix is {n * n / 2**18:.0f} MiB"
    )

    _, results = tabulate(plotted, rate, repeats)
    args.output.mkdir(parents=True, exist_ok=True)
    draw(results).savefig(args.output / "gram.png", dpi=130)
    print(f"Saved {args.output / 'gram.png'}")


if __name__ == "__main__":
    main()
