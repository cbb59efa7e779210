"""The base class of regularizers: frozen data, a pytree, something that adds and scales and has a config."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg import prox
from jaxreg._checks import brief, checked_number, describe
from jaxreg._config import BUILT_IN, Configured, is_built_in, is_penalty, to_dict
from jaxreg._numerics import add_up, checked_penalty, scaled, times_strength
from jaxreg._pytree import identity, is_number, make_dataclass, register
from jaxreg._shards import Split, divided_as, known_split, own_part, whole

GRADIENTS_INSTEAD = "add its gradients by `jaxreg.add_penalty_gradients`"


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
class Regularizer(Configured):
    """A penalty with its strength: a callable from an array to a scalar, and a pytree.

    To write one, subclass it, annotate the numbers as fields, and define `__call__`. No decorator is needed.

    >>> class Cube(jaxreg.Regularizer):
    ...     factor: float = 0.01
    ...
    ...     def __call__(self, x):
    ...         return self.factor * jnp.sum(jnp.abs(x) ** 3)
    >>> float(Cube(0.5)(jnp.array([2.0])))
    4.0
    >>> jax.tree.leaves(Cube(0.5))
    [0.5]

    A class with an `__init__` of its own that sets attributes, as Keras documents it, works as written too.

    Floats, arrays and other regularizers are the leaves of the pytree, so they can be traced, mapped over and
    differentiated. Everything else is static: strings, bools, functions, and ints, which are choices such as an axis or
    a count. A field whose annotation mentions `float` or `Array` is always a number, and an int given for it becomes a
    float. In an `__init__` of your own, write `float(l2)` for a strength that may be given as an int. A field marked
    `dataclasses.field(metadata={"static": True})` is static, whatever it holds.

    Regularizers add and scale: `a + b`, `sum([a, b])`, `2.0 * a`, `a + function`.

    A class may also define `prox(self, x, step)`, which `jaxreg.proximal` and `Rules.prox` call, and set
    `has_metric_prox = True`. A prox belongs to the `__call__` beside it: a subclass that defines another `__call__` has
    no prox until it defines its own.

    Subclass this class only. The regularizers that jaxreg ships are not for subclassing, because their checks, their
    prox and their configs belong to just their fields. Call one of them inside your own class instead.

    Raises:
      TypeError: on the definition of a class, if it has `__slots__` or subclasses a regularizer that jaxreg ships.
    """

    has_metric_prox: ClassVar[bool] = False
    """True if `proximal(..., metric="adam")` can use `prox`.

    It can where `prox` takes an array of the shape of `x` as its step, a step for each weight, and where it remains the
    right prox when these steps become long.
    """

    # True if the class can work on a shard, given how the whole array is divided.
    _takes_shards: ClassVar[bool] = False

    # NumPy's scalars and arrays leave `scale * regularizer` to `__rmul__`.
    __array_ufunc__: ClassVar[None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if shipped := next((base for base in cls.__mro__[1:] if is_built_in(base)), None):
            raise TypeError(
                f"{cls.__name__} must not subclass {shipped.__name__}, which is not for subclassing; "
                f"subclass jaxreg.Regularizer, and call {shipped.__name__} inside"
            )
        if cls.__dict__.get("__slots__"):
            raise TypeError(f"{cls.__name__} must not have `__slots__`: its strengths would not be found")
        # A prox belongs to the penalty that is defined with it or above it, and the flag to the prox.
        for name, owner in (("prox", "__call__"), ("has_metric_prox", "prox")):
            if not issubclass(_definer(cls, name), _definer(cls, owner)):
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
        """True if the penalty is a random estimate, so that it must be called with `key=`."""
        return False

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the penalty of one array, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define `__call__(self, x)`")

    @property
    def has_prox(self) -> bool:
        """True if there is a `prox`."""
        return type(self).prox is not Regularizer.prox

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        """Returns argmin_y ½‖y − x‖² + step · self(y), an array of the shape and dtype of `x`.

        Raises:
          NotImplementedError: there is no closed form.
        """
        raise NotImplementedError(f"{self!r} has no prox in closed form; {GRADIENTS_INSTEAD}")

    def _seen(self, x: Any) -> str:
        """Returns what the penalty sees in an array, where that is matrices or groups."""
        return ""

    def _shares_exchanges(self) -> bool:
        """Returns whether devices exchange parts of a kernel for its penalty, and equal kernels can share that."""
        return False

    def _is_elastic_net(self) -> bool:
        """Returns whether the penalty is made of Σ|x| and Σx² alone. A sum of such penalties is one too."""
        return False

    def _elastic_net(self) -> tuple[Any, Any]:
        """Returns the strengths of Σ|x| and Σx² of a penalty that is made of these alone."""
        raise NotImplementedError

    def __add__(self, other: Any) -> "Regularizer":
        return _added(self, other)

    def __radd__(self, other: Any) -> "Regularizer":
        return _added(other, self)

    def __mul__(self, scale: Any) -> "Regularizer":
        if not is_number(scale) and not isinstance(scale, bool | np.bool_):
            return NotImplemented
        return Scaled(scale, self)

    __rmul__ = __mul__


def _definer(cls: type, name: str) -> type:
    """Returns the class from which `cls` has an attribute."""
    return next(base for base in cls.__mro__ if name in vars(base))


def evaluate(regularizer: Regularizer, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """Returns the penalty of `x`, checked. A regularizer whose `needs_key` is true is called with `key`.

    Where `x` is a shard, and it is known how it is a part of the whole, the penalty is that of the whole.
    """
    call: Callable[..., Any] = regularizer  # a class whose `needs_key` may be true takes `key=` too
    with _whole_unless_known(regularizer, x) as split:
        x = x if split is None else whole(x, split)
        return checked_penalty(call(x, key=key) if regularizer.needs_key else call(x), of=regularizer)


def proxed(regularizer: Regularizer, x: jax.Array, step: Any) -> jax.Array:
    """Returns `regularizer.prox(x, step)`. Of a shard, it is the shard of what the prox makes of the whole."""
    with _whole_unless_known(regularizer, x) as split:
        if split is None:
            return regularizer.prox(x, step)
        step = whole(step, split) if jnp.ndim(step) else step
        return own_part(regularizer.prox(whole(x, split), step), split)


@contextlib.contextmanager
def _whole_unless_known(regularizer: Regularizer, x: Any) -> Iterator[Split | None]:
    """Yields how `x` is divided, if the regularizer has to be given the whole, because nothing is known of it."""
    split = known_split(x)
    if split is None or not split.names or regularizer._takes_shards:
        yield None
    else:
        with divided_as(x, None):
            yield split


class Sum(Regularizer):
    """The sum of several regularizers, as `a + b` makes it."""

    terms: tuple[Regularizer, ...]

    _takes_shards = True  # each term is asked

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms))

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("`terms` must hold at least one regularizer, got ()")
        object.__setattr__(self, "terms", tuple(as_regularizer(term) for term in self.terms))

    def _shares_exchanges(self) -> bool:
        return all(term._shares_exchanges() for term in self.terms)

    @property
    def needs_key(self) -> bool:
        return any(term.needs_key for term in self.terms)

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return add_up(evaluate(term, x, key) for term in self.terms)

    @property
    def has_prox(self) -> bool:
        return self._is_elastic_net() or (len(self.terms) == 1 and self.terms[0].has_prox)

    @property
    def has_metric_prox(self) -> bool:  # type: ignore[override]  # a class sets it; here the terms decide
        return self._is_elastic_net() or (len(self.terms) == 1 and self.terms[0].has_metric_prox)

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        if len(self.terms) == 1:
            return proxed(self.terms[0], x, step)
        if not self._is_elastic_net():
            raise NotImplementedError(
                f"{self!r} has no prox in closed form, because only L1, L2 and L1L2 add up to one; {GRADIENTS_INSTEAD}"
            )
        l1, l2 = self._elastic_net()
        return prox.l1_l2(x, step, l1=l1, l2=l2)

    def _seen(self, x: Any) -> str:
        return ", ".join(dict.fromkeys(seen for term in self.terms if (seen := term._seen(x))))

    def _is_elastic_net(self) -> bool:
        return all(term._is_elastic_net() for term in self.terms)

    def _elastic_net(self) -> tuple[Any, Any]:
        l1s, l2s = zip(*(term._elastic_net() for term in self.terms), strict=True)
        return add_up(map(jnp.asarray, l1s)), add_up(map(jnp.asarray, l2s))


class Scaled(Regularizer):
    """A regularizer times a number >= 0, as `2.0 * a` makes it."""

    scale: Any
    regularizer: Regularizer

    _takes_shards = True

    def __repr__(self) -> str:
        inner = f"({self.regularizer!r})" if isinstance(self.regularizer, Sum) else repr(self.regularizer)
        return f"{brief(self.scale)} * {inner}"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", checked_number(self.scale, name="scale"))
        object.__setattr__(self, "regularizer", as_regularizer(self.regularizer))

    def _shares_exchanges(self) -> bool:
        return self.regularizer._shares_exchanges()

    @property
    def needs_key(self) -> bool:
        return self.regularizer.needs_key

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return scaled(self.scale, evaluate(self.regularizer, x, key), name="scale")

    @property
    def has_prox(self) -> bool:
        return self.regularizer.has_prox

    @property
    def has_metric_prox(self) -> bool:  # type: ignore[override]  # a class sets it; here the other decides
        return self.regularizer.has_metric_prox

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        return proxed(self.regularizer, x, times_strength(step, self.scale, name="scale"))

    def _seen(self, x: Any) -> str:
        return self.regularizer._seen(x)

    def _is_elastic_net(self) -> bool:
        return self.regularizer._is_elastic_net()

    def _elastic_net(self) -> tuple[Any, Any]:
        l1, l2 = self.regularizer._elastic_net()
        return times_strength(l1, self.scale, name="scale"), times_strength(l2, self.scale, name="scale")


class Function(Regularizer):
    """A plain function from an array to a scalar, as a regularizer without a strength of its own."""

    function: Callable[[jax.Array], jax.Array]

    def __post_init__(self) -> None:
        if not is_penalty(self.function):
            raise TypeError(f"`function` must be a function from an array to a scalar, got {describe(self.function)}")

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
    """Returns `left + right`, one of which is a regularizer. A 0 adds nothing, since Python's `sum` starts there."""
    parts: list[Regularizer] = []
    for part in (left, right):
        if isinstance(part, int | float) and not isinstance(part, bool) and part == 0:
            continue
        if not is_penalty(part):
            return NotImplemented
        parts += part.terms if isinstance(part, Sum) else (as_regularizer(part),)
    return parts[0] if len(parts) == 1 else Sum(tuple(parts))
