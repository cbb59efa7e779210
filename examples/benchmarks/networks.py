"""Times the orthogonal penalty on all kernels of ResNet-50, ViT-S and GPT-2 small, and what share of a step it costs.

The units are the columns of Flax's kernels. Value and gradient of all kernels are one compiled program on each side:
jaxreg's rules, the sum of Keras 3 on JAX, and the sum of plain `jnp` under autodiff. Keras and `jnp` take a convolution
kernel HWIO as the matrix (HWI, O). The sides give the same penalty, which is checked, and take turns in one run. Beside
them stand the two matrix products alone, which are the floor of a dense method, and a forward and backward pass of the
network at a usual batch, with cross entropy as the loss. Times are medians after a warm-up, and temporaries are those
of the compiled program. `--shapes` adds the same ratios for each distinct shape, compiled alone.

    python examples/benchmarks/networks.py --shapes
    python examples/benchmarks/networks.py --smoke
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np
from gram import interleaved
from models import Network, matrix, networks, plain, products
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import jaxreg

PRODUCTS = "the two products alone"


def of_all_kernels() -> dict[str, Callable]:
    """The sides, from a tree of kernels to value and gradient, or to the products."""

    def summed(function: Callable) -> Callable:
        return lambda kernels: sum(function(matrix(kernel)) for kernel in jax.tree.leaves(kernels))

    penalties = {
        "jaxreg": jaxreg.Rules((r"kernel$", jaxreg.OrthogonalRegularizer(1.0, "columns"))),
        "Keras": summed(keras.regularizers.OrthogonalRegularizer(1.0, mode="columns")),
        "plain jnp": summed(plain),
    }
    sides = {name: jax.value_and_grad(penalty) for name, penalty in penalties.items()}
    return sides | {PRODUCTS: lambda kernels: jax.tree.map(lambda kernel: products(matrix(kernel)), kernels)}


def random_like(tree: dict) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, leaf.dtype)), tree)


def compiled(kernels: dict) -> dict[str, Callable]:
    return {name: jax.jit(side).lower(kernels).compile() for name, side in of_all_kernels().items()}


def measure_compilation(kernels: dict, rounds: int) -> tuple[dict[str, Callable], dict[str, float]]:
    """The program of each side, and the median seconds to trace and compile it; the sides take turns."""
    programs, seconds = {}, {}
    for _ in tqdm(range(rounds), desc="compilations", leave=False):
        for name, side in of_all_kernels().items():
            jax.clear_caches()
            start = time.perf_counter()
            programs[name] = jax.jit(side).lower(kernels).compile()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    return programs, {name: float(np.median(times)) for name, times in seconds.items()}


def check_agreement(programs: dict[str, Callable], kernels: dict) -> None:
    """All sides give the same penalty.

    Where the products that are timed may be of TF32 or bfloat16, the check has programs of its own, in float32.
    """
    if jax.default_backend() != "cpu":
        with jax.default_matmul_precision("highest"):
            programs = compiled(kernels)
    values = [float(program(kernels)[0]) for name, program in programs.items() if name != PRODUCTS]
    np.testing.assert_allclose(values, values[0], rtol=1e-5)


def mebibytes(program: Callable) -> float:
    return program.memory_analysis().temp_size_in_bytes / 2**20


def measure_step(network: Network, repeats: int) -> tuple[float, float]:
    """The seconds of a forward and backward pass, and its MiB of temporaries."""
    rng = np.random.default_rng(0)
    if jnp.issubdtype(network.inputs.dtype, jnp.integer):
        inputs = rng.integers(0, network.classes, network.inputs.shape, network.inputs.dtype)
    else:
        inputs = rng.standard_normal(network.inputs.shape, network.inputs.dtype)
    labels = rng.integers(0, network.classes, network.labels.shape, network.labels.dtype)
    inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)
    rest = dict(jax.jit(network.model.init)(jax.random.key(0), inputs))
    params = rest.pop("params")
    arguments = (params, rest, inputs, labels)
    program = jax.jit(jax.value_and_grad(network.loss, has_aux=True)).lower(*arguments).compile()
    return interleaved({"step": program}, arguments, repeats)["step"], mebibytes(program)


def tabulate(network: Network, repeats: int, step_repeats: int, rounds: int) -> Table:
    kernels = random_like(network.kernels())
    programs, compilation = measure_compilation(kernels, rounds)
    check_agreement(programs, kernels)
    seconds = interleaved(programs, (kernels,), repeats)
    del kernels  # the step has the memory to itself
    step, step_memory = measure_step(network, step_repeats)
    shapes = jax.tree.leaves(network.kernels())
    count, weights = len(shapes), sum(shape.size for shape in shapes)
    table = Table(title=f"{network.name}: {count} kernels, {weights / 1e6:.3g} M weights; a step is {network.batch}")
    table.add_column("value and gradient of all kernels, float32", min_width=42)
    for column in ("ms", "side : jaxreg", "share of a step", "temporaries MiB", "to trace and compile, s"):
        table.add_column(column, justify="right")
    for name, program in programs.items():
        ratio, share = seconds[name] / seconds["jaxreg"], seconds[name] / step
        cells = (f"{1e3 * seconds[name]:.3g}", f"{ratio:.2f}", f"{share:.2%}", f"{mebibytes(program):.1f}")
        table.add_row(name, *cells, f"{compilation[name]:.2f}")
    table.add_section()
    table.add_row("forward and backward pass", f"{1e3 * step:.4g}", "", "100%", f"{step_memory:.1f}", "")
    return table


def tabulate_shapes(network: Network, smoke: bool) -> Table:
    """Each distinct shape, compiled alone, and the sum over all kernels of the network."""
    table = Table(title=f"{network.name}, shape by shape: value and gradient, float32")
    for column in ("kernel", "count", "d × n", "jaxreg ms", "Keras : jaxreg", "jnp : jaxreg", "products : jaxreg"):
        table.add_column(column, justify="right")

    def add(first: tuple[str, str, str], seconds: dict[str, float]) -> None:
        ours = seconds["jaxreg"]
        ratios = (f"{seconds[name] / ours:.2f}" for name in ("Keras", "plain jnp", PRODUCTS))
        table.add_row(*first, f"{1e3 * ours:.3g}", *ratios)

    leaves = jax.tree.leaves(network.kernels())
    counts = Counter(leaf.shape for leaf in (leaves[:2] if smoke else leaves))
    totals: dict[str, float] = dict.fromkeys(of_all_kernels(), 0.0)
    for shape, count in tqdm(counts.items(), desc="shapes", leave=False):
        kernels = random_like({"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)})
        programs = compiled(kernels)
        check_agreement(programs, kernels)
        n = shape[-1]
        d = kernels["kernel"].size // n
        repeats = 2 if smoke else max(5, min(100, int(1e10 / (d * n * n))))
        seconds = interleaved(programs, (kernels,), repeats)
        add((str(shape), str(count), f"{d} × {n}"), seconds)
        totals = {name: total + count * seconds[name] for name, total in totals.items()}
    table.add_section()
    add(("all, with their counts", str(counts.total()), ""), totals)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = list(networks(smoke=True))
    parser.add_argument("--networks", nargs="+", choices=choices, default=choices)
    parser.add_argument("--shapes", action="store_true", help="a table of each distinct shape too")
    parser.add_argument("--repeats", type=int, default=15, help="rounds of the penalty's sides")
    parser.add_argument("--step-repeats", type=int, default=3, help="forward and backward passes")
    parser.add_argument("--compilations", type=int, default=3, help="rounds of compiling the penalty's sides")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, all tables, few shapes and repeats")
    args = parser.parse_args()
    if args.smoke:
        args.shapes, args.repeats, args.step_repeats, args.compilations = True, 2, 1, 1
    console = Console(width=150)
    device = jax.devices()[0].device_kind
    print(f"{device}, {os.cpu_count()} cores, jax {jax.__version__}, keras {keras.__version__}")
    for name, network in networks(args.smoke).items():
        if name in args.networks:
            console.print(tabulate(network, args.repeats, args.step_repeats, args.compilations))
            if args.shapes:
                console.print(tabulate_shapes(network, args.smoke))


if __name__ == "__main__":
    main()
