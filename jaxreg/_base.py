"""What every regularizer is: frozen data, a pytree, something that adds and scales and has a config."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg import prox
from jaxreg._configured import BUILT_IN, Configured, is_penalty, to_dict
from jaxreg._numerics import brief, checked_scalar, checked_strength, describe, scaled, times_strength, total
from jaxreg._pytree import identity, is_number, make_dataclass, register

_OF_PROX = ("__call__", "prox", "has_prox", "has_metric_prox", "_elastic_net", "_takes_steps")
GRADIENTS_INSTEAD = "add its gradients by `jaxreg.add_penalty_gradients`"


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
class Regularizer(Configured):
    """A penalty with its strength: a callable from an array to a scalar, and a pytree.

    To write one, annotate its numbers as fields and define `__call__`. No decorator is needed.

    >>> class Cube(jaxreg.Regularizer):
    ...     factor: float = 0.01
    ...
    ...     def __call__(self, x):
    ...         return self.factor * jnp.sum(jnp.abs(x) ** 3)
    >>> float(Cube(0.5)(jnp.array([2.0])))
    4.0
    >>> jax.tree.leaves(Cube(0.5))
    [0.5]

    A class with an `__init__` of its own that sets attributes, as Keras documents it, works as
    written too. In both forms numbers, arrays and regularizers are the leaves of the pytree, so
    that they can be traced, mapped over and differentiated; strings, bools, functions, tuples of ints
    and fields marked `dataclasses.field(metadata={"static": True})` are static. An int that must
    stay a Python int, such as an axis, is to be marked.

    Regularizers add and scale: `a + b`, `sum([a, b])`, `2.0 * a`, `a + function`.

    A regularizer may also define `prox(self, x, step)`, which `jaxreg.proximal` and `Rules.prox` call, and set
    `has_metric_prox = True` if it takes a step for each weight. A subclass with its own `__call__` inherits neither.
    """

    # Whether `prox` takes an array for its step, a step for each weight.
    _takes_steps: ClassVar[bool] = False

    # NumPy's scalars and arrays leave `scale * regularizer` to `__rmul__`.
    __array_ufunc__: ClassVar[None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("__slots__"):
            raise TypeError(f"{cls.__name__} must not have `__slots__`: its strengths would not be found")
        # What was inherited of a prox belongs to another penalty where `__call__` or `prox` is nearer than it.
        nearest = {name: next(i for i, c in enumerate(cls.__mro__) if name in vars(c)) for name in _OF_PROX}
        limits = {"prox": nearest["__call__"], "has_prox": nearest["__call__"]}
        for name in _OF_PROX[1:]:
            if nearest[name] > limits.get(name, min(nearest["__call__"], nearest["prox"])):
                setattr(cls, name, vars(Regularizer)[name])
        if "__init__" in cls.__dict__:
            cls._is_frozen = False
        elif cls.__init__ is object.__init__ or cls._is_frozen:
            make_dataclass(cls)
            cls._is_frozen = True
        register(cls)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and identity(self) == identity(other)

    def __hash__(self) -> int:
        return hash(identity(self))

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_frozen:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_frozen:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        object.__delattr__(self, name)

    @property
    def needs_key(self) -> bool:
        """Whether the penalty is a random estimate, so that it must be called with `key=`."""
        return False

    def __call__(self, x: jax.Array) -> jax.Array:
        """The penalty of one array, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define `__call__(self, x)`")

    @property
    def has_prox(self) -> bool:
        """Whether `prox` is defined."""
        return type(self).prox is not Regularizer.prox

    @property
    def has_metric_prox(self) -> bool:
        """Whether `prox` takes an array of the shape of `x` for its step too, as `metric="adam"` needs it."""
        return self.has_prox and self._takes_steps

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        """argmin_y ½‖y − x‖² + step · self(y), an array of the shape and dtype of `x`.

        Raises:
          NotImplementedError: there is no closed form.
        """
        raise NotImplementedError(f"{self!r} has no prox in closed form; {GRADIENTS_INSTEAD}")

    def _elastic_net(self) -> tuple[Any, Any] | None:
        """The strengths of Σ|x| and Σx², where the penalty is made of these alone."""
        return None

    def __add__(self, other: Any) -> "Regularizer":
        return _added(self, other)

    def __radd__(self, other: Any) -> "Regularizer":
        return _added(other, self)

    def __mul__(self, scale: Any) -> "Regularizer":
        if not is_number(scale) and not isinstance(scale, bool | np.bool_):
            return NotImplemented
        return Scaled(scale, self)

    __rmul__ = __mul__


