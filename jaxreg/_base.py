"""The base class of regularizers, and the sums and multiples that `+` and `*` make of them."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg import prox
from jaxreg._checks import brief, checked_number, checked_schedule, describe, is_schedule
from jaxreg._config import BUILT_IN, is_penalty, to_dict
from jaxreg._evaluate import begun, evaluate, in_order, is_nothing, proxed, renewed
from jaxreg._names import is_mean_over_batch
from jaxreg._numerics import add_up, scaled, times_strength
from jaxreg._pytree import is_number
from jaxreg._term import Term, unresolved

GRADIENTS_INSTEAD = "add its gradients by `jaxreg.add_penalty_gradients`"


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
class Regularizer(Term, root="jaxreg.Regularizer"):
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

    A strength may be an optax schedule: write `schedule * regularizer`, or give it for a number of a class that jaxreg
    ships. `at(count)` returns the regularizer with numbers. A class may keep something for each parameter from step to
    step, such as the value to pull it to: its method `init(self, x)` makes that memory, `__call__` and `prox` then take
    `memory=`, and `updated(self, x, memory)`, if it is defined, renews it after each step.

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

    def _is_penalty(self) -> bool:
        return True

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the penalty of one array, a scalar."""
        return super().__call__(x)

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

    def __add__(self, other: Any) -> "Regularizer":
        return added(self, other)

    def __radd__(self, other: Any) -> "Regularizer":
        return added(other, self)

    def __mul__(self, scale: Any) -> "Regularizer":
        if not is_scale(scale):
            return NotImplemented
        return Scaled(scale, self)

    __rmul__ = __mul__


def is_scale(scale: Any) -> bool:
    """Returns whether `scale` may multiply a regularizer: a number, or a schedule."""
    # The constructor refuses a bool with a message.
    return isinstance(scale, bool | np.bool_) or is_number(scale) or is_schedule(scale)


def checked_scale(scale: Any) -> Any:
    """Returns a number >= 0, or a schedule."""
    return (checked_schedule if is_schedule(scale) else checked_number)(scale, name="scale")


