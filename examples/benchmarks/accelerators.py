"""Compiles the penalties of angles for a TPU v5e and an H100, on a machine that has neither, and compares with `jnp`.

No figure here is a time. Cycles are the TPU compiler's own estimate for each fusion, with loops counted by their trips:
good for comparing two programs. Launches count the kernels of a GPU program, loops counted; each costs some
microseconds. Temporaries are what the compiler reserves in the device's memory. Autotuning is off for the GPU, so its
products are Triton's and not cuBLAS's.

The tables, chosen by `--tables a,e`:

    a  the mean |cosine| of columns, kernels that people have
    b  the mean |cosine| of many rows
    c  both in bfloat16
    d  the frame potential of many rows, against the squared cosines of the n × n matrix
    e  the mean |cosine| of columns of all kernels of a network, in one program
    f  the mean |cosine| of rows of a kernel that is divided over 16 TPUs or 8 H100s

Plain `jnp` under autodiff takes the diagonal away after the sum, or masks it before. On a TPU the
first is the better one for most usual kernels, and the second for many rows.

The compilers are optional requirements, each in an environment of its own. Where neither is installed, the script says
so and ends.

    pip install -e . "jax[tpu]" && python examples/benchmarks/accelerators.py       # some minutes
    pip install -e . "jax[cuda12]" && python examples/benchmarks/accelerators.py
    python examples/benchmarks/accelerators.py --smoke
"""

import argparse
import functools
import importlib.util
import math
import os
import re
from collections.abc import Callable

# All of it must be known before jax is imported. No device is looked for, and another process may have libtpu too.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0 " + os.environ.get("XLA_FLAGS", ""),
}

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from models import cosines, matrix, networks, plain, products
from programs import collectives, count, largest_gather
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxreg

COLUMNS = [(4608, 512), (768, 3072), (3072, 768), (1152, 256), (768, 768), (512, 2048)]
ROWS = [(16384, 1024), (65536, 1024)]
FRAMES = [(16384, 1024), (1024, 4096)]
TITLES = {
    "a": "mean |cosine| of columns, d × n, float32",
    "b": "mean |cosine| of rows, n × d, float32",
    "c": "mean |cosine|, bfloat16",
    "d": "frame potential of rows, n × d, float32",
    "e": "mean |cosine| of columns, all kernels in one program, float32",
    "f": "mean |cosine| of rows, n × d, float32, divided over a mesh",
}
REQUIREMENTS = {"tpu": ("libtpu", "jax[tpu]"), "cuda": ("jax_cuda12_plugin", "jax[cuda12]")}
DEVICES = {"tpu": "TPU v5e", "cuda": "H100"}
# What is counted on each platform beside the temporaries: its name, and the unit of the table.
COUNTED = {"tpu": ("cycles", "k cycles", 1e3), "cuda": ("launches", "launches", 1.0)}
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 3 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

Case = tuple[dict[str, Callable], dict | jax.ShapeDtypeStruct]  # the sides, and the shapes of their argument


def installed() -> list[str]:
    return [platform for platform, (module, _) in REQUIREMENTS.items() if importlib.util.find_spec(module)]


def device_of(platform: str) -> jax.Device:
    if platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    return topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=H100, topology="1x1x1"
    ).devices[0]


def masked(x: jax.Array, axis: int) -> jax.Array:
    """What `plain` computes, with zeros on the diagonal."""
    found = cosines(x, axis)
    n = len(found)
    return jnp.sum(jnp.abs(jnp.where(jnp.eye(n, dtype=bool), 0.0, found))) / (n * (n - 1.0))


def squares(x: jax.Array) -> jax.Array:
    """The mean squared cosine between distinct rows, by the n × n matrix."""
    found = cosines(x, axis=1)
    n = len(found)
    return (jnp.sum(jnp.square(found)) - jnp.sum(jnp.square(jnp.diagonal(found)))) / (n * (n - 1.0))


def of_vectors(shape: tuple[int, int], axis: int, dtype: jnp.dtype) -> Case:
    """The mean |cosine| between the columns or rows, along an axis as in `cosines`."""
    mode = "columns" if axis == 0 else "rows"
    penalties = {
        "jaxreg": functools.partial(jaxreg.penalties.orthogonal, mode=mode),
        "plain": functools.partial(plain, axis=axis),
        "masked": functools.partial(masked, axis=axis),
    }
    sides = {name: jax.value_and_grad(penalty) for name, penalty in penalties.items()}
    sides["products"] = products if axis == 0 else lambda x: products(x.T).T
    return sides, jax.ShapeDtypeStruct(shape, dtype)


