"""A Flax transformer on 8 devices, FSDP × tensor parallel, with penalties on its sharded weights.

A small language model reads the bytes of a module of Python's library. Its kernels are split over both axes of an
Explicit mesh. The rules name no mesh, and are those that one device would have:

- `jaxreg.OrthogonalRegularizer` on every kernel, and on a sample of the embedding, by `jaxreg.add_penalty_gradients`;
- `jaxreg.GroupLasso` on the hidden units of the MLPs, by `jaxreg.proximal`, which makes units exactly zero.

Training saves a checkpoint on its way. From there it goes on with 4 devices and with 1, and the script fails if losses,
penalties or dead units are not those of the 8. A table says what each device holds, and what moves in a step.

    python examples/sharded.py                  # about two minutes on two cores, which simulate the devices
    python examples/sharded.py --smoke          # the same path, with less of everything
    python examples/sharded.py --processes 2    # begins in two processes, with 4 devices each

With `--processes 2` the script starts itself twice. The two talk over loopback, train on one mesh of 8 and save. The
script fails if one process finds other numbers, from the start or from the checkpoint of the two.

On a real cluster the model, the rules, the optimizer and the steps stay as they are. This changes:

- `XLA_FLAGS` and `JAX_PLATFORMS` are left alone. The mesh is over all devices that are there: "tensor" within a host,
  where links are fast, and "fsdp" across hosts.
- The cluster starts a process on each host, which calls `jax.distributed.initialize()`, without arguments on Slurm,
  Kubernetes and Cloud TPUs. There is no gloo, which is for CPUs: GPUs talk by NCCL and TPUs by links of their own.
- `--directory` is on storage that all hosts share, because each process writes and reads its own shards.
- Each host loads its part of a batch only, for `jax.make_array_from_process_local_data`.
"""

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# XLA reads its flags when JAX first asks for devices. Those of the user come later, and win.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from benchmarks.programs import COLLECTIVES, collectives
from jax.sharding import AxisType, Mesh, NamedSharding, reshard
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import jaxreg

orthogonal = jaxreg.OrthogonalRegularizer
ORTHOGONAL = jaxreg.Rules(
    (r"(query|key|value)/kernel$", orthogonal(0.3, mode="columns", out_axis=(1, 2))),  # (embed, heads, head_dim)
    (r"up/kernel$", orthogonal(0.3, mode="rows")),  # it has four times as many columns, too many to be orthogonal
    (r"kernel$", orthogonal(0.3, mode="columns")),
    (r"embedding$", orthogonal(0.3, sample=64)),
)
# A hidden unit has its incoming weights in a column of `up`, and its outgoing ones in a row of `down`.
LASSO = jaxreg.Rules(
    (r"up/kernel$", jaxreg.GroupLasso(1e-3)),
    (r"down/kernel$", jaxreg.GroupLasso(1e-3, group_axis=0)),
)
METRICS = ("loss", "orthogonal", "lasso", "dead")
TOLERANCE = 1e-3  # other devices add up in another order


class Sizes(NamedTuple):
    layers: int = 3
    width: int = 128
    heads: int = 4
    context: int = 128
    batch: int = 32
    steps: int = 100  # until the checkpoint
    more: int = 5  # after it


SMOKE = Sizes(layers=2, width=64, context=32, batch=16, steps=15, more=4)


class Run(NamedTuple):
    first: int  # step
    history: list[list[float]]  # METRICS of each step from there
    held: list[list[int]]  # for each device, bytes of the parameters and of the optimizer's state
    moved: dict[str, tuple[int, int]]  # for each kind of collective, how many are in a step, and bytes received by them


class Projection(nn.Module):
    """An einsum with a kernel that is whole along "fsdp" only while it is used."""

    equation: str
    shape: tuple[int, ...]
    spec: P
    out: P

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.normal(0.05), self.shape, jnp.float32, self.spec)
        kernel = reshard(kernel, P(*(axis if axis == "tensor" else None for axis in self.spec)))
        # Where the einsum sums over an axis that is split along "tensor", `out` has the devices add up their parts.
        return jnp.einsum(self.equation, x, kernel, out_sharding=self.out)