class Sum(Regularizer):
    """The sum of several regularizers and constraints, as `a + b` makes it.

    With a constraint it has a prox where that has a closed form: the prox of the penalties, and then the projection.
    """

    terms: tuple[Term, ...]

    _takes_shards = True  # each term is asked

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms))

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("`terms` must hold at least one regularizer, got ()")
        terms = [as_term(term) for term in self.terms]
        flat = [part for term in terms for part in (term.terms if isinstance(term, Sum) else (term,))]
        object.__setattr__(self, "terms", tuple(flat))

    def _is_penalty(self) -> bool:
        return all(term._is_penalty() for term in self.terms)

    def _has_penalty(self) -> bool:
        return any(term._has_penalty() for term in self.terms)

    def _shares_exchanges(self) -> bool:
        return all(term._shares_exchanges() for term in self.terms)

    @property
    def needs_key(self) -> bool:
        return any(term.needs_key for term in self.terms)

    @property
    def has_memory(self) -> bool:
        return any(term.has_memory for term in self.terms)

    @property
    def renews_memory(self) -> bool:
        return any(term.renews_memory for term in self.terms)

    def _extras(self) -> dict[str, bool]:
        names: dict[str, bool] = {}
        for term in self.terms:
            names |= {name: needed or names.get(name, False) for name, needed in term._extras().items()}
        return names

    def init(self, x: jax.Array, **extras: Any) -> Any:
        return tuple(begun(term, x, extras) if term.has_memory else () for term in self.terms)

    def updated(self, x: jax.Array, memory: Any) -> Any:
        return tuple(renewed(term, x, own) for term, own in self._with_memories(memory))

    def _with_memories(self, memory: Any) -> list[tuple[Term, Any]]:
        """Returns the terms, each with its own memory."""
        if is_nothing(memory):
            return [(term, ()) for term in self.terms]
        if (parts := in_order(memory, len(self.terms))) is None:
            raise ValueError(
                f"`memory` of a sum of {len(self.terms)} terms must be a tuple with that of each, got "
                f"{describe(memory)}{f' of {len(memory)}' if isinstance(memory, tuple | list) else ''}"
            )
        for term, own in zip(self.terms, parts, strict=True):
            if not term.has_memory and not is_nothing(own):
                raise ValueError(
                    f"`memory` of a sum must hold () for {term!r}, which keeps nothing, got {describe(own)}"
                )
        return list(zip(self.terms, parts, strict=True))

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None, memory: Any = ()) -> jax.Array:
        for term in self.terms:
            if not term._is_penalty():
                raise not_for_a_loss(repr(term))
        return add_up(evaluate(term, x, key, own) for term, own in self._with_memories(memory))

    @property
    def has_prox(self) -> bool:
        return not self.obstacle()

    @property
    def has_metric_prox(self) -> bool:  # type: ignore[override]  # a class sets it; here the terms decide
        if self.obstacle():
            return False
        penalties, constraints = in_parts(self, ())
        each = all(term.has_metric_prox for term, _ in penalties)
        return each and all(term._is_separable() for term, _ in constraints)

    def obstacle(self) -> str:
        """Returns why there is no prox in closed form, and nothing where there is one."""
        penalties, constraints = ([term for term, _ in part] for part in in_parts(self, ()))
        if len(penalties) > 1 and not all(term._is_elastic_net() for term in penalties):
            return "only L1, L2 and L1L2 add up to one"
        if not all(term.has_prox for term in penalties):
            return "a term has none"
        if not constraints or (len(constraints) == 1 and not penalties):
            return ""
        if len(constraints) > 1:
            return "a sum may hold one constraint"
        (constraint,) = constraints
        if constraint._is_separable() and all(term._is_separable() for term in penalties):
            return ""
        groups = constraint._norm_groups()
        if groups is not None and len(penalties) == 1 and penalties[0]._norm_groups() == groups:
            return ""
        return (
            "a constraint and a penalty have one where both are for single weights (L1, L2, L1L2, AdaptiveL1, Huber or "
            "Anchor with NonNeg, Box or KeepZeros), or for the norms of the same groups (GroupLasso with MaxNorm)"
        )

    def prox(self, x: jax.Array, step: Any, *, memory: Any = ()) -> jax.Array:
        if obstacle := self.obstacle():
            raise NotImplementedError(
                f"{self!r} has no prox in closed form, because {obstacle}; add the gradients of a penalty by "
                "`jaxreg.add_penalty_gradients`"
            )
        return in_turn(*in_parts(self, memory), x, step)

    def __mul__(self, scale: Any) -> Regularizer:
        # A multiple of a constraint is the constraint.
        if is_scale(scale) and not self._is_penalty():
            return Sum(tuple(scale * term if term._is_penalty() else term for term in self.terms))
        return super().__mul__(scale)

    __rmul__ = __mul__

    def _seen(self, x: Any) -> str:
        return ", ".join(dict.fromkeys(seen for term in self.terms if (seen := term._seen(x))))

    def _is_elastic_net(self) -> bool:
        return all(term._is_elastic_net() for term in self.terms)

    def _elastic_net(self) -> tuple[Any, Any]:
        l1s, l2s = zip(*(term._elastic_net() for term in self.terms), strict=True)
        return add_up(map(jnp.asarray, l1s)), add_up(map(jnp.asarray, l2s))


Parts = list[tuple[Term, Any]]


def in_parts(term: Term, memory: Any) -> tuple[Parts, Parts]:
    """Returns the penalties of a term, and its constraints, each with its memory."""
    terms = term._with_memories(memory) if isinstance(term, Sum) else [(term, memory)]
    return [part for part in terms if part[0]._is_penalty()], [part for part in terms if not part[0]._is_penalty()]


