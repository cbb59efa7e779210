"""Plans: how the pass over a Gram matrix is cut into blocks on each platform, and how precise its products are."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxreg._checks import describe

Precision = lax.PrecisionLike
T = TypeVar("T")
Scaling = Literal["largest", "steps", "sums"]
Round = tuple[np.ndarray, np.ndarray, int, bool]

# Up to so many blocks, the meetings are written out. More are in a loop, which compiles sooner and takes less memory.
UNROLLED = 3


class Sizes(NamedTuple):
    """The sizes at which each way of taking the pairs of vectors begins on a platform.

    Attributes:
      dense: up to so many vectors, one block holds all of them.
      dense_if_long: the same for vectors that have at least as many components as there are vectors.
      thirds: up to so many shorter vectors, there are three blocks.
      blocks: above, the sizes of a block that are tried. The first that divides the number of vectors is taken, or the
        last, since a ragged block costs a copy of all vectors.
      wide: whether a panel is as wide as half of the vectors, and not one block.
      scaling: as in `Plan`.
      exact: the products from which signs are taken under `precision="cosines"`.
    """

    dense: int
    dense_if_long: int
    thirds: int
    blocks: tuple[int, ...]
    wide: bool
    scaling: Scaling
    exact: Any


# The sizes for CPUs were chosen by timing them beside each other on 2 cores of an AMD EPYC;
# examples/benchmarks/networks.py times the result. The others are not measured: they follow from what the compilers for
# a TPU v5e and an H100 estimate and launch, as printed by examples/benchmarks/accelerators.py.
TABLE = {
    "cpu": Sizes(512, 1024, 2304, (768, 704, 640, 576, 512), False, "largest", lax.Precision.HIGHEST),
    "cuda": Sizes(4096, 4096, 0, (2048,), True, "steps", lax.DotAlgorithmPreset.BF16_BF16_F32_X6),
    "tpu": Sizes(4096, 4096, 0, (2048,), True, "sums", lax.Precision.HIGHEST),
}
# Passes over fewer weights than this are not worth being kept apart from others.
ALONE = 2**15
# A wide panel takes no more numbers than this, 256 MiB in float32.
LARGEST_PANEL = 2**26


class Plan(NamedTuple):
    """The choices of one pass.

    Attributes:
      size: the largest number of vectors in a block.
      wide: whether a panel is as wide as half of the vectors, and not one block.
      cosines, sums: the precision of the products that make the cosines, and of those that add up vectors.
      raw: whether bfloat16 vectors are multiplied as they are, since their products are exact then, and fast.
      scaling: how the vectors of one dense block are brought near 1: by the "largest" magnitude, by "steps" to the
        least scale of a number, or by the "sums" of squares at three scales. The result is the same.
      written_out: whether transposes are written out and updates kept apart, as XLA on CPUs needs it.
      alone: whether the pass is kept from running between those of other kernels, as XLA on CPUs would have it.
    """

    size: int
    wide: bool = False
    cosines: Any = None
    sums: Any = None
    raw: bool = False
    scaling: Scaling = "largest"
    written_out: bool = False
    alone: bool = False

    @property
    def exact_slopes(self) -> bool:
        """Returns whether signs must go into the products as they are, which round their factors."""
        return self.raw or self.cosines != self.sums

    def part(self, n: int) -> int:
        """Returns the number of vectors that meet all n visitors from another device at once.

        It divides n, if that does not make it much smaller, since a ragged block costs a copy of all vectors.
        """
        most = max(1, min(self.size, n, LARGEST_PANEL // n))
        return next((size for size in range(most, most // 2, -1) if n % size == 0), most)

    def rounds(self, n: int) -> tuple[int, int, list[Round]]:
        """Returns the number of blocks of n vectors, their size, and the rounds in which every two of them meet once.

        A round has the indices of blocks, those of the first block of the panel that each meets, the number of blocks
        that a panel is wide, and whether the panel begins with the block itself.
        """
        count = -(-n // self.size)
        wide = self.wide and count > UNROLLED
        if wide:
            count += 1 - count % 2  # each block meets as many of the others then
        aligned = 16 if self.written_out and self.size % 16 == 0 else 1  # products on CPUs run in full vectors then
        size = -(-n // (count * aligned)) * aligned
        every = np.arange(count)
        if wide:
            return count, size, [(every, every, (count + 1) // 2, True)]
        return count, size, [(every, every, 1, True), (*np.triu_indices(count, 1), 1, False)]


def plan_for(platform: str, n: int, d: int, dtype: Any, precision: Precision = None) -> Plan:
    """Returns the plan for n vectors of d components. Platforms that the table lacks are taken for GPUs."""
    sizes = TABLE.get(platform, TABLE["cuda"])
    first, second = (precision, precision) if precision != "cosines" else (sizes.exact, lax.Precision.DEFAULT)
    if precision == "cosines" and dtype == np.float64:
        first, second = lax.Precision.HIGHEST, lax.Precision.HIGHEST
    default = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # JAX adds it by name
    follows_jax = precision is None and default is None
    on_cpu = platform == "cpu"
    raw = dtype == jnp.bfloat16 and not on_cpu and (follows_jax or precision in ("cosines", "default"))
    if raw:
        first = None
    alone = on_cpu and n * d >= ALONE
    if n <= sizes.dense or n <= min(d, sizes.dense_if_long):
        return Plan(n, False, first, second, raw, sizes.scaling, alone=alone)
    if n <= sizes.thirds and n > d:
        return Plan(-(-n // 48) * 16, False, first, second, raw, sizes.scaling, on_cpu, alone)
    size = next((size for size in sizes.blocks if n % size == 0), sizes.blocks[-1])
    if sizes.wide:
        size = max(128, min(size, LARGEST_PANEL // (n // 2) // 128 * 128))
    return Plan(size, sizes.wide, first, second, raw, sizes.scaling, on_cpu)


def by_platform(
    function: Callable[[Plan, jax.Array], T], x: jax.Array, axis: int, precision: Precision, plan: Plan | None
) -> T:
    """Returns `function(plan, x)` with the plan of the platform that the program is compiled for, or with one given."""
    if plan is not None:
        return function(plan, x)
    n, d = x.shape[axis], x.shape[1 - axis]
    plans = {platform: plan_for(platform, n, d, x.dtype, precision) for platform in TABLE}
    made = {plan: functools.partial(function, plan) for plan in plans.values()}
    if len(made) == 1:
        return made[plans["cpu"]](x)
    other = plans.pop("cuda")
    return lax.platform_dependent(x, **{name: made[p] for name, p in plans.items()}, default=made[other])


def of_one_kind(precision: Precision) -> Precision:
    """Returns a precision for products that are all of one kind, where "cosines" is "highest"."""
    return lax.Precision.HIGHEST if precision == "cosines" else precision


def check_precision(precision: Any) -> None:
    """Checks a precision by giving it to a product, since JAX has many ways to say it."""
    if precision is None or (isinstance(precision, str) and precision == "cosines"):
        return
    one = jnp.zeros((1, 1), jnp.float32)
    try:
        jax.eval_shape(functools.partial(lax.dot, precision=precision), one, one)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`precision` must be a precision as in `jnp.matmul`, 'cosines' or None, got {describe(precision)}"
        ) from error
