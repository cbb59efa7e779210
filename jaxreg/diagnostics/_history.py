"""A record of penalties during training, which is made outside of compiled functions."""

import csv
import functools
import importlib
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import keystr

from jaxreg._checks import check_key, checked_count, describe
from jaxreg._matching import shown
from jaxreg._met import Met, penalties_of
from jaxreg._names import public
from jaxreg._numerics import accumulation_dtype
from jaxreg._paths import leaves_with_paths
from jaxreg._proximal import ProximalState
from jaxreg._rules import Rules
from jaxreg._transforms import DecoupledState, PenaltyState

Row = dict[str, int | float]
Places = tuple[Met, ...]

_STATES = {state.__name__ for state in (PenaltyState, DecoupledState, ProximalState)}


class _Record(NamedTuple):
    """One record, whose numbers are still on the device.

    Attributes:
      step: the step it was made at.
      scalars: the numbers that the user gave, by name.
      penalties: the penalties of the parameters, as one array or a list of scalars, or None without parameters.
      owners: the path of each parameter with a penalty, and the index of its rule, in the order of the array.
      tracked: the penalties in the state of an optimizer, by name.
    """

    step: int
    scalars: dict[str, Any]
    penalties: Any
    owners: tuple[tuple[str, int], ...]
    tracked: dict[str, Any]