def of_frames(shape: tuple[int, int]) -> Case:
    sides = {"jaxreg": jax.value_and_grad(jaxreg.penalties.frame_potential), "plain": jax.value_and_grad(squares)}
    return sides, jax.ShapeDtypeStruct(shape, jnp.float32)


def of_kernels(kernels: dict) -> Case:
    def summed(kernels: dict) -> jax.Array:
        return sum(plain(matrix(kernel)) for kernel in jax.tree.leaves(kernels))

    sides = {
        "jaxreg": jax.value_and_grad(jaxreg.Rules((r"kernel$", jaxreg.OrthogonalRegularizer(1.0, "columns")))),
        "plain": jax.value_and_grad(summed),
        "products": lambda kernels: jax.tree.map(lambda kernel: products(matrix(kernel)), kernels),
    }
    return sides, kernels


def cases_of(table: str, smoke: bool) -> dict[str, Case]:
    columns = [(256, 128)] if smoke else COLUMNS
    rows = [(2048, 128)] if smoke else ROWS
    frames = [(256, 128), (128, 256)] if smoke else FRAMES
    if table == "d":
        return {f"{n} × {d}": of_frames((n, d)) for n, d in frames}
    if table == "e":
        chosen = networks(smoke)
        return {chosen[key].name: of_kernels(chosen[key].kernels()) for key in ("resnet", "gpt")}
    dtype = jnp.dtype(jnp.bfloat16 if table == "c" else jnp.float32)
    cases = {}
    if table in "ac":
        cases |= {f"{d} × {n} columns": of_vectors((d, n), 0, dtype) for d, n in columns}
    if table in "bc":
        cases |= {f"{n} × {d} rows": of_vectors((n, d), 1, dtype) for n, d in rows}
    return cases


def cycles(text: str) -> int:
    return count(text, lambda line: sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line))))


def launches(text: str) -> int:
    return count(text, lambda line: bool(re.search(r"= .* (fusion|custom-call|sort)\(", line)))


def figures(function: Callable, shapes: dict | jax.ShapeDtypeStruct, device: jax.Device) -> dict:
    """The counts of a function that is compiled for a device, or an error where that does not compile."""
    sharding = SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
    try:
        program = jax.jit(function).lower(shapes).compile()
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error).split("\n")[0]}
    text = program.as_text()
    mebibytes = program.memory_analysis().temp_size_in_bytes / 2**20
    return {"cycles": cycles(text), "launches": launches(text), "MiB": mebibytes}


def compute(platform: str, table: str, smoke: bool = False) -> dict[str, dict[str, dict]]:
    """The figures of a table on a platform, by case and side."""
    device = device_of(platform)
    found: dict[str, dict[str, dict]] = {}
    todo = [
        (case, side, function, shapes)
        for case, (sides, shapes) in cases_of(table, smoke).items()
        for side, function in sides.items()
    ]
    for case, side, function, shapes in track(todo, f"{DEVICES[platform]}, table {table}", transient=True):
        found.setdefault(case, {})[side] = figures(function, shapes, device)
    return found


def devices_of(platform: str) -> np.ndarray:
    """16 TPUs or 8 H100s, as a mesh of two axes."""
    if platform == "tpu":
        return np.array(topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices).reshape(4, 4)
    found = topologies.get_topology_desc(platform="cuda", topology_name="", target_config=H100, topology="1x1x8")
    return np.array(found.devices).reshape(4, 2)


def overlapping(text: str) -> str:
    """How many of the permutes are split in a start and a done, with a matrix product between the two."""
    lines = text.split("\n")
    product = re.compile(r"= .* fusion\(.*(kind=kOutput|gemm)|custom-call.*gemm")
    apart = 0
    starts = [
        (i, m[1])
        for i, line in enumerate(lines)
        if (m := re.match(r"\s*%?(\S+) = .* collective-permute-start\(", line))
    ]
    for i, name in starts:
        done = next((j for j in range(i, len(lines)) if f"collective-permute-done(%{name})" in lines[j]), i)
        apart += any(product.search(line) for line in lines[i:done])
    return f"{apart} of {len(starts)}"