def in_turn(
    penalties: Parts,
    constraints: Parts,
    x: jax.Array,
    step: Any,
    limit: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Returns `x` after the prox of penalties, as far as `limit` lets it go, and then after the projections."""
    new = x
    if len(penalties) == 1:
        ((term, memory),) = penalties
        new = proxed(term, x, step, memory)
    elif penalties:
        l1, l2 = Sum(tuple(term for term, _ in penalties))._elastic_net()
        new = prox.l1_l2(x, step, l1=l1, l2=l2)
    if penalties and limit is not None:
        new = limit(new, x)
    for term, memory in constraints:
        new = proxed(term, new, None, memory)
    return new


def not_for_a_loss(shown: str) -> TypeError:
    """Returns the error for a constraint where a value is needed."""
    return TypeError(
        f"{shown} has a constraint, which has no value to add to a loss or to differentiate. Constraints belong in "
        "rules for `jaxreg.proximal` or one of the proximal optimizers, or for `rules.prox(params)`, which projects. "
        "`rules.breakdown(params)` and `rules.by_rule(params)` count it as 0, and `jaxreg.from_keras` can leave it out"
    )


class Scaled(Regularizer):
    """A regularizer times a number >= 0, or times a schedule, as `2.0 * a` makes it."""

    scale: Any
    regularizer: Regularizer

    _takes_shards = True

    def __repr__(self) -> str:
        inner = f"({self.regularizer!r})" if isinstance(self.regularizer, Sum) else repr(self.regularizer)
        return f"{brief(self.scale)} * {inner}"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", checked_scale(self.scale))
        inner = as_term(self.regularizer)
        if not isinstance(inner, Regularizer) or not inner._is_penalty():
            raise TypeError(
                f"`regularizer` must be a penalty, since a multiple of a constraint is itself, got {inner!r}"
            )
        object.__setattr__(self, "regularizer", inner)

    def _schedules(self) -> tuple[str, ...]:
        return ("scale",) if is_schedule(self.scale) else ()

    def _number(self) -> Any:
        if self._schedules():
            raise unresolved(repr(self), "scale", self.scale)
        return self.scale

    def _shares_exchanges(self) -> bool:
        return self.regularizer._shares_exchanges()

    @property
    def needs_key(self) -> bool:
        return self.regularizer.needs_key

    @property
    def has_memory(self) -> bool:
        return self.regularizer.has_memory

    @property
    def renews_memory(self) -> bool:
        return self.regularizer.renews_memory

    def _extras(self) -> Any:
        return self.regularizer._extras()

    def init(self, x: jax.Array, **extras: Any) -> Any:
        return begun(self.regularizer, x, extras)

    def updated(self, x: jax.Array, memory: Any) -> Any:
        return renewed(self.regularizer, x, memory)

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None, memory: Any = ()) -> jax.Array:
        return scaled(self._number(), evaluate(self.regularizer, x, key, memory), name="scale")

    @property
    def has_prox(self) -> bool:
        return self.regularizer.has_prox

    @property
    def has_metric_prox(self) -> bool:  # type: ignore[override]  # a class sets it; here the other decides
        return self.regularizer.has_metric_prox

    def prox(self, x: jax.Array, step: Any, *, memory: Any = ()) -> jax.Array:
        return proxed(self.regularizer, x, times_strength(step, self._number(), name="scale"), memory)

    def _seen(self, x: Any) -> str:
        return self.regularizer._seen(x)

    def _is_elastic_net(self) -> bool:
        return self.regularizer._is_elastic_net()

    def _is_separable(self) -> bool:
        return self.regularizer._is_separable()

    def _norm_groups(self) -> Any:
        return self.regularizer._norm_groups()

    def _elastic_net(self) -> tuple[Any, Any]:
        l1, l2 = self.regularizer._elastic_net()
        scale = self._number()
        return times_strength(l1, scale, name="scale"), times_strength(l2, scale, name="scale")


class Function(Regularizer):
    """A plain function from an array to a scalar, as a regularizer without a strength of its own."""

    function: Callable[[jax.Array], jax.Array]

    def __post_init__(self) -> None:
        if not is_penalty(self.function):
            raise TypeError(f"`function` must be a function from an array to a scalar, got {describe(self.function)}")

    def __repr__(self) -> str:
        return brief(self.function)

    def _is_mean_over_batch(self) -> bool:
        return is_mean_over_batch(self.function)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)

    def _to_dict(self) -> dict[str, Any]:
        return to_dict(self.function)


BUILT_IN |= {cls.__name__: cls for cls in (Sum, Scaled, Function)}


def as_term(obj: Any) -> Term:
    if isinstance(obj, Term):
        return obj
    if not is_penalty(obj):
        raise TypeError(f"expected a regularizer or a function from an array to a scalar, got {describe(obj)}")
    return Function(obj)


def added(left: Any, right: Any) -> Any:
    """Returns `left + right`, one of which is a term. A 0 adds nothing, since Python's `sum` starts there."""
    parts: list[Term] = []
    for part in (left, right):
        if isinstance(part, int | float) and not isinstance(part, bool) and part == 0:
            continue
        if not is_penalty(part):
            return NotImplemented
        parts += part.terms if isinstance(part, Sum) else (as_term(part),)
    return parts[0] if len(parts) == 1 else Sum(tuple(parts))