@public
class History:
    """Records penalties, and scalars such as the loss, at the steps that you choose.

    Call `record` outside of `jax.jit`. It does not wait for the device: numbers are fetched when they are read. The
    penalties of all parameters are computed by one compiled function, and are the same as those of `rules.breakdown`.

    A row is a flat dict, for any logger. For TensorBoard: `for name, value in row.items(): writer.add_scalar(name,
    value, step)`. For Weights & Biases: `wandb.log(row, step=step)`. `jaxreg.plots.penalty_history` draws all rows.

    Args:
      rules: the rules whose penalties are recorded. None records only what a state tracks.

    Attributes:
      rows: all rows so far, as a list of dicts.
      last: the last row.

    The names in a row are:
      - `step`, and the names of the scalars that `record` was given.
      - `penalty/total`: the sum of the penalties.
      - `penalty/rule/PATTERN`: the penalty of each rule that has a regularizer or a constraint. Where two rules have
        the same pattern, every name ends with the number of its rule, as in `kernel$ (rule 2)`.
      - `penalty/path/PATH`: the penalty of each parameter that has one. A constraint counts as 0.
      - `penalty/state/PLACE`: the penalty that a transform tracks, by its place in the state: 0 for the first in a
        chain. It is `penalty/state` where the state is that of a single transform.

    Raises:
      TypeError: `rules` are neither `jaxreg.Rules` nor None.

    >>> params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
    >>> history = jaxreg.diagnostics.History(jaxreg.Rules((r"kernel$", jaxreg.L2(0.5))))
    >>> history.record(0, params, loss=1.5)
    >>> history.record(10, {"kernel": jnp.array([1.0, 0.0]), "bias": jnp.array([3.0])}, loss=0.5)
    >>> [row["penalty/total"] for row in history.rows]
    [2.5, 0.5]
    >>> history.last
    {'step': 10, 'loss': 0.5, 'penalty/total': 0.5, 'penalty/rule/kernel$': 0.5, 'penalty/path/kernel': 0.5}
    """

    def __init__(self, rules: Rules | None = None):
        if rules is not None and not isinstance(rules, Rules):
            raise TypeError(f"`rules` must be jaxreg.Rules or None, got {describe(rules)}")
        self._rules = rules
        self._labels = () if rules is None else _labels_of(rules)
        self._steps: list[int] = []
        self._rows: list[Row] = []
        self._unread: list[_Record] = []  # the records after those that rows were made of

    def record(
        self,
        step: int,
        params: Any = None,
        *,
        state: Any = None,
        key: jax.Array | None = None,
        memory: Any = (),
        **scalars: float | jax.Array,
    ) -> None:
        """Adds a row with the penalties of `params`, the penalties that `state` tracks, and further scalars.

        Args:
          step: the number of the step, greater than that of the last record. Schedules in the rules are read at it. For
            the count in a training state, write `int(state.step)`, which waits for the device.
          params: a tree of parameters that the rules take.
          state: the state of an optimizer that contains `add_penalty_gradients`, `decoupled` or a proximal transform
            with `track=True`. Its penalty is that of the parameters before the last update.
          key: a random key for rules that sample.
          memory: the memory of rules that keep something, which a transform has in its state under `memory`.
          **scalars: further numbers under names of your own, such as `loss=loss`. Write `**{"val/loss": loss}` for a
            name with a slash.

        Raises:
          TypeError: `step` is no int, a scalar is no real number, or something is traced, because `record` is called
            inside `jax.jit` or another transform.
          ValueError: neither `params` nor `state` is given, `params` are given without rules, `state` tracks no
            penalty, `step` is not greater than the last one, a scalar has the name of a penalty or is an array of
            several numbers, or the rules do not fit `params`.
        """
        check_key(key, or_old=True)
        leaves = [] if params is None else leaves_with_paths(params)
        given = {"step": step, "params": [leaf for _, leaf in leaves], "state": state, "key": key, "memory": memory}
        _check_not_traced({"rules": self._rules} | given)
        _check_not_traced(scalars)
        step = checked_count(step, name="step", least=0)
        if self._steps and step <= self._steps[-1]:
            raise ValueError(f"`step` must be greater than that of the last record, {self._steps[-1]}, got {step}")
        if params is None and state is None:
            raise ValueError("`params` or `state` must be given, got None for both")
        kept = {name: _scalar(value, name=name) for name, value in scalars.items()}
        tracked = {} if state is None else _tracked(state)
        met = [] if params is None else self._met(params, memory)
        penalties = None if params is None else self._penalties(met, step, key)
        # Inside of `jax.jit` a computation with constants is traced too.
        _check_not_traced(kept)
        _check_not_traced({"params": penalties, "state": tracked})
        owners = tuple((m.path, m.patterns[0]) for m in met)
        self._unread.append(_Record(step, kept, penalties, owners, tracked))
        self._steps.append(step)

    def _met(self, params: Any, memory: Any) -> list[Met]:
        """Returns the parameters that have a penalty or a constraint."""
        if self._rules is None:
            raise ValueError("`params` need rules, as in History(rules), to have penalties")
        met = [m for m in self._rules._met(params, memory) if m.regularizer is not None]
        for m in met:
            if isinstance(m.leaf, jax.ShapeDtypeStruct):
                raise TypeError(f"`params` must hold values, got the shape {describe(m.leaf)} at `{m.path}`")
        return met

    def _penalties(self, met: list[Met], step: int, key: jax.Array | None) -> Any:
        # Only arrays go into the compiled function. A tree may hold functions, or one layer of NNX twice.
        places = tuple(m._replace(leaf=None, regularizer=None, memory=()) for m in met)
        count = jnp.int32(min(step, np.iinfo(np.int32).max))  # where the counts of optax stay
        assert self._rules is not None
        if len({frozenset(m.leaf.devices()) for m in met if isinstance(m.leaf, jax.Array)} - {frozenset()}) > 1:
            regularizers = self._rules.at(count).regularizers  # one program cannot have parts on different devices
            return [m._replace(regularizer=regularizers[m.patterns[0]]).penalty(key) for m in met]
        return _computed(self._rules, [m.leaf for m in met], [m.memory for m in met], count, key, places=places)

    @property
    def rows(self) -> list[Row]:
        """All rows so far, each a flat dict of Python numbers. Reading them waits for the device."""
        self._read()
        return [dict(row) for row in self._rows]

    @property
    def last(self) -> Row:
        """The last row. It is an error where nothing was recorded."""
        self._check_not_empty()
        self._read()
        return dict(self._rows[-1])

    def _read(self) -> None:
        """Fetches the numbers that are still on the device, all at once."""
        # As lists, since JAX would sort the names of a dict.
        numbers = [([*r.scalars.values()], r.penalties, [*r.tracked.values()]) for r in self._unread]
        pairs = zip(self._unread, jax.device_get(numbers), strict=True)
        self._rows += [self._row(record, *fetched) for record, fetched in pairs]
        self._unread = []

    def _row(self, record: _Record, scalars: list[Any], penalties: Any, tracked: list[Any]) -> Row:
        """Returns the row of a record, whose numbers have been fetched."""
        row: Row = {"step": record.step}
        row |= {name: _number(value) for name, value in zip(record.scalars, scalars, strict=True)}
        if penalties is not None:
            values = [float(penalty) for penalty in penalties]
            row["penalty/total"] = sum(values, 0.0)
            row |= {f"penalty/rule/{label}": 0.0 for label in self._labels if label}
            for value, (_, rule) in zip(values, record.owners, strict=True):
                row[f"penalty/rule/{self._labels[rule]}"] += value
            for value, (path, _) in zip(values, record.owners, strict=True):
                row[f"penalty/path/{path}" if path else "penalty/path"] = value
        return row | {name: float(value) for name, value in zip(record.tracked, tracked, strict=True)}

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes all rows to a CSV file, with a column for each name that any row has, in the order of appearance.

        A cell is empty where a row does not have the name.

        Raises:
          TypeError: `path` is no path.
          ValueError: nothing was recorded.
        """
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"`path` must be the path of a file, got {describe(path)}")
        self._check_not_empty()
        rows = self.rows
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _columns(rows))
            writer.writeheader()
            writer.writerows(rows)

    def to_dataframe(self) -> Any:
        """Returns all rows as a `pandas.DataFrame` with the steps as its index. A number that a row lacks is NaN.

        Raises:
          ImportError: pandas is not installed.
          ValueError: nothing was recorded.
        """
        self._check_not_empty()
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise ImportError("`to_dataframe` needs pandas: pip install pandas") from error
        rows = self.rows
        return pandas.DataFrame(rows, columns=_columns(rows)).set_index("step")

    def _check_not_empty(self) -> None:
        if not self._steps:
            raise ValueError("the history is empty: call `record` first")

    def __repr__(self) -> str:
        count = len(self._steps)
        steps = f", steps {self._steps[0]} to {self._steps[-1]}" if count else ""
        return f"History({count} row{'s' * (count != 1)}{steps})"


@functools.partial(jax.jit, static_argnames="places")
def _computed(
    rules: Rules, leaves: list[Any], memories: list[Any], count: jax.Array, key: jax.Array | None, *, places: Places
) -> jax.Array:
    """Returns the penalties of all parameters that have one, as one array, since many small ones take more room.

    `places` are what rules met, without anything that may change from step to step.
    """
    regularizers = rules.at(count).regularizers
    met = [
        place._replace(leaf=leaf, regularizer=regularizers[place.patterns[0]], memory=memory)
        for place, leaf, memory in zip(places, leaves, memories, strict=True)
    ]
    penalties = penalties_of(met, key)
    dtype = accumulation_dtype(*(penalty.dtype for penalty in penalties))
    return jnp.stack([penalty.astype(dtype) for penalty in penalties]) if penalties else jnp.zeros(0, dtype)


def _labels_of(rules: Rules) -> tuple[str, ...]:
    """Returns the name of each rule in a row, and "" for a rule that leaves its parameters alone."""
    names = [shown(pattern) for pattern in rules.patterns]
    if len(set(names)) < len(names):
        names = [f"{name} (rule {index})" for index, name in enumerate(names)]
    return tuple("" if r is None else name for name, r in zip(names, rules.regularizers, strict=True))


def _check_not_traced(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
            raise TypeError(
                f"`{name}` must have values, got traced ones: call `record` outside of `jax.jit` and other transforms, "
                "on what the compiled function returns"
            )


def _scalar(value: Any, *, name: str) -> Any:
    """Returns a number of the user, as it is or as an array of its own on the device."""
    if name == "step" or name.startswith("penalty/"):
        raise ValueError(f"`{name}` must have another name: those that begin with `penalty/` are names of penalties")
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.generic | np.ndarray | jax.Array):
        raise TypeError(f"`{name}` must be a real number, got {describe(value)}")
    return value if isinstance(value, int | float) else _kept(value, name=f"`{name}`")


def _kept(value: Any, *, name: str) -> jax.Array | np.ndarray:
    """Returns a copy of a scalar, since a state that it is a part of may be donated to the next step."""
    is_real = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.integer, jnp.floating))
    if not is_real or jnp.issubdtype(value.dtype, np.timedelta64):  # NumPy counts times among the integers
        raise TypeError(f"{name} must be a real number, got {describe(value)}")
    if value.ndim:
        raise ValueError(f"{name} must be a scalar, got {describe(value)}")
    return jnp.array(value) if isinstance(value, jax.Array) else np.array(value)


def _tracked(state: Any) -> dict[str, Any]:
    """Returns the penalties that the transforms in a state track, by their places."""
    found = {}
    for path, value in optax.tree.get_all_with_path(state, "penalty"):
        # A parameter may be called `penalty` too, and Adam has moments for it.
        if getattr(path[-1], "tuple_name", None) in _STATES and value is not None:
            places = [getattr(part, "name", None) or keystr((part,), simple=True) for part in path[:-1]]
            name = "/".join(("penalty/state", *places))
            (number,) = jax.tree.leaves(value)  # it may be in a box of NNX
            found[name] = _kept(number, name="each penalty in `state`")
    if not found:
        raise ValueError(
            f"`state` must hold a penalty that a transform tracks, as that of `jaxreg.add_penalty_gradients` does, "
            f"got {type(state).__name__} without one"
        )
    return found


def _number(value: Any) -> int | float:
    """Returns a scalar as a Python number."""
    if isinstance(value, int | float):
        return value
    return int(value) if np.issubdtype(value.dtype, np.integer) else float(value)


def _columns(rows: list[Row]) -> list[str]:
    """Returns the names that rows have, in the order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))
