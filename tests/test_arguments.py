"""The numbers that transforms take: each check is tried with Python's, NumPy's, jax's and traced numbers."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from transform_cases import ADAM, GRADIENTS, METRIC, PARAMS, RATE, RULES, nested

import jaxreg
from jaxreg import activity_penalty, add_penalty_gradients, proximal

pytestmark = pytest.mark.standard_promotion


def updated(tx):
    params = nested(PARAMS)
    return jnp.sum(tx.update(nested(GRADIENTS[0]), tx.init(params), params)[0]["hidden"]["kernel"])


def in_metric(**options):
    return updated(
        proximal(optax.adam(RATE, **ADAM), RULES, **({"learning_rate": RATE, "check": False} | METRIC | options))
    )


def batch(size):
    return activity_penalty(jaxreg.Rules((r"", jaxreg.L2(0.5))), jnp.arange(3.0), batch_size=size)


class Argument(NamedTuple):
    """A number that a function takes.

    Attributes:
      use: what comes of it, a scalar.
      good: a value that it may have.
      bad: values that are numbers of its kind, and out of its range.
      integer: whether it counts something.
      none: whether None is a value that it may have.
      by_schedule: what comes of a function that returns it, where that is allowed.
    """

    use: Callable[[Any], jax.Array]
    good: float
    bad: tuple[float, ...]
    integer: bool = False
    none: bool = False
    by_schedule: Callable[[Any], jax.Array] | None = None


def scale(value):
    return updated(add_penalty_gradients(RULES, scale=value))


def learning_rate(value):
    return updated(proximal(optax.sgd(RATE), RULES, value, check=False))


NEGATIVE = (-1.0, -1e-30, math.nan, math.inf, -math.inf)
ARGUMENTS = {
    "scale": Argument(scale, 2.0, NEGATIVE, by_schedule=lambda value: scale(lambda count: value)),
    "learning_rate": Argument(
        learning_rate, 2.0, NEGATIVE, by_schedule=lambda value: learning_rate(lambda count: value)
    ),
    "b2": Argument(lambda value: in_metric(b2=value), 0.0, (*NEGATIVE, 1.0, 2.0)),
    "eps": Argument(lambda value: in_metric(eps=value), 2.0, NEGATIVE),
    "eps_root": Argument(lambda value: in_metric(eps_root=value), 2.0, NEGATIVE),
    "cap": Argument(lambda value: in_metric(cap=value), 2.0, (*NEGATIVE, 0.0, 1.0), none=True),
    "batch_size": Argument(batch, 3, (-1, -3, -(2**31)), integer=True),
}
every_argument = pytest.mark.parametrize(("name", "argument"), ARGUMENTS.items(), ids=ARGUMENTS)


def forms(value, *, integer):
    """A value as every scalar of Python and NumPy that holds it."""
    if integer:
        return [value, np.int32(value), np.int64(value), np.asarray(value)]
    floats = [value, np.float32(value), np.float64(value), np.asarray(value, np.float32), np.asarray(value)]
    whole = math.isfinite(value) and value == int(value)
    return floats + ([int(value), np.int32(value), np.int64(value), np.asarray(int(value))] if whole else [])


@every_argument
def test_every_form_of_a_number_is_the_same_number(name, argument):
    expected = argument.use(argument.good)
    assert np.isfinite(expected)
    jitted = jax.jit(argument.use)
    for value in forms(argument.good, integer=argument.integer):
        np.testing.assert_allclose(argument.use(value), expected, rtol=1e-6, err_msg=repr(value))
        np.testing.assert_allclose(argument.use(jnp.asarray(value)), expected, rtol=1e-6, err_msg=repr(value))
    for value in (argument.good, int(argument.good)):
        np.testing.assert_allclose(jitted(value), expected, rtol=1e-6)
    narrow = jnp.int8 if argument.integer else jnp.bfloat16
    np.testing.assert_allclose(argument.use(jnp.asarray(argument.good, narrow)), expected, rtol=1e-6)


@every_argument
def test_numbers_out_of_range(name, argument):
    for bad in argument.bad:
        for value in forms(bad, integer=argument.integer):
            with pytest.raises(ValueError, match=rf"`{name}` must be (finite and )?(>=?|<) \d, got"):
                argument.use(value)


@every_argument
def test_the_values_of_jax_arrays_are_not_inspected(name, argument):
    """They may be traced, so a value out of range shows in the result, or is mended, as it would be there."""
    traced = jax.jit(argument.use)
    for bad in argument.bad:
        value = jnp.asarray(bad)
        np.testing.assert_allclose(argument.use(value), traced(value), rtol=1e-5)


@every_argument
@pytest.mark.parametrize("shape", [(1,), (2,), (1, 1), (0,)])
def test_numbers_are_scalars(shape, name, argument):
    value = np.full(shape, argument.good)
    for given in (value, jnp.asarray(value)):
        with pytest.raises(ValueError, match=rf"`{name}` must be a scalar, got (float|int)\d\d\["):
            argument.use(given)
    with pytest.raises(ValueError, match=rf"`{name}` must be a scalar, got (float|int)\d\d\["):
        jax.jit(argument.use)(value)


NO_NUMBERS = {
    "a string": "x",
    "a bool": True,
    "a NumPy bool": np.bool_(True),
    "a NumPy array of a bool": np.asarray(True),
    "a jax bool": jnp.asarray(True),
    "a complex number": 1j,
    "a NumPy complex number": np.complex64(1j),
    "a jax complex number": jnp.asarray(1j),
    "a list": [1.0],
    "a NumPy string": np.asarray("x"),
    "a NumPy object": np.asarray(None),
    "a key": jax.random.key(0),
}


@every_argument
@pytest.mark.parametrize("value", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_what_is_no_number(value, name, argument):
    with pytest.raises(TypeError, match=rf"`{name}` must (be|hold) (a|an)? ?(real )?(number|integer)s?.*, got"):
        argument.use(value)


@every_argument
@pytest.mark.parametrize("value", [True, 1j], ids=["bool", "complex"])
def test_what_is_no_number_is_an_error_where_it_is_traced(value, name, argument):
    with pytest.raises(TypeError, match=rf"`{name}` must (be|hold) (a|an)? ?(real )?(number|integer)s?.*, got"):
        jax.jit(argument.use)(value)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, argument in ARGUMENTS.items() if not argument.none]
)
def test_none_is_no_number(name, argument):
    with pytest.raises(TypeError, match=rf"`{name}` must be an? (number|integer), got None"):
        argument.use(None)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, argument in ARGUMENTS.items() if argument.none]
)
def test_none_is_allowed(name, argument):
    assert np.isfinite(argument.use(None))


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, argument in ARGUMENTS.items() if argument.integer]
)
def test_an_integer_is_no_float(name, argument):
    for value in (3.0, np.float32(3), np.float64(3), np.asarray(3.0), jnp.asarray(3.0)):
        with pytest.raises(TypeError, match=rf"`{name}` must be an integer, got float"):
            argument.use(value)
    with pytest.raises(TypeError, match=rf"`{name}` must be an integer, got float32\[\]"):
        jax.jit(argument.use)(3.0)


SCHEDULED = [(name, argument) for name, argument in ARGUMENTS.items() if argument.by_schedule]


@pytest.mark.parametrize(("name", "argument"), SCHEDULED)
def test_a_schedule_may_return_every_form_of_a_number(name, argument):
    expected = argument.use(argument.good)
    values = forms(argument.good, integer=False)
    for value in (*values, *map(jnp.asarray, values), jnp.asarray(argument.good, jnp.bfloat16)):
        np.testing.assert_allclose(argument.by_schedule(value), expected, rtol=1e-6, err_msg=repr(value))


@pytest.mark.parametrize(("name", "argument"), SCHEDULED)
@pytest.mark.parametrize("value", [*NO_NUMBERS.values(), None], ids=[*NO_NUMBERS, "None"])
def test_a_schedule_must_return_a_number(value, name, argument):
    with pytest.raises(TypeError, match=rf"`{name}` must be a real number, got"):
        argument.by_schedule(value)


@pytest.mark.parametrize(("name", "argument"), SCHEDULED)
@pytest.mark.parametrize("value", [np.ones(1), np.ones(2), jnp.ones(1), jnp.ones(2)])
def test_a_schedule_must_return_a_scalar(value, name, argument):
    with pytest.raises(ValueError, match=rf"`{name}` must be a scalar, got float\d\d\["):
        argument.by_schedule(value)
