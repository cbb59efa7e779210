"""Counts what each device does for the orthogonal penalty on a mesh, and times it on simulated devices.

The mean |cosine| of the rows of a kernel, value and gradient, in float32, on 1, 2, 4 and 8 devices. The kernel is
divided by its rows, its columns or both, or all devices have it whole. The mesh is Explicit or Auto. FLOPs, temporaries
and collectives are those of one device in the compiled program, with loops counted by their trips; what is moved is
what it receives, in units of the whole kernel. The times are of devices that share the cores of this machine, so 1.0
is the best that there can be; both sides take turns, and the medians are compared.

Then the rules of a transformer of 12 layers, FSDP over 8 devices: each kernel by itself, and equal kernels together.

    python examples/benchmarks/scaling.py
    python examples/benchmarks/scaling.py --smoke
"""

import argparse
import functools
import os
import time

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"

import jax
import jax.numpy as jnp
import numpy as np
from gram import interleaved
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from models import networks
from programs import collectives, flops_of_products, largest_gather
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import jaxreg

SHAPES = [(8192, 512), (16384, 256)]
LAYOUTS = {"rows": P(("x", "y")), "columns": P(None, ("x", "y")), "both": P("x", "y"), "whole": P()}
MiB = 2**20


def mesh_of(devices: int, kind: AxisType) -> Mesh:
    sizes = (devices // 2, 2) if devices > 2 else (devices, 1)
    return jax.make_mesh(sizes, ("x", "y"), axis_types=(kind, kind), devices=jax.devices()[:devices])


def columns(title: str, *names: str) -> Table:
    table = Table(title=title)
    for name in names:
        table.add_column(name, justify="left" if name in ("mesh", "divided", "rules") else "right", no_wrap=True)
    return table


def moved(text: str) -> tuple[str, int]:
    """The collectives of a program in words, and the bytes that a device receives by them."""
    found = collectives(text)
    words = ", ".join(f"{number} {kind}" for kind, (number, size) in found.items() if size > 64)
    return words or "-", sum(size for _, size in found.values())


def of_kernel(shape: tuple[int, int], repeats: int) -> Table:
    names = ("devices", "mesh", "divided", "GFLOP", "share", "MiB", "collectives", "moved", "gathered", "time")
    table = columns(f"one kernel {shape[0]} × {shape[1]}, value and gradient", *names)
    function = jax.value_and_grad(jaxreg.penalties.orthogonal)
    kernel = np.random.default_rng(0).standard_normal(shape, np.float32)
    size, ideal = kernel.nbytes, 3.0 * shape[0] ** 2 * shape[1]
    alone = jax.jit(function).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
    first = jnp.asarray(kernel)
    flops = flops_of_products(alone.as_text())
    memory = alone.memory_analysis().temp_size_in_bytes / MiB
    table.add_row("1", "", "", f"{flops / 1e9:.1f}", f"{flops / ideal:.3f}", f"{memory:.1f}", "-", "-", "-", "1.00")
    todo = [
        (devices, kind, name)
        for devices in (2, 4, 8)
        for kind in (AxisType.Explicit, AxisType.Auto)
        for name in LAYOUTS
        if devices == 8 or (kind == AxisType.Explicit and name == "rows")
    ]
    for devices, kind, name in tqdm(todo, desc="meshes", leave=False):
        mesh = mesh_of(devices, kind)
        placed = jax.device_put(kernel, NamedSharding(mesh, LAYOUTS[name]))
        program = jax.jit(function).lower(placed).compile()
        text = program.as_text()
        sides = {"one": functools.partial(alone, first), "mesh": functools.partial(program, placed)}
        seconds = interleaved(sides, (), repeats)
        flops, (words, received) = flops_of_products(text), moved(text)
        table.add_row(
            str(devices),
            kind.name,
            name,
            f"{flops / 1e9:.1f}",
            f"{devices * flops / ideal:.3f}",
            f"{program.memory_analysis().temp_size_in_bytes / MiB:.1f}",
            words,
            f"{received / size:.2f}",
            f"{largest_gather(text) / size:.2f}",
            f"{seconds['mesh'] / seconds['one']:.2f}",
        )
    return table


def of_transformer(smoke: bool) -> Table:
    network = networks(smoke)["gpt"]
    kernels = network.kernels()
    rules = jaxreg.Rules((r"kernel$", jaxreg.OrthogonalRegularizer(1.0, "columns")))
    names = ("mesh", "divided", "rules", "GFLOP", "MiB", "collectives", "MiB moved", "seconds to compile")
    table = columns(f"{network.name}, all kernels, value and gradient, 8 devices", *names)

    def each_by_itself(kernels: dict) -> jax.Array:
        return sum(rules({"kernel": kernel}) for kernel in jax.tree.leaves(kernels))

    def row(title: tuple[str, str, str], function, sharding) -> None:
        shapes = jax.tree.map(lambda k: jax.ShapeDtypeStruct(k.shape, k.dtype, sharding=sharding), kernels)
        seconds = []
        for _ in range(1 if smoke else 3):
            jax.clear_caches()
            start = time.perf_counter()
            program = jax.jit(jax.value_and_grad(function)).lower(shapes).compile()
            seconds.append(time.perf_counter() - start)
        text = program.as_text()
        words, received = moved(text)
        memory = program.memory_analysis().temp_size_in_bytes / MiB
        flops = f"{flops_of_products(text) / 1e9:.1f}"
        table.add_row(*title, flops, f"{memory:.0f}", words, f"{received / MiB:.0f}", f"{np.median(seconds):.2f}")

    row(("one device", "", "together"), rules, None)
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
        for name, spec in {"rows": P("x"), "columns": P(None, "x")}.items():
            for title, function in {"each by itself": each_by_itself, "together": rules}.items():
                row((kind.name, name, title), function, NamedSharding(mesh, spec))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="one small kernel, a tiny transformer and one repeat")
    args = parser.parse_args()
    console = Console(width=170)
    print(f"jax {jax.__version__}, {jax.device_count()} simulated devices on {os.cpu_count()} cores")
    for shape in [(256, 32)] if args.smoke else SHAPES:
        console.print(of_kernel(shape, 1 if args.smoke else args.repeats))
    console.print(of_transformer(args.smoke))


if __name__ == "__main__":
    main()