def divided(platform: str, smoke: bool) -> Table:
    """What one device of a mesh does, for a kernel that is divided by its rows, its columns or both."""
    _, unit, scale = COUNTED[platform]
    devices, (n, d) = devices_of(platform), (2048, 128) if smoke else ROWS[0]
    table = Table(title=f"{devices.size} × {DEVICES[platform]}, compiled, not timed: {n} × {d}, for each device")
    for column in (
        "mesh",
        "divided",
        unit,
        "MiB",
        "collectives",
        "kernels moved",
        "gathered",
        "permutes around products",
    ):
        table.add_column(column, justify="left" if column in ("mesh", "divided") else "right")
    layouts = {"rows": P(("x", "y")), "columns": P(None, ("x", "y")), "both": P("x", "y")}
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = Mesh(devices, ("x", "y"), axis_types=(kind, kind))
        for name, spec in layouts.items():
            kernel = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=NamedSharding(mesh, spec))
            program = jax.jit(jax.value_and_grad(jaxreg.penalties.orthogonal)).lower(kernel).compile()
            text = program.as_text()
            found = collectives(text)
            table.add_row(
                kind.name,
                name,
                f"{(cycles if platform == 'tpu' else launches)(text) / scale:,.0f}",
                f"{program.memory_analysis().temp_size_in_bytes / 2**20:.0f}",
                ", ".join(f"{number} {key}" for key, (number, size) in found.items() if size > 64),
                f"{sum(size for _, size in found.values()) / (4 * n * d):.2f}",
                f"{largest_gather(text) / (4 * n * d):.2f}",
                overlapping(text),
            )
    return table


def tabulate(platform: str, title: str, found: dict[str, dict[str, dict]]) -> Table:
    counted, unit, scale = COUNTED[platform]
    sides = list(next(iter(found.values())))
    table = Table(title=f"{DEVICES[platform]}, compiled, not timed: {title}")
    table.add_column("", no_wrap=True)
    for column in (*(f"{side}\n{unit}" for side in sides), *(f"{side}\nMiB" for side in sides)):
        table.add_column(column, justify="right")
    if platform == "tpu":
        table.add_column("jaxreg : plain\ncycles", justify="right")

    def cell(figures: dict, key: str, scale: float = 1.0) -> str:
        if "error" in figures:
            return "-"
        return f"{figures[key] / scale:,.1f}" if key == "MiB" or scale > 1.0 else f"{figures[key]:,}"

    ratios = []
    for case, of_sides in found.items():
        counts = (cell(of_sides[side], counted, scale) for side in sides)
        row = [case, *counts, *(cell(of_sides[side], "MiB") for side in sides)]
        if platform == "tpu" and not any("error" in of_sides[side] for side in ("jaxreg", "plain")):
            ratios.append(of_sides["jaxreg"]["cycles"] / of_sides["plain"]["cycles"])
            row.append(f"{ratios[-1]:.3f}")
        table.add_row(*row)
    if len(ratios) > 1:
        table.add_section()
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        table.add_row("geometric mean", *("" for _ in 2 * sides), f"{mean:.3f}")
    errors = [
        f"{case}, {side}: {figures['error']}"
        for case, of_sides in found.items()
        for side, figures in of_sides.items()
        if "error" in figures
    ]
    table.caption = "\n".join(f"Does not compile: {error}" for error in errors) or None
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", choices=list(REQUIREMENTS), help="by default all that are installed")
    parser.add_argument("--tables", default=",".join(TITLES), help="some of a,b,c,d,e,f")
    parser.add_argument("--smoke", action="store_true", help="small shapes and tiny networks")
    args = parser.parse_args()
    tables = args.tables.split(",")
    if unknown := set(tables) - set(TITLES):
        parser.error(f"--tables takes some of {', '.join(TITLES)}, not {', '.join(sorted(unknown))}")
    asked = [args.platform] if args.platform else list(REQUIREMENTS)
    for platform in sorted(set(asked) - set(installed())):
        print(f"Nothing is compiled for {DEVICES[platform]}: that needs `pip install '{REQUIREMENTS[platform][1]}'`.")
    console = Console(width=150)
    for platform in asked:
        if platform in installed():
            what = "cycles that its compiler estimates" if platform == "tpu" else "kernels that are launched"
            print(f"{DEVICES[platform]}, jax {jax.__version__}. Value and gradient: {what}, temporaries; no times.")
            for table in tables:
                if table == "f":
                    console.print(divided(platform, args.smoke))
                    continue
                console.print(tabulate(platform, TITLES[table], compute(platform, table, args.smoke)))


if __name__ == "__main__":
    main()
