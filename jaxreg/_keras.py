"""Rules from a Keras model: the regularizers and constraints of its weights, by path."""

import dataclasses
import inspect
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from jaxreg._base import Sum, as_term
from jaxreg._checks import brief, check_bool, describe
from jaxreg._config import BUILT_IN
from jaxreg._constraint import Constraint
from jaxreg._matrix import positive_axes
from jaxreg._rules import Rules
from jaxreg._serialization import deserialize
from jaxreg._term import Term


def from_keras(model: Any, *, regularizers: bool = True, constraints: bool = True) -> Rules:
    """Returns rules with the regularizers and constraints that the weights of a Keras model have.

    They are for the trainable variables by path, `{v.path: v.value for v in model.trainable_variables}`, in the order
    of the model. Each pattern is one whole path. `rules(params)` is `sum(model.losses)`, without what the layers add by
    `activity_regularizer` and `add_loss`. As in Keras, frozen variables have no penalty, and shared ones have it once.
    JAX sorts the keys of dicts, so call the model with `[params[v.path] for v in model.trainable_variables]`.

    Keras's own regularizers and constraints become those of jaxreg. Your own, classes or functions, are called as they
    are where Keras runs on JAX. What rules cannot carry is named in one warning: the losses of activities and those of
    `add_loss`, and on another backend your own classes and functions.

    A constraint has no value, so a loss takes the rules without constraints. A variable with both has their sum, such
    as `L2(0.01) + NonNeg()`, for `jaxreg.proximal`. Where a sum has no prox, put the penalties in the loss, as Keras
    does, and project by rules of the constraints alone:

        penalties = jaxreg.from_keras(model, constraints=False)  # for a loss, or for `add_penalty_gradients`
        projections = jaxreg.from_keras(model, regularizers=False)  # for `jaxreg.proximal`

    The values are Keras's to rounding, except in a few places. The orthogonal penalty of a single row, or a single
    column, is 0 here and NaN in Keras, which also takes kernels of rank 2 only. Sums are accumulated in at least
    float32. Keras divides by the norm of a group plus 1e-7, and jaxreg by the norm.

    Args:
      model: a model of Keras 3 on any backend, or a layer, that is built.
      regularizers: whether to take the regularizers.
      constraints: whether to take the constraints. Keras's `axis` becomes `group_axis` for the rank of the variable.

    Raises:
      TypeError: `model` is no model of Keras 3.
      ValueError: the model is not built, no trainable variable has what is asked for, or two have the same path.

    >>> import keras
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(3, kernel_regularizer="l2", name="hidden"), keras.layers.Dense(1)],
    ...     name="net",
    ... )
    >>> rules = jaxreg.from_keras(model)
    >>> rules
    Rules(('^net/hidden/kernel$', L2(l2=0.01)))
    >>> params = {v.path: v.value for v in model.trainable_variables}
    >>> bool(jnp.allclose(rules(params), sum(model.losses)))
    True
    """
    check_bool(regularizers, name="regularizers")
    check_bool(constraints, name="constraints")
    kinds = [kind for kind, wanted in ((_REGULARIZER, regularizers), (_CONSTRAINT, constraints)) if wanted]
    if not kinds:
        raise ValueError("`regularizers` or `constraints` must be True, got False for both")
    backend = _backend_of(model)
    if not model.built:
        raise ValueError(
            f"`model` must be built, so that it has weights, got {model.name!r}, which is not; "
            "call it on data, or call `model.build(input_shape)`"
        )
    # `model.losses` has one penalty for each of these variables that has a regularizer.
    variables = model.trainable_weights
    _check_paths(variables)
    left_out = list(_left_out_layers(model, kinds))
    pairs: list[tuple[str, Term]] = []
    for variable in variables:
        terms = []
        for kind in kinds:
            given = getattr(variable, kind.name)
            if given is None:
                continue
            if (term := _converted(given, kind, variable, backend)) is not None:
                terms.append(term)
                continue
            left_out.append(
                f"the {kind.name} {brief(given)} of `{variable.path}`, which computes with {backend} and not with JAX: "
                f"write it as a subclass of `{kind.base}`"
            )
        if terms:
            pairs.append((f"^{re.escape(variable.path)}$", terms[0] if len(terms) == 1 else Sum(tuple(terms))))
    if not pairs:
        raise _nothing_in(model, kinds, left_out)
    if left_out:
        warnings.warn(f"jaxreg.from_keras left out {'. It left out '.join(left_out)}.", UserWarning, stacklevel=2)
    return Rules(*pairs)


class KerasConstraint(Constraint):
    """A constraint of a user's own from Keras, as the projection that it computes with JAX."""

    function: Callable[[jax.Array], jax.Array] = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        return brief(self.function)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)

    def _to_dict(self) -> NoReturn:
        raise TypeError(f"{self!r} has no form in JSON; write it as a subclass of `jaxreg.constraints.Constraint`")


class _Kind(NamedTuple):
    """One of the two things that a variable of Keras can have.

    Attributes:
      name: the attribute of the variable.
      convert: returns that of jaxreg for one that Keras has, and None for another one.
      carry: makes a term of a user's own class or function that computes with JAX.
      base: the class of jaxreg to write it with.
    """

    name: str
    convert: Callable[[Any, int], Term | None]
    carry: Callable[[Any], Term]
    base: str


