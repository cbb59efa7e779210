"""One table of the ways to put rules into an optimizer, each with its steps written in NumPy.

A new transform is one row of `TRANSFORMS`. Every test of `test_wrappers.py` runs over the rows: exceptions are
flags of the row.
"""

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

import jaxreg
from jaxreg import L1, L1L2, Rules

RATE, B1, B2, EPS, EPS_ROOT, CAP = 0.1, 0.8, 0.9, 1e-3, 1e-4, 2.0

# The strengths of L1 and L2 by the last name of a path. The rules name no other parameter, and leave the head alone.
STRENGTHS = {"kernel": (2.0, 0.2), "bias": (1.0, 0.0)}
NAMES = {"w": "kernel", "b": "bias"}


def rules(strengths: Any = STRENGTHS) -> Rules:
    return Rules(
        (r"head", None),
        (r"(kernel|/w)$", L1L2(*strengths["kernel"])),
        (r"(bias|/b)$", L1(strengths["bias"][0])),
    )


RULES = rules()


class Reference:
    """A transform in NumPy, with what its optimizer remembers and the penalty at the parameters that it met last.

    Parameters and gradients are dicts from paths to float64 arrays.
    """

    def __init__(self, row: "Transform", strengths: Any = STRENGTHS):
        self._step, self._strengths = row.step, strengths
        self._memory: Any = defaultdict(dict)
        self.penalty = 0.0

    def of(self, path: str) -> tuple[float, float]:
        """The strengths of L1 and L2 for the parameter at `path`."""
        *parents, name = path.split("/")
        return (0.0, 0.0) if "head" in "/".join(parents) else self._strengths[NAMES.get(name, name)]

    def cost(self, params: Any) -> float:
        """The penalty of `params`."""
        return sum(
            self.of(path)[0] * np.abs(x).sum() + self.of(path)[1] * np.square(x).sum() for path, x in params.items()
        )

    def step(self, params: Any, gradients: Any, rate: float = RATE) -> Any:
        self.penalty = self.cost(params)
        return {
            path: self._step(x, gradients[path], *self.of(path), rate, self._memory[path]) for path, x in params.items()
        }


def soft(x: np.ndarray, threshold: Any) -> np.ndarray:
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0)


# Optimizers in NumPy: the update, and the diagonal D of the metric that it was made in.


def plain(gradient, rate, memory):
    """No optimizer: the gradients are the updates."""
    return gradient, np.ones_like(gradient)


def sgd(gradient, rate, memory):
    return -rate * gradient, np.ones_like(gradient)


def adam(gradient, rate, memory):
    t = memory["t"] = memory.get("t", 0) + 1
    m = memory["m"] = B1 * memory.get("m", 0.0) + (1 - B1) * gradient
    v = memory["v"] = B2 * memory.get("v", 0.0) + (1 - B2) * gradient**2
    metric = np.sqrt(v / (1 - B2**t) + EPS_ROOT) + EPS
    return -rate * m / (1 - B1**t) / metric, metric


# Placements in NumPy.


def coupled(optimizer):
    def step(x, gradient, l1, l2, rate, memory):
        return x + optimizer(gradient + l1 * np.sign(x) + 2 * l2 * x, rate, memory)[0]

    return step


def decoupled(optimizer):
    def step(x, gradient, l1, l2, rate, memory):
        return x + optimizer(gradient, rate, memory)[0] - rate * (l1 * np.sign(x) + 2 * l2 * x)

    return step


def proximal(optimizer, *, in_metric=False, cap=None):
    def step(x, gradient, l1, l2, rate, memory):
        update, metric = optimizer(gradient, rate, memory)
        moved = x + update
        size = rate / metric if in_metric else rate
        shrunk = soft(moved, size * l1) / (1 + 2 * size * l2)
        return shrunk if cap is None else moved + np.clip(shrunk - moved, -cap * rate, cap * rate)

    return step


# The same in optax.

ADAM = {"b1": B1, "b2": B2, "eps": EPS, "eps_root": EPS_ROOT}
METRIC = {"metric": "adam", "b2": B2, "eps": EPS, "eps_root": EPS_ROOT, "cap": CAP}


def _alone(transform):
    return transform


def _added(rules, options):
    return optax.chain(optax.identity(), *(jaxreg.add_penalty_gradients(one, **options) for one in rules))


