"""The base of regularizers and constraints: frozen data, a pytree, and perhaps a memory for each parameter."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax

from jaxreg._checks import at_count
from jaxreg._config import Configured, is_built_in
from jaxreg._pytree import attributes, identity, make_dataclass, register, replaced

_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Term(Configured):
    """Anything that a rule gives to a parameter: a `jaxreg.Regularizer`, or a `jaxreg.constraints.Constraint`."""

    has_metric_prox: ClassVar[bool] = False

    # The class that users subclass, and the name that they find it by.
    _root: ClassVar[type["Term"]]
    _root_name: ClassVar[str]

    # True if the class can work on a shard, given how the whole array is divided.
    _takes_shards: ClassVar[bool] = False

    # NumPy's scalars and arrays leave `scale * term` to `__rmul__`.
    __array_ufunc__: ClassVar[None] = None

    def __init_subclass__(cls, root: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if root:
            cls._root, cls._root_name = cls, root
            return
        if shipped := next((base for base in cls.__mro__[1:] if is_built_in(base)), None):
            raise TypeError(
                f"{cls.__name__} must not subclass {shipped.__name__}, which is not for subclassing; "
                f"subclass {cls._root_name}, and call {shipped.__name__} inside"
            )
        if cls.__dict__.get("__slots__"):
            raise TypeError(f"{cls.__name__} must not have `__slots__`: its strengths would not be found")
        if cls.updated is not Term.updated and cls.init is Term.init:
            raise TypeError(f"{cls.__name__} must define `init`, which makes the memory that its `updated` renews")
        # A prox belongs to the call that is defined with it or above it, and the flag to the prox.
        for name, owner in (("prox", "__call__"), ("has_metric_prox", "prox")):
            if not issubclass(_definer(cls, name), _definer(cls, owner)):
                setattr(cls, name, vars(_definer(cls._root, name))[name])
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
        raise NotImplementedError(f"{type(self).__name__} must define `__call__(self, x)`")

    @property
    def has_prox(self) -> bool:
        """True if there is a `prox`."""
        raise NotImplementedError

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        raise NotImplementedError

    def init(self, x: jax.Array) -> Any:
        """Returns the memory for one parameter: what is kept from step to step. A class without one returns `()`.

        A class that defines `init` is called with `memory=`, and so is its `prox`. The memory is a pytree of arrays.
        Further keyword arguments, such as `importance=None`, are taken from the trees that `Rules.init` is given.
        """
        del x
        return ()

    def updated(self, x: jax.Array, memory: Any) -> Any:
        """Returns the memory for the next step, from the parameter that this step met. By default it stays the same."""
        del x
        return memory

    @property
    def has_memory(self) -> bool:
        """True if something is kept for each parameter, so that it must be called with `memory=`."""
        return type(self).init is not Term.init

    @property
    def renews_memory(self) -> bool:
        """True if the memory changes from step to step."""
        return type(self).updated is not Term.updated

    def _extras(self) -> Mapping[str, bool]:
        """Returns the names of the trees that `init` takes, and whether it must have them."""
        if not self.has_memory:
            return {}
        parameters = list(inspect.signature(self.init).parameters.values())[1:]
        return {p.name: p.default is inspect.Parameter.empty for p in parameters if p.kind in _KINDS}

    def at(self, count: Any) -> Self:
        """Returns the same with numbers in place of schedules: their values at a count of steps."""
        new = {name: self._at(name, count) for name in self._schedules()}
        for name, value in attributes(self).items():
            if any(term.has_schedule for term in _terms_in(value)):
                new[name] = jax.tree.map(
                    lambda part: part.at(count) if isinstance(part, Term) else part, value, is_leaf=_is_term
                )
        if not new:
            return self
        resolved = replaced(self, new)
        resolved._check_order()
        return resolved

    @property
    def has_schedule(self) -> bool:
        """True if a strength is a schedule, which has a value only at a count of steps."""
        return bool(self._schedules()) or any(
            term.has_schedule for value in attributes(self).values() for term in _terms_in(value)
        )

    def _schedules(self) -> tuple[str, ...]:
        """Returns the names of the fields that hold schedules."""
        return ()

    def _at(self, name: str, count: Any) -> Any:
        """Returns the value of a schedule at a count."""
        return at_count(getattr(self, name), count, name=name)

    def _check_order(self) -> None:
        """Raises an error for numbers that do not go together."""

    def get_config(self) -> dict[str, Any]:
        if schedules := self._schedules():
            raise TypeError(
                f"`{schedules[0]}` of {type(self).__name__} is a schedule, which has no form in JSON; take `at(count)`"
            )
        return super().get_config()

    def _is_penalty(self) -> bool:
        """Returns whether it is a penalty, which has a value, and not a constraint, which has a set."""
        raise NotImplementedError

    def _has_penalty(self) -> bool:
        """Returns whether it has a penalty, with or without a constraint."""
        return self._is_penalty()

    def _seen(self, x: Any) -> str:
        """Returns what is seen in an array, where that is matrices or groups."""
        return ""

    def _shares_exchanges(self) -> bool:
        """Returns whether devices exchange parts of a kernel for its penalty, and equal kernels can share that."""
        return False

    def _is_mean_over_batch(self) -> bool:
        """Returns whether a penalty of layer outputs is a mean over the samples of a batch, and not a sum over them."""
        return False

    def _is_elastic_net(self) -> bool:
        """Returns whether the penalty is made of Σ|x| and Σx² alone. A sum of such penalties is one too."""
        return False

    def _elastic_net(self) -> tuple[Any, Any]:
        """Returns the strengths of Σ|x| and Σx² of a penalty that is made of these alone."""
        raise NotImplementedError

    def _is_separable(self) -> bool:
        """Returns whether it is a convex sum over single weights, or a set for each single weight."""
        return self._is_elastic_net()

    def _norm_groups(self) -> Any:
        """Returns the axes of the groups of a penalty, or of a ball, of their norms, and None for anything else."""
        return None


def _is_term(part: Any) -> bool:
    return isinstance(part, Term)


def _terms_in(value: Any) -> list[Term]:
    return [part for part in jax.tree.leaves(value, is_leaf=_is_term) if isinstance(part, Term)]


def _definer(cls: type, name: str) -> type:
    """Returns the class from which `cls` has an attribute."""
    return next(base for base in cls.__mro__ if name in vars(base))


def unresolved(owner: str, name: str, schedule: Callable[..., Any]) -> TypeError:
    """Returns the error for a schedule where a number is needed."""
    shown = getattr(schedule, "__name__", type(schedule).__name__)
    return TypeError(
        f"`{name}` of {owner} is a schedule, {shown}, which has a value only at a count of steps: take "
        "`rules.at(count)` or `regularizer.at(count)`, or give the rules to a transform, which reads it at its count"
    )