def _backend_of(model: Any) -> str:
    """Returns the name of the backend of a model, which must be one of Keras 3."""
    # Keras is not a dependency. Whoever has a model of Keras has imported it.
    keras: Any = sys.modules.get("keras")
    if not isinstance(model, getattr(keras, "Layer", ())):
        raise TypeError(f"`model` must be a model of Keras 3, got {describe(model)}")
    return keras.config.backend()


def _check_paths(variables: list[Any]) -> None:
    for path, count in Counter(variable.path for variable in variables).items():
        if count > 1:
            raise ValueError(
                f"trainable variables of `model` must have distinct paths, got {count} with the path `{path}`; "
                "give their layers other names"
            )


def _nothing_in(model: Any, kinds: list[_Kind], left_out: list[str]) -> ValueError:
    """Returns the error for a model from which nothing can be taken, with what it has elsewhere."""
    wanted = " or ".join(kind.name for kind in kinds)
    frozen = [v.path for v in model.non_trainable_weights if any(getattr(v, kind.name) for kind in kinds)]
    elsewhere = [f"; `{path}` has one, and is frozen" for path in frozen[:1]]
    elsewhere += [f"; it has {what}" for what in left_out]
    return ValueError(
        f"`model` must have a {wanted} on a trainable variable, got {model.name!r}, which has none{''.join(elsewhere)}"
    )


def _of_keras(given: Any) -> str | None:
    """Returns the name of the class of an object, if Keras and jaxreg both have it."""
    name = type(given).__name__
    return name if type(given).__module__.startswith("keras.") and name in BUILT_IN else None


def _regularizer(given: Any, rank: int) -> Any:
    """Returns that of jaxreg for a regularizer of Keras, with the strengths as they were written."""
    del rank
    name = _of_keras(given)
    if name is None:
        return None
    config = {key: _as_written(value) for key, value in given.get_config().items()}
    return deserialize({"class_name": name, "config": config})


def _as_written(value: Any) -> Any:
    """Returns 0.01 for 0.009999999776482582, since Keras holds some strengths in float32."""
    return float(str(np.float32(value))) if isinstance(value, float) and np.float32(value) == value else value


def _constraint(given: Any, rank: int) -> Any:
    """Returns that of jaxreg for a constraint of Keras, whose `axis` names the axes within a group."""
    name = _of_keras(given)
    if name is None:
        return None
    config = dict(given.get_config())
    if "axis" in config:
        axis = config.pop("axis")
        within = range(rank) if axis is None else positive_axes(axis, rank, name="axis")
        groups = tuple(i for i in range(rank) if i not in within)
        config["group_axis"] = -1 if groups == (rank - 1,) else groups
    return deserialize({"class_name": name, "config": config})


_REGULARIZER = _Kind("regularizer", _regularizer, as_term, "jaxreg.Regularizer")
_CONSTRAINT = _Kind("constraint", _constraint, KerasConstraint, "jaxreg.constraints.Constraint")


def _converted(given: Any, kind: _Kind, variable: Any, backend: str) -> Term | None:
    """Returns a regularizer or a constraint of a variable, or None if it computes with another backend than JAX."""
    if isinstance(given, Term):
        return given
    try:
        term = kind.convert(given, len(variable.shape))
    except (TypeError, ValueError) as error:
        raise type(error)(f"`model` has a {kind.name} at `{variable.path}` that cannot be taken: {error}") from error
    return kind.carry(given) if term is None and backend == "jax" else term


def _left_out_layers(model: Any, kinds: list[_Kind]) -> Iterator[str]:
    """Yields what is left out with the layers of a model, and what to write instead."""
    layers = model._flatten_layers()
    if _REGULARIZER in kinds:
        active = [layer for layer in layers if layer.activity_regularizer is not None]
        if active:
            name, given = active[0].name, active[0].activity_regularizer
            carried = _regularizer(given, 0)
            shown = brief(given) if carried is None else f"jaxreg.{carried!r}"
            yield (
                f"the activity regularizers of {_named(active)}, which are for outputs: write "
                f"`jaxreg.activity_penalty(jaxreg.Rules((r'^{re.escape(name)}$', {shown})), {{{name!r}: outputs}}, "
                "batch_size=n)`"
            )
        if adding := [layer for layer in layers if _adds_losses(layer)]:
            yield f"what {_named(adding)} may add by `add_loss`: add it to your loss"
    endings = tuple(f"_{kind.name}" for kind in kinds)
    unbuilt = [
        layer
        for layer in layers
        if not layer.built
        and any(
            name.endswith(endings) and name != "activity_regularizer" and value is not None
            for name, value in vars(layer).items()
        )
    ]
    if unbuilt:
        yield f"all of {_named(unbuilt)}, which the model holds and which are not built: call them on data first"


def _adds_losses(layer: Any) -> bool:
    """Returns whether a layer has added a loss of its own, or has a `call` that mentions `add_loss`."""
    code = getattr(inspect.unwrap(layer.call), "__code__", None)
    return "add_loss" in getattr(code, "co_names", ()) or bool(layer._losses and layer.activity_regularizer is None)


def _named(layers: list[Any]) -> str:
    return ", ".join(f"`{layer.path or layer.name}`" for layer in layers)