class Block(nn.Module):
    sizes: Sizes

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, heads = self.sizes.width, self.sizes.heads
        hidden, head_dim = 4 * width, width // heads
        whole, split = P("fsdp", None, None), P("fsdp", None, "tensor")

        normed = nn.RMSNorm(name="attention_norm")(x)
        query, key, value = (
            Projection("bte,ehd->bthd", (width, heads, head_dim), P("fsdp", "tensor", None), split, name=name)(normed)
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x += Projection("bthd,hde->bte", (heads, head_dim, width), P("tensor", None, "fsdp"), whole, name="out")(mixed)

        normed = nn.RMSNorm(name="mlp_norm")(x)
        units = nn.relu(Projection("bte,eu->btu", (width, hidden), P("fsdp", "tensor"), split, name="up")(normed))
        return x + Projection("btu,ue->bte", (hidden, width), P("tensor", "fsdp"), whole, name="down")(units)


class Transformer(nn.Module):
    sizes: Sizes

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        init, width = nn.initializers.normal(0.05), self.sizes.width
        embedding = self.param("embedding", init, (256, width), jnp.float32, P("tensor", "fsdp"))
        positions = self.param("positions", init, (self.sizes.context, width), jnp.float32, P(None, "fsdp"))
        embedding, positions = reshard((embedding, positions), P(None, None))
        x = embedding.at[tokens].get(out_sharding=P("fsdp", None, None)) + positions
        for i in range(self.sizes.layers):
            # The backward pass gathers the kernels anew. Without `remat` it would need all of them whole at once.
            x = nn.remat(Block)(self.sizes, name=f"block_{i}")(x)
        x = nn.RMSNorm(name="norm")(x)
        logits = jnp.einsum("bte,ve->btv", x, reshard(embedding, P("tensor", None)))
        return reshard(logits, P("fsdp", None, None))


def make_functions(sizes: Sizes) -> tuple[Callable[[], tuple], Callable[[tuple, jax.Array], tuple]]:
    """The initial state and a step, on whatever mesh is set."""
    model, rate = Transformer(sizes), 3e-3
    chain = optax.chain(jaxreg.add_penalty_gradients(ORTHOGONAL, key=jax.random.key(1)), optax.adam(rate))
    tx = jaxreg.proximal(chain, LASSO, rate)

    def init() -> tuple:
        tokens = jnp.zeros((sizes.batch, sizes.context), jnp.int32, out_sharding=P("fsdp"))
        params = model.init(jax.random.key(0), tokens)["params"]
        return params, tx.init(params)

    def step(state: tuple, tokens: jax.Array) -> tuple[tuple, dict[str, jax.Array]]:
        def loss_fn(params: Any) -> jax.Array:
            logits = model.apply({"params": params}, tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        params, opt_state = state
        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        units = jaxreg.diagnostics.dead_units(params)
        dead = sum(jnp.sum(units[f"block_{i}"]["up"]["kernel"]) for i in range(sizes.layers))
        penalties = {"orthogonal": opt_state.inner_state[0].penalty, "lasso": opt_state.penalty}
        return (params, opt_state), {"loss": loss, **penalties, "dead": dead}

    return init, step


def load_batch(text: np.ndarray, sizes: Sizes, step: int, mesh: Mesh) -> jax.Array:
    starts = np.random.default_rng(step).integers(len(text) - sizes.context, size=(sizes.batch, 1))
    tokens = text[starts + np.arange(sizes.context + 1)].astype(np.int32)
    return jax.make_array_from_callback(tokens.shape, NamedSharding(mesh, P("fsdp")), tokens.__getitem__)


def train(name: str, shape: tuple[int, int], sizes: Sizes, checkpoint: Path, first: int, last: int) -> Run:
    """Trains from step 0 and saves at `sizes.steps`, or resumes there."""
    axes, types = ("fsdp", "tensor"), (AxisType.Explicit, AxisType.Explicit)
    mesh = jax.make_mesh(shape, axes, types, devices=jax.devices()[: math.prod(shape)])
    text = np.frombuffer(Path(argparse.__file__).read_bytes(), np.uint8)

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, leaf.sharding.spec if leaf.sharding else P())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    with jax.set_mesh(mesh), ocp.StandardCheckpointer() as checkpointer:
        init, step = make_functions(sizes)
        if first:
            # Each device reads the shards that it has on this mesh, whatever mesh they were saved from.
            state = checkpointer.restore(checkpoint, jax.tree.map(placed, jax.eval_shape(init)))
        else:
            state = jax.jit(init)()
        compiled = jax.jit(step, donate_argnums=0).lower(state, load_batch(text, sizes, first, mesh)).compile()
        history = []
        with tqdm(range(first, last), f"{name:>18}", unit="step", disable=jax.process_index() > 0) as progress:
            for i in progress:
                if i == sizes.steps and not first:
                    checkpointer.save(checkpoint, state, force=True)
                    checkpointer.wait_until_finished()  # because the next step takes the buffers of this state
                state, metrics = compiled(state, load_batch(text, sizes, i, mesh))
                history.append([float(metrics[name]) for name in METRICS])
                loss, cosines, lasso, dead = history[-1]
                progress.set_postfix_str(f"loss {loss:.3f}, penalty {cosines + lasso:.4f}, {dead:.0f} dead units")
    return Run(first, history, held(state), collectives(compiled.as_text()))


def held(state: tuple) -> list[list[int]]:
    found: dict[jax.Device, list[int]] = {}
    for column, tree in enumerate(state):
        for leaf in jax.tree.leaves(tree):
            for shard in leaf.addressable_shards:
                found.setdefault(shard.device, [0, 0])[column] += shard.data.nbytes
    return list(found.values())


def start_processes(count: int, directory: Path) -> Run:
    """Runs this script as `count` processes that see each other's devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={8 // count}"
    command = [sys.executable, *(f"-W{option}" for option in sys.warnoptions), *sys.argv]
    command += ["--directory", str(directory), "--port", str(port), "--process"]
    environment, silent = {**os.environ, "XLA_FLAGS": flags}, subprocess.DEVNULL  # gloo prints what it connects
    started = [subprocess.Popen([*command, str(i)], env=environment, stdout=silent) for i in range(count)]
    try:
        if any(process.wait() for process in started):
            raise SystemExit("A process has failed.")
    finally:
        for process in started:
            process.kill()
    parts = [Run(*json.loads((directory / f"process_{i}.json").read_text())) for i in range(count)]
    return parts[0]._replace(held=[sizes for part in parts for sizes in part.held])


def report(runs: dict[str, Run]) -> float:
    """Prints two tables, and returns the largest relative difference between a run and the first one."""
    devices = Table(title="What each device holds, and receives by the collectives of one step: MiB, and how many")
    numbers = Table(title="The last step of each run, and its largest difference from the first run in any step")
    kinds = [kind for kind in COLLECTIVES if any(kind in run.moved for run in runs.values())]
    columns = ("devices", "parameters", "optimizer", *kinds), ("steps", *METRICS, "relative difference")
    for table, names in zip((devices, numbers), columns, strict=True):
        table.add_column("mesh")
        for name in names:
            table.add_column(name, justify="right", overflow="fold")
    first, *_ = runs.values()
    differences = []
    for name, run in runs.items():
        counts = [run.moved.get(kind, (0, 0)) for kind in kinds]
        received = [f"{size / 2**20:.2f} in {count}" if count else "-" for count, size in counts]
        for sizes, count in Counter(map(tuple, run.held)).items():
            devices.add_row(name, str(count), *(f"{size / 2**20:.2f}" for size in sizes), *received)
        own, other = np.array(run.history), np.array(first.history)[run.first :][: len(run.history)]
        differences.append(np.max(np.abs(own - other) / np.maximum(np.abs(other), 1e-9)))
        steps = f"{run.first} to {run.first + len(own) - 1}"
        numbers.add_row(name, steps, *(f"{value:.6g}" for value in own[-1]), f"{differences[-1]:.1e}")
    console = Console(width=120)
    console.print(devices, numbers)
    return float(np.max(differences))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="for the checkpoint; a temporary one by default")
    parser.add_argument("--processes", type=int, choices=(1, 2, 4), default=1)
    parser.add_argument("--smoke", action="store_true", help="two narrow layers and a few steps")
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = SMOKE if args.smoke else Sizes()
    last, several = sizes.steps + sizes.more, f"4 × 2, {args.processes} processes"

    if args.process is not None:  # one of those that `start_processes` starts
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{args.port}", args.processes, args.process, shutdown_timeout_seconds=60)
        run = train(several, (4, 2), sizes, args.directory / "checkpoint", 0, last)
        (args.directory / f"process_{args.process}.json").write_text(json.dumps(run))
        jax.distributed.shutdown()
        return

    runs: dict[str, Run] = {}
    plan = [("4 × 2", (4, 2), 0, last)]
    if args.processes > 1:
        plan = [("4 × 2, from step 0", (4, 2), 0, sizes.more), ("4 × 2, resumed", (4, 2), sizes.steps, last)]
    plan += [(f"{shape[0]} × {shape[1]}, resumed", shape, sizes.steps, last) for shape in ((2, 2), (1, 1))]
    with tempfile.TemporaryDirectory() as temporary:
        directory = (args.directory or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        if args.processes > 1:
            runs[several] = start_processes(args.processes, directory)
        for name, shape, start, end in plan:
            runs[name] = train(name, shape, sizes, directory / "checkpoint", start, end)

    difference = report(runs)
    if not difference <= TOLERANCE:
        raise SystemExit(f"The runs differ by {difference:.1e}, more than {TOLERANCE:g}.")


if __name__ == "__main__":
    main()