def _make_plain(rate, *rules, around=_alone, **options):
    return _added(rules, options)


def _make_coupled(optimizer):
    def make(rate, *rules, around=_alone, **options):
        return optax.chain(_added(rules, options), around(optimizer(rate)))

    return make


def _make_decoupled_adam(rate, *rules, around=_alone, **options):
    scale_by_rate = optax.scale_by_learning_rate(rate)
    return optax.chain(around(optax.scale_by_adam(**ADAM)), _added(rules, options), around(scale_by_rate))


def _make_around_adam(rate, *rules, around=_alone, **options):
    return functools.reduce(
        lambda tx, one: jaxreg.decoupled(tx, one, rate, **options), rules, around(optax.adam(rate, **ADAM))
    )


def _make_proximal(optimizer, **metric):
    def make(rate, *rules, around=_alone, **options):
        return functools.reduce(
            lambda tx, one: jaxreg.proximal(tx, one, rate, **metric, **options), rules, around(optimizer(rate))
        )

    return make


def _adam(rate):
    return optax.adam(rate, **ADAM)


class Transform(NamedTuple):
    """A row of the table.

    Attributes:
      name: what pytest shows.
      make: the optimizer from its learning rate and any number of rules, which are put in one after the other. Without
        rules it is the optimizer alone. `around` wraps the optimizer inside, and other options are those of the
        transform: `track`, `key`.
      step: a step of one parameter in NumPy.
      state: the type of the state of the transform.
      zeros: whether weights become exactly zero.
      widens: whether updates come in the wider dtype of update and parameter, instead of the dtype of the update.
      takes_narrow: whether gradients may be narrower than parameters where a wrapper compares dtypes before and after.
      adam: whether the optimizer has Adam's moments.
      unchecked: the option that leaves out the checks of the optimizer inside.
    """

    name: str
    make: Callable[..., optax.GradientTransformationExtraArgs]
    step: Callable[..., np.ndarray]
    state: type = jaxreg.PenaltyState
    zeros: bool = False
    widens: bool = False
    takes_narrow: bool = False
    adam: bool = False
    unchecked: tuple[tuple[str, bool], ...] = ()

    def __repr__(self):
        return self.name


def _proximal_row(name, optimizer, step, *, adam=False, **metric):
    make = _make_proximal(optimizer, **metric)
    return Transform(
        name, make, step, jaxreg.ProximalState, zeros=True, widens=True, adam=adam, unchecked=(("check", False),)
    )


TRANSFORMS = (
    Transform("gradients alone", _make_plain, coupled(plain), takes_narrow=True),
    Transform("coupled, SGD", _make_coupled(optax.sgd), coupled(sgd), takes_narrow=True),
    Transform("coupled, Adam", _make_coupled(_adam), coupled(adam), adam=True),
    Transform("decoupled, Adam", _make_decoupled_adam, decoupled(adam), adam=True),
    Transform("decoupled around Adam", _make_around_adam, decoupled(adam), jaxreg.DecoupledState, adam=True),
    _proximal_row("proximal, SGD", optax.sgd, proximal(sgd)),
    _proximal_row("proximal, Adam", _adam, proximal(adam), adam=True, metric="euclidean"),
    _proximal_row("proximal, Adam in its metric", _adam, proximal(adam, in_metric=True, cap=CAP), adam=True, **METRIC),
)


# Parameters and gradients. Flat dicts have paths for keys.


def numbers(seed: int, shape=(4, 3)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"hidden/kernel": shape, "hidden/bias": shape[-1:], "head/kernel": (shape[-1], 2)}
    return {path: rng.normal(size=size).astype(np.float32).astype(np.float64) for path, size in shapes.items()}


def nested(flat: Any, dtype: Any = jnp.float32) -> Any:
    """The nested dict of jax arrays of a flat dict of NumPy arrays."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), unflatten_dict(flat, sep="/"))


def flat(tree: Any) -> dict[str, np.ndarray]:
    """The flat dict of NumPy arrays of a nested dict, in float64, which holds every value of the other dtypes."""
    return {path: np.asarray(x, np.float64) for path, x in flatten_dict(tree, sep="/").items()}


PARAMS = numbers(0)
GRADIENTS = [numbers(seed) for seed in range(1, 5)]
