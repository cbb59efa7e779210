"""The probe, which asks an optimizer how long its steps are, by running it on small constant gradients.

The answer does not depend on the optimizer's name or its parts. The cost hardly depends on the number of parameters,
because whatever is computed for several parameters alike is computed once.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from jaxreg._checks import is_inexact_array
from jaxreg._numerics import accumulation_dtype
from jaxreg._shards import undivided

# Gradients of both signs and several sizes. Half of the difference between the signs is free of weight decay. The
# sizes tell one metric from another one. No usual clipping touches the small ones. An optimizer adapts to the large
# ones, also where it has large constants beside its second moments. The last small ones differ from weight to weight,
# so that steps which depend on other weights are seen.
SMALL, LARGE = (2e-5, 3e-4, 1e-4), (0.02, 0.2, 2.0)
VARIED = SMALL[-1]
# The parameters are other than 0 and 1 and each other, so that steps which depend on them are seen. They are small, so
# that coupled penalties do not outweigh the gradients.
PARAMETERS = (0.03, 0.007, 0.03, 0.03, 0.03, 0.03)
LANES = [
    (sign * size, param, float(size == VARIED))
    for size, param in zip((*SMALL, *LARGE), PARAMETERS, strict=True)
    for sign in (1.0, -1.0)
]
UPDATES = 2_000  # so many that momentum of 0.99 has settled
# Counts at which schedules are compared, too. Their remainders differ, for what happens at every third update alone.
LATER = (2_501, 3_002, 4_003, 5_005, 7_009, 10_000, 20_003, 50_002, 100_000, 1_000_001)
# The relative error of a step. An average in bfloat16 stops where a tenth of the rest is below half of its spacing.
FULL, HALF = 1e-3, 5e-2
LARGEST = 4_096  # trees of at most so many weights keep their shapes


class Untraceable(Exception):
    """An optimizer holds a traced value, so that nothing can be run."""


class Answer(NamedTuple):
    """The steps that an optimizer took.

    Attributes:
      steps: for each asked parameter, the weighed step over −gradient, an array `(counts, gradient sizes, values)`.
        It is the learning rate at these counts of updates where the metric is that of the optimizer.
      moves: for each asked parameter, whether any update was not zero.
      tolerance: the relative error that rounding may bring into a step.
    """

    steps: list[np.ndarray]
    moves: list[bool]
    tolerance: float


@contextlib.contextmanager
def concrete() -> Iterator[None]:
    """Computes at once, whatever is being traced, and as by default, whatever the user has set."""
    with (
        jax.ensure_compile_time_eval(),
        jax.disable_jit(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        undivided(),
    ):
        yield


def small_tree(params: Any) -> Any:
    """Returns a tree like `params` of concrete arrays, all filled with one number, in at least float32.

    The arrays of a large tree have at most 2 weights along an axis. The paths, ranks and boxes are those of `params`.
    """
    arrays = [leaf for leaf in jax.tree.leaves(params) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
    keep = sum(int(np.prod(leaf.shape)) for leaf in arrays) <= LARGEST

    def small(leaf: Any) -> Any:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            return leaf
        shape = tuple(size if keep else min(size, 2) for size in leaf.shape)
        dtype = leaf.dtype
        if jnp.issubdtype(dtype, jnp.floating):
            dtype = accumulation_dtype(dtype)
        return jnp.full(shape, PARAMETERS[0] if jnp.issubdtype(dtype, jnp.inexact) else 0, dtype)

    with concrete():
        return jax.tree.map(small, params)


def varied(size: int) -> np.ndarray:
    """Returns numbers of both signs, with sizes from 0.3 to 1, in no regular order."""
    places = np.arange(size)
    return (0.3 + 0.7 * (places * 0.618034 % 1)) * np.where(places * 0.414214 % 1 < 0.5, 1.0, -1.0)


def ask(inner: Any, params: Any, weigh: Callable[[Any, Any], list[jax.Array]], counts: Sequence[int]) -> Answer:
    """Returns the steps of `inner` at rest.

    Args:
      inner: an optax transformation that takes extra arguments.
      params: a tree from `small_tree`.
      counts: counts of updates, in order, after which a step is recorded. After `UPDATES`, only the counts go on.
      weigh: a function from the state and the updates of `inner` to a list of arrays: for each asked parameter the
        update, and then for each of them the update times the diagonal of the metric.

    Raises:
      Untraceable: `inner` holds a traced value.
      Exception: anything that `inner` raises.
    """
    with concrete():
        treedef: Any
        first, treedef = jax.tree.flatten(inner.init(params))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in first):
            raise Untraceable
        first = [jnp.asarray(leaf) for leaf in first]

        def filled(number: jax.Array, is_varied: jax.Array | float) -> Any:
            made: dict[Any, jax.Array] = {}

            def fill(leaf: Any) -> Any:
                if not is_inexact_array(leaf):
                    return leaf
                kind = leaf.shape, leaf.dtype
                if kind not in made:
                    pattern = jnp.asarray(varied(leaf.size).reshape(leaf.shape), number.dtype)
                    pattern = jnp.where(is_varied > 0, pattern, jnp.ones_like(pattern))
                    made[kind] = (number * pattern).astype(leaf.dtype)
                return made[kind]

            return jax.tree.map(fill, params)

        def update(lane: jax.Array, *leaves: jax.Array) -> list[Any]:
            updates, state = inner.update(filled(lane[0], lane[2]), treedef.unflatten(leaves), filled(lane[1], 0.0))
            after, now = jax.tree.flatten(state)
            if now != treedef:
                raise TypeError("its state changes its structure")
            # The moments of integers, which no real gradient meets, would become floats.
            after = [
                new if new.dtype == old.dtype else new.astype(old.dtype) for new, old in zip(after, first, strict=True)
            ]
            return [*weigh(state, updates), *after]

        step, start, places = _shared(update, first)
        run = jax.jit(jax.vmap(lambda lane: _run(step, lane, start, tuple(counts))))
        distinct = run(jnp.asarray(LANES))
        recorded = [np.asarray(distinct[place], np.float64) for place in places]
    # The axes are lanes, counts, and the values of a parameter.
    flat = [r.reshape(len(LANES), len(counts), -1) for r in recorded]
    updates, weighed = flat[: len(flat) // 2], flat[len(flat) // 2 :]
    steps = []
    for w in weighed:
        gradients = [lane[0] * (varied(w.shape[-1]) if lane[2] else 1.0) for lane in LANES[::2]]
        steps.append(np.stack([(w[2 * i + 1] - w[2 * i]) / (2 * g) for i, g in enumerate(gradients)], axis=1))
    half = any(jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4 for leaf in first)
    return Answer(steps, [bool(np.any(u != 0)) for u in updates], HALF if half else FULL)


def _run(step: Callable[..., Any], lane: jax.Array, start: list[jax.Array], counts: tuple[int, ...]) -> list[jax.Array]:
    """Returns what `step` records after each of `counts` updates."""
    # An integer that has become the number of updates counts them.
    is_count = [leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in start]
    early = [count for count in counts if count < UPDATES]

    def on(carry: list[jax.Array], updates: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        carry = jax.lax.fori_loop(0, updates, lambda _, carry: step(lane, carry)[0], carry)
        return carry, step(lane, carry)[1]

    def at(carry: list[jax.Array], count: jax.Array) -> list[jax.Array]:
        moved = [
            jnp.where(leaf == UPDATES, count.astype(leaf.dtype), leaf) if counts_updates else leaf
            for leaf, counts_updates in zip(carry, is_count, strict=True)
        ]
        return step(lane, moved)[1]

    between = jnp.diff(jnp.asarray([0, *early, UPDATES]))
    carry, recorded = jax.lax.scan(on, start, between)
    recorded = [values[:-1] for values in recorded]  # after the last one the counts are moved on
    if later := [count for count in counts if count >= UPDATES]:
        further = jax.lax.map(lambda count: at(carry, count), jnp.asarray(later))
        recorded = [jnp.concatenate(both) for both in zip(recorded, further, strict=True)]
    return recorded


def _shared(
    update: Callable[..., list[Any]], first: list[jax.Array]
) -> tuple[Callable[..., Any], list[Any], list[int]]:
    """Returns a step that computes equal values once, its first state, and the place of each output in its results.

    Two leaves of the state are one if they are equal at first and every update makes them from equal values in the
    same way.
    """
    closed: Any = jax.make_jaxpr(update)(jnp.asarray(LANES[0]), *first)
    jaxpr = closed.jaxpr
    if any(isinstance(const, jax.core.Tracer) for const in closed.consts):
        raise Untraceable
    recorded = len(jaxpr.outvars) - len(first)
    classes = _ranked(list(map(_content, first)))
    while True:
        equations, outputs = _once_each(closed, [-1, *classes])
        finer = _ranked(list(zip(classes, map(_named, outputs[recorded:]), strict=True)))
        if finer == classes:
            break
        classes = finer
    run = jaxpr_as_fun(closed.replace(jaxpr=jaxpr.replace(eqns=equations, outvars=outputs)))
    distinct = _ranked(list(map(_named, outputs[:recorded])))
    kept = [distinct.index(place) for place in range(len(set(distinct)))]
    carried = [classes.index(place) for place in range(len(set(classes)))]

    def step(lane: jax.Array, carry: list[Any]) -> tuple[list[Any], list[Any]]:
        results = run(lane, *(carry[place] for place in classes))
        return [results[recorded + i] for i in carried], [results[i] for i in kept]

    return step, [first[i] for i in carried], distinct


def _once_each(closed: Any, classes: list[int]) -> tuple[list[Any], list[Any]]:
    """Returns the equations and the outputs of a jaxpr, with one variable for all that hold the same value.

    `classes` has a number for each input, equal ones for equal inputs.
    """
    jaxpr = closed.jaxpr
    same = _merged(jaxpr.invars, classes) | _merged(jaxpr.constvars, list(map(_content, closed.consts)))
    made: dict[Any, list[Any]] = {}
    equations = []

    def chosen(atom: Any) -> Any:
        return atom if isinstance(atom, Literal) else same.get(atom, atom)

    for equation in jaxpr.eqns:
        inputs = [chosen(atom) for atom in equation.invars]
        named = list(map(_named, inputs))
        params = tuple((key, _hashable(value)) for key, value in sorted(equation.params.items()))
        key: tuple[Any, ...] = (equation.primitive, params, *named)
        if key in made and not equation.effects:
            same.update(zip(equation.outvars, made[key], strict=True))
            continue
        made[key] = equation.outvars
        equations.append(equation.replace(invars=inputs))
        if equation.primitive.name in ("jit", "pjit"):
            # A function that does the same for many arrays has many equal outputs.
            outputs = _once_each(equation.params["jaxpr"], _ranked(named))[1]
            same |= _merged(equation.outvars, list(map(_named, outputs)))
    return equations, [chosen(atom) for atom in jaxpr.outvars]


def _merged(variables: list[Any], keys: list[Any]) -> dict[Any, Any]:
    """Returns for each variable the first one with the same key."""
    first: dict[Any, Any] = {}
    return {variable: first.setdefault(key, variable) for variable, key in zip(variables, keys, strict=True)}


def _named(atom: Any) -> Any:
    return (atom.aval, repr(atom.val)) if isinstance(atom, Literal) else atom


def _hashable(value: Any) -> Any:
    """Returns a key for a parameter of an equation. Parameters that it does not find equal cost some time, no more."""
    if isinstance(value, Jaxpr) or (isinstance(value, ClosedJaxpr) and not value.consts):
        return str(value)
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def _content(value: Any) -> Any:
    """Returns a key for an array, equal for equal arrays."""
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        return id(value)
    known: Any = value
    data = jax.random.key_data(known) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value
    return value.dtype, value.shape, getattr(value, "weak_type", False), np.asarray(data).tobytes()


def _ranked(keys: list[Any]) -> list[int]:
    """Returns a number for each key, equal ones for equal keys, in the order in which they come."""
    known: dict[Any, int] = {}
    return [known.setdefault(key, len(known)) for key in keys]