def penalty(regularizer: Regularizer, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """What `regularizer` makes of `x`, checked. One whose `needs_key` is true takes `key`, which no type says."""
    value = regularizer(x, key=key) if regularizer.needs_key else regularizer(x)  # type: ignore[call-arg]
    return checked_scalar(value, of=regularizer)


class Sum(Regularizer):
    """The sum of several regularizers, what `a + b` makes."""

    terms: tuple[Regularizer, ...]

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms))

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(as_regularizer(term) for term in self.terms))

    @property
    def needs_key(self) -> bool:
        return any(term.needs_key for term in self.terms)

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return total([penalty(term, x, key) for term in self.terms])

    @property
    def has_prox(self) -> bool:
        return (len(self.terms) == 1 and self.terms[0].has_prox) or self._elastic_net() is not None

    @property
    def has_metric_prox(self) -> bool:
        return (len(self.terms) == 1 and self.terms[0].has_metric_prox) or self._elastic_net() is not None

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        if len(self.terms) == 1:
            return self.terms[0].prox(x, step)
        strengths = self._elastic_net()
        if strengths is None:
            raise NotImplementedError(
                f"{self!r} has no prox in closed form, as a sum of others than L1, L2 and L1L2; {GRADIENTS_INSTEAD}"
            )
        return prox.l1_l2(x, step, l1=strengths[0], l2=strengths[1])

    def _elastic_net(self) -> tuple[Any, Any] | None:
        found = [term._elastic_net() for term in self.terms]
        parts = [strengths for strengths in found if strengths is not None]
        if len(parts) < len(found):
            return None
        return total(jnp.asarray(l1) for l1, _ in parts), total(jnp.asarray(l2) for _, l2 in parts)


class Scaled(Regularizer):
    """A regularizer times a number >= 0, what `2.0 * a` makes."""

    scale: Any
    regularizer: Regularizer

    def __repr__(self) -> str:
        inner = f"({self.regularizer!r})" if isinstance(self.regularizer, Sum) else repr(self.regularizer)
        return f"{brief(self.scale)} * {inner}"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", checked_strength(self.scale, name="scale"))
        object.__setattr__(self, "regularizer", as_regularizer(self.regularizer))

    @property
    def needs_key(self) -> bool:
        return self.regularizer.needs_key

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return scaled(self.scale, penalty(self.regularizer, x, key), name="scale")

    @property
    def has_prox(self) -> bool:
        return self.regularizer.has_prox

    @property
    def has_metric_prox(self) -> bool:
        return self.regularizer.has_metric_prox

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        return self.regularizer.prox(x, times_strength(step, self.scale, name="scale"))

    def _elastic_net(self) -> tuple[Any, Any] | None:
        inner = self.regularizer._elastic_net()
        if inner is None:
            return None
        return times_strength(inner[0], self.scale, name="scale"), times_strength(inner[1], self.scale, name="scale")


class Function(Regularizer):
    """A plain function from an array to a scalar, as a regularizer without a strength of its own."""

    function: Callable[[jax.Array], jax.Array]

    def __repr__(self) -> str:
        return brief(self.function)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)

    def _to_dict(self) -> dict[str, Any]:
        return to_dict(self.function)


BUILT_IN |= {cls.__name__: cls for cls in (Sum, Scaled, Function)}


def as_regularizer(obj: Any) -> Regularizer:
    if isinstance(obj, Regularizer):
        return obj
    if not is_penalty(obj):
        raise TypeError(f"expected a regularizer or a function from an array to a scalar, got {describe(obj)}")
    return Function(obj)


def _added(left: Any, right: Any) -> Regularizer:
    """`left + right`, one of them a regularizer; 0 is nothing, since Python's `sum` starts there."""
    parts: list[Regularizer] = []
    for part in (left, right):
        if isinstance(part, int | float) and not isinstance(part, bool) and part == 0:
            continue
        if not is_penalty(part):
            return NotImplemented
        parts += part.terms if isinstance(part, Sum) else (as_regularizer(part),)
    return parts[0] if len(parts) == 1 else Sum(tuple(parts))
