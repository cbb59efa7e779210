"""Regularizers of extreme singular values, which may keep a block of vectors for each matrix from step to step."""

from typing import Any, ClassVar

import jax
from jax import lax

from jaxreg._checks import describe
from jaxreg._evaluate import is_nothing
from jaxreg._fields import axes, static, strength
from jaxreg._matrix import Axes, longer_side, sizes_of_matrices
from jaxreg._numerics import as_wide
from jaxreg._regularizers._shipped import Shipped
from jaxreg._ritz import VECTORS, FirstBlock, FromBlock, NextBlock
from jaxreg._spread import ByJob, penalty_of_matrices


class _OfBlocks(Shipped):
    """The memory, a block of vectors for each matrix, and the penalty by that memory."""

    factor: Any = strength(0.01)
    kept: bool = static(False)
    out_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())

    _from_identity: ClassVar[bool]

    @property
    def has_memory(self) -> bool:
        return self.kept

    @property
    def renews_memory(self) -> bool:
        return self.kept

    def _options(self) -> dict[str, Any]:
        return {name: value for name, value in super()._options().items() if name != "kept"}

    def _first_steps(self) -> int:
        """Returns how often the block that `init` makes is multiplied."""
        return 20

    def init(self, x: jax.Array) -> Any:
        if not self.kept:
            return super().init(x)
        return self._of_matrices(FirstBlock(self._from_identity, self._first_steps()), lax.stop_gradient(as_wide(x)))

    def updated(self, x: jax.Array, memory: Any) -> Any:
        if not self.kept:
            return super().updated(x, memory)
        x = lax.stop_gradient(as_wide(x))
        return self._of_matrices(NextBlock(self._from_identity), x, self._block(x, memory))

    def __call__(self, x: jax.Array, *, memory: Any = None) -> jax.Array:
        if self.kept:
            x = as_wide(x)
            return self._scaled(self._of_matrices(ByJob(FromBlock(self._from_identity)), x, self._block(x, memory)))
        if not is_nothing(memory):
            raise ValueError(f"`memory` must be None without `kept=True`, got {describe(memory)}")
        return super().__call__(x)

    def _of_matrices(self, function: Any, x: jax.Array, *block: jax.Array) -> jax.Array:
        return penalty_of_matrices(function, x, longer_side(x, self.out_axis, self.batch_axis), *block)

    def _block(self, x: jax.Array, memory: Any) -> jax.Array:
        """Returns a memory, which must be a block of vectors for this parameter."""
        count, rows, columns = sizes_of_matrices(x, self.out_axis, self.batch_axis)
        shape = count, min(rows, columns), min(rows, columns, VECTORS)
        if getattr(memory, "shape", None) != shape:
            raise ValueError(
                f"`memory` must be the block of vectors from `init`, of shape {shape} for {describe(x)}, got "
                f"{describe(memory)}"
            )
        return as_wide(memory)

    @property
    def has_prox(self) -> bool:
        return super().has_prox and not self.kept

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        return super(Shipped, self).prox(x, step) if self.kept else super().prox(x, step)
