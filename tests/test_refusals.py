"""Checks of arguments: every number, choice and array that the maths takes, with every bad value, in every form."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, PENALTIES, VARIANTS

import jaxreg
from jaxreg import penalties, prox

X = jnp.array([[1.0, -2.0], [0.5, 3.0]])

# The numbers that are never strengths, with where they are taken: a constructor takes stacked arrays, a function not.
FORMS = {
    "Python": lambda value: value,
    "NumPy float64": np.float64,
    "NumPy float32": np.float32,
    "NumPy array": np.asarray,
}


def bad_numbers(above):
    """Values out of range for a number that must be >= 0, or greater than `above`."""
    bound = "finite and >= 0" if above is None else f"finite and > {above:g}"
    lower = [-1.0, -1e-3] if above is None else [above, above - 0.5, -1.0]
    return [(value, bound) for value in (*lower, float("nan"), float("inf"), -float("inf"))]


def fitting(above):
    """A whole number that is greater than `above`, and at most 1 where that is possible."""
    return 4 if above else 1


# No numbers at all, in whatever form they come.
NO_NUMBERS = [
    (True, "must be a number, got bool True"),
    (np.bool_(True), "must be a number"),
    ("0.1", "must be a number, got str '0.1'"),
    ([0.1], "must be a number, got list"),
    (1j, "must be a number, got complex"),
    (np.complex64(1j), "must be a number"),
    (np.array("a"), "must hold numbers"),
    (np.array(True), "must hold numbers"),
    (jnp.complex64(1j), r"must be a real number, got complex64\[\]"),
    (jnp.array(True), r"must be a real number, got bool\[\]"),
    (jax.random.key(0), "must be a real number, got key"),
    (object(), "must be a number, got object"),
]
NO_ARRAYS_OF_NUMBERS = [(np.array(["a", "b"]), "must hold numbers"), (np.array([True]), "must hold numbers")]

# The arrays that a function must be given.
NEEDED = {"target", "weights"}


def numbers_of(function):
    """The keyword options whose default is a number."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if isinstance(p.default, float) and p.kind is p.KEYWORD_ONLY]


def calls():
    """Each function with each of its numbers, as a call with this number, its name and what it must be greater than."""
    for case in PENALTIES:
        rest = dict.fromkeys(NEEDED & set(case.options), X)
        functions = [(case.penalty, (X,)), (case.prox, (X, 0.5))]
        for function, arguments in functions:
            for name in numbers_of(function) if function is not None else ():
                yield function, arguments, rest, name, case.above.get(name)
    for case in PENALTIES:
        rest = dict.fromkeys(NEEDED & set(case.options), X)
        if case.prox is not None:
            yield lambda x, step, f=case.prox, **rest: f(x, step, **rest), (X,), rest, "step", None


OPTIONS = [
    pytest.param(lambda v, c=c: c[0](*c[1], **c[2], **{c[3]: v}), c[3], c[4], id=f"{i}-{c[3]}")
    for i, c in enumerate(calls())
]
options = pytest.mark.parametrize(("call", "name", "above"), OPTIONS)


def fields():
    """Each regularizer of the table with each field that is a number."""
    for case in PENALTIES:
        for field in dataclasses.fields(case.regularizer) if case.regularizer is not None else ():
            if isinstance(field.default, float):
                yield pytest.param(
                    lambda value, cls=case.regularizer, name=field.name: cls(**{name: value}),
                    field.name,
                    case.above.get(field.name),
                    id=f"{case.regularizer.__name__}-{field.name}",
                )


multiples = pytest.mark.parametrize(
    ("make", "name", "above"),
    [
        pytest.param(lambda value: value * jaxreg.L2(), "scale", None, id="from the left"),
        pytest.param(lambda value: jaxreg.L2() * value, "scale", None, id="from the right"),
    ],
)
constructors = pytest.mark.parametrize(("make", "name", "above"), list(fields()))


@options
def test_options_are_checked_in_every_form(call, name, above):
    for value, bound in bad_numbers(above):
        for form in FORMS.values():
            with pytest.raises(ValueError, match=f"`{name}` must be {bound}( and <= 1)?, got"):
                call(form(value))
    with pytest.raises(TypeError, match=f"`{name}` must be a number, got None"):
        call(None)
    for value, message in NO_NUMBERS:
        with pytest.raises(TypeError, match=f"`{name}` {message}"):
            call(value)


@options
def test_integers_are_checked_as_floats_are(call, name, above):
    for form in (int, np.int64, np.int32, np.asarray):
        with pytest.raises(ValueError, match=f"`{name}` must be finite and"):
            call(form(-3))
        call(form(fitting(above)))


@options
def test_values_of_jax_arrays_are_never_looked_at(call, name, above):
    for value, _ in bad_numbers(above):
        call(jnp.asarray(value))
        jax.eval_shape(call, jnp.asarray(value))


@options
def test_shapes_are_checked_under_a_tracer_too(call, name, above):
    """An array is refused, a shape of (1,) too, but where one for each weight is allowed."""
    for shape in ((1,), (2,), (1, 1)):
        for form in (jnp.asarray, np.asarray):
            with pytest.raises(ValueError, match=f"`{name}` must be a (scalar|number or an array)"):
                call(form(np.full(shape, float(fitting(above)))))
        with pytest.raises(ValueError, match=f"`{name}` must be a (scalar|number or an array)"):
            jax.jit(call)(jnp.full(shape, float(fitting(above))))
    for traced in (jnp.array(True), jnp.complex64(1j)):
        with pytest.raises(TypeError, match=f"`{name}` must be a real number"):
            jax.jit(call)(traced)


@constructors
def test_fields_are_checked_in_every_form(make, name, above):
    for value, bound in bad_numbers(above):
        for form in (*FORMS.values(), lambda value: np.array([1.5, value])):
            with pytest.raises(ValueError, match=f"`{name}` must be {bound}( and <= 1)?, got"):
                make(form(value))
        make(jnp.asarray(value))
        jax.eval_shape(make, jnp.asarray(value))


@constructors
def test_integers_become_floats(make, name, above):
    for form in (int, np.int64, np.int32):
        with pytest.raises(ValueError, match=f"`{name}` must be finite and"):
            make(form(-3))
        assert type(getattr(make(form(fitting(above))), name)) is float


@constructors
def test_fields_must_be_numbers(make, name, above):
    for value, message in (*NO_NUMBERS, *NO_ARRAYS_OF_NUMBERS):
        with pytest.raises(TypeError, match=f"`{name}` {message}"):
            make(value)
    for traced in (jnp.array(True), jnp.complex64(1j)):
        with pytest.raises(TypeError, match=f"`{name}` must be a real number"):
            jax.eval_shape(make, traced)


@multiples
def test_multiples_are_checked(make, name, above):
    test_fields_are_checked_in_every_form(make, name, above)
    test_integers_become_floats(make, name, above)
    # Python itself refuses the product with anything that is like no number.
    for value, message in (*NO_NUMBERS, *NO_ARRAYS_OF_NUMBERS):
        with pytest.raises(TypeError, match=f"`{name}` {message}|unsupported operand|can't multiply"):
            make(value)
    for value in (True, np.bool_(True), jnp.array(True), np.array(True)):
        with pytest.raises(TypeError, match=f"`{name}` must"):
            make(value)


@pytest.mark.parametrize("other", [None, "0.1", [0.1], object()], ids=["None", "text", "list", "object"])
def test_a_multiple_by_what_is_no_number_is_refused_by_python(other):
    for multiply in (lambda: other * jaxreg.L2(), lambda: jaxreg.L2() * other):
        with pytest.raises(TypeError, match=r"unsupported operand|can't multiply"):
            multiply()


def defaults(case):
    return [field for field in dataclasses.fields(case.regularizer) if isinstance(field.default, float)]


SHIPPED = [case for case in PENALTIES if case.regularizer is not None]


@pytest.mark.parametrize("case", [case for case in SHIPPED if case.none_is_default], ids=str)
def test_none_stands_for_the_default_where_keras_has_it(case):
    for field in defaults(case):
        assert case.regularizer(**{field.name: None}) == case.regularizer()


@pytest.mark.parametrize("case", [case for case in SHIPPED if not case.none_is_default], ids=str)
def test_none_is_no_number(case):
    for field in defaults(case):
        with pytest.raises(TypeError, match=f"`{field.name}` must be a number, got None"):
            case.regularizer(**{field.name: None})


# Arrays, and anything in their place.

BAD_X = [
    (jnp.arange(3), r"got int32\[3\]"),
    (np.arange(3), r"got int32\[3\]"),
    (jnp.ones(3, complex), r"got complex64\[3\]"),
    (jnp.ones(3, bool), r"got bool\[3\]"),
    ("kernel", "got str 'kernel'"),
    ({"a": X}, "got dict; for a tree of arrays use `jaxreg.Rules`"),
    (jax.ShapeDtypeStruct((2,), jnp.float32), r"got float32\[2\] without values; for shapes use `jax.eval_shape`"),
    (None, "got None"),
    (jax.random.key(0), "got key"),
    (3, r"got int32\[\]"),
]
one_each = pytest.mark.parametrize(
    "case",
    [next(v for v in VARIANTS if v.case is case) for case in PENALTIES if case.name in penalties.__all__],
    ids=str,
)


@one_each
def test_every_penalty_and_prox_takes_a_real_array_alone(case):
    static, given = dict(case.static), case.numbers(case.shape)
    calls = [lambda x: case.case.penalty(x, **static, **given)]
    if case.case.prox is not None:
        calls += [lambda x: case.case.prox(x, 1.0, **static, **given)]
    for call in calls:
        for x, message in BAD_X:
            with pytest.raises(TypeError, match=f"`x` must be a real floating-point array, {message}"):
                call(x)


# Axes: those of groups, and those of matrices.

BAD_AXES = [
    (2, ValueError, r"must lie in \[-2, 2\) for rank 2"),
    (-3, ValueError, r"must lie in \[-2, 2\) for rank 2"),
    ((0, 2), ValueError, r"must lie in \[-2, 2\) for rank 2"),
    ((1, -1), ValueError, "must name each axis once"),
    (np.int64(5), ValueError, r"must lie in \[-2, 2\) for rank 2"),
    (1.0, TypeError, "must be an int or a tuple of ints, got float 1.0"),
    (True, TypeError, "must be an int or a tuple of ints"),
    ("0", TypeError, "must be an int or a tuple of ints"),
    ((0.0,), TypeError, "must be an int or a tuple of ints"),
    (None, TypeError, "must be an int or a tuple of ints"),
]


def axis_calls():
    for case in CASES:
        for function in (case.penalty, case.prox, case.regularizer):
            if function is None or case.penalty not in {getattr(penalties, name) for name in penalties.__all__}:
                continue
            if case.penalty is penalties.conv_orthogonal:
                continue  # a kernel of a convolution has three axes at least: test_orthogonality.py
            for name in inspect.signature(function).parameters:
                if name.endswith("_axis"):
                    if isinstance(function, type):
                        yield lambda value, f=function, n=name: f(**{n: value})(X), name
                    else:
                        step = {"step": 1.0} if "step" in inspect.signature(function).parameters else {}
                        yield lambda value, f=function, n=name, s=step: f(X, **s, **{n: value}), name


AXIS_CALLS = list(axis_calls())
axis_options = pytest.mark.parametrize(
    ("call", "name"), AXIS_CALLS, ids=[f"{i}-{n}" for i, (_, n) in enumerate(AXIS_CALLS)]
)


@axis_options
def test_axes_are_checked(call, name):
    for value, error, message in BAD_AXES:
        with pytest.raises(error, match=f"`{name}` {message}"):
            call(value)


@pytest.mark.parametrize(("call", "name"), [c for c in AXIS_CALLS if c[1] == "out_axis"])
def test_columns_need_an_axis(call, name):
    with pytest.raises(ValueError, match=rf"`{name}` must name at least one axis, got \(\)"):
        call(())


# Calls whose array has columns or groups beside its batch come in pairs of options.
BESIDE_A_BATCH = [
    call
    for call, (_, before) in zip(AXIS_CALLS, [(None, ""), *AXIS_CALLS], strict=False)
    if call[1] == "batch_axis" and before in ("out_axis", "group_axis")
]


@pytest.mark.parametrize(("call", "name"), BESIDE_A_BATCH)
def test_batches_share_no_axis_with_columns_or_groups(call, name):
    with pytest.raises(ValueError, match=r"`(out|group)_axis` and `batch_axis` must not share an axis.*share \[1\]"):
        call(1)


@pytest.mark.parametrize(("call", "name"), [c for c in AXIS_CALLS if c[1] == "out_axis"])
def test_matrices_need_an_axis_for_their_rows(call, name):
    with pytest.raises(ValueError, match=r"leave no axis of float32\[2,2\] for the rows"):
        call((0, 1))


@pytest.mark.parametrize(
    "call",
    [
        penalties.orthogonal,
        penalties.frame_potential,
        penalties.nuclear,
        penalties.spectral,
        lambda x: prox.nuclear(x, 1.0),
        lambda x: prox.spectral(x, 1.0),
        jaxreg.OrthogonalRegularizer(),
        jaxreg.FramePotential(),
        jaxreg.Nuclear(),
        jaxreg.Spectral(),
    ],
)
def test_a_vector_is_no_matrix(call):
    with pytest.raises(ValueError, match=r"`x` must have rank >= 2 .*float32\[3\].*another rule"):
        call(jnp.ones(3))
    with pytest.raises(ValueError, match=r"`x` must have rank >= 2"):
        jax.eval_shape(call, jax.ShapeDtypeStruct((3,), jnp.float32))


@pytest.mark.parametrize(
    "call", [penalties.group_lasso, penalties.sparse_group_lasso, lambda x: prox.group_lasso(x, 1.0)]
)
def test_a_scalar_has_no_groups(call):
    with pytest.raises(ValueError, match=r"`group_axis` must lie in \[-0, 0\) for rank 0"):
        call(jnp.ones(()))


@pytest.mark.parametrize("axis", [2, -3])
def test_the_axis_of_signals_is_one_of_the_array(axis):
    for call in (
        lambda: penalties.total_variation(X, axis=axis),
        lambda: prox.total_variation(X, 1.0, axis=axis),
        lambda: penalties.fused_lasso(X, axis=axis),
        lambda: jaxreg.TotalVariation(1.0, axis)(X),
        lambda: jaxreg.Rules((r"", jaxreg.FusedLasso(1.0, axis))).explain(X),
    ):
        with pytest.raises(ValueError, match=r"`axis` must lie in \[-2, 2\) for rank 2"):
            call()


# Choices.

BAD_CHOICES = {
    "mode": [
        ("row", ValueError, "must be 'rows' or 'columns', got 'row'"),
        (None, ValueError, "must be 'rows' or 'columns'"),
        (0, ValueError, "must be 'rows' or 'columns'"),
    ],
    "size_weighted": [
        (1, TypeError, "must be a bool, got int 1"),
        (None, TypeError, "must be a bool, got None"),
        ("yes", TypeError, "must be a bool, got str 'yes'"),
    ],
    "axis": [
        (1.5, TypeError, "must be an int, got float 1.5"),
        (True, TypeError, "must be an int, got bool"),
        ((0,), TypeError, "must be an int, got tuple"),
        (None, TypeError, "must be an int, got None"),
    ],
    "stride": [
        (0, ValueError, "must be at least 1, got 0"),
        (1.5, TypeError, "must be an int, got float 1.5"),
        (True, TypeError, "must be an int, got bool"),
        ((2, 2), TypeError, "must be an int, got tuple"),
    ],
    "steps": [
        (0, ValueError, "must be >= 1, got 0"),
        (2.0, TypeError, "must be an int, got float 2.0"),
        (True, TypeError, "must be an int, got bool"),
    ],
    "squared": [
        (1, TypeError, "must be a bool, got int 1"),
        (None, TypeError, "must be a bool, got None"),
    ],
    "p": [
        (0.5, ValueError, "must be a finite number >= 1, in float32, got 0.5"),
        (float("inf"), ValueError, "must be a finite number >= 1, in float32, got inf"),
        (float("nan"), ValueError, "must be a finite number >= 1, in float32, got nan"),
        (1e39, ValueError, "must be a finite number >= 1, in float32, got 1e\\+39"),
        (10**400, ValueError, "must be a finite number >= 1, in float32"),
        (True, TypeError, "must be a number >= 1, got bool"),
        ("4", TypeError, "must be a number >= 1, got str '4'"),
        (None, TypeError, "must be a number >= 1, got None"),
    ],
    "sharpness": [
        (0, ValueError, "must be a finite number > 0 or None, in float32, got 0"),
        (-1.0, ValueError, "must be a finite number > 0 or None, in float32, got -1.0"),
        (float("inf"), ValueError, "must be a finite number > 0 or None, in float32, got inf"),
        (1e39, ValueError, "must be a finite number > 0 or None, in float32"),
        (1e-50, ValueError, "must be a finite number > 0 or None, in float32"),
        (True, TypeError, "must be a number > 0 or None, got bool"),
        ("1", TypeError, "must be a number > 0 or None, got str '1'"),
    ],
    "sample": [
        (1, ValueError, "must be at least 2, .* got 1"),
        (-3, ValueError, "must be at least 2"),
        (2.0, TypeError, "must be an int or None, got float 2.0"),
        (True, TypeError, "must be an int or None, got bool"),
        ("2", TypeError, "must be an int or None, got str '2'"),
    ],
}


def choice_calls():
    for case in PENALTIES:
        for function in (case.penalty, case.prox, case.regularizer):
            if function is None or not (function.__module__ or "").startswith("jaxreg"):
                continue
            parameters = inspect.signature(function).parameters
            for name in set(parameters) & set(BAD_CHOICES):
                arguments = () if isinstance(function, type) else (X, 1.0)[: 1 + ("step" in parameters)]
                label = f"{function.__module__}.{function.__name__}-{name}"
                yield pytest.param(lambda v, f=function, a=arguments, n=name: f(*a, **{n: v}), name, id=label)


@pytest.mark.parametrize(("call", "name"), sorted(choice_calls(), key=lambda param: param.id))
def test_choices_are_checked_where_they_are_made(call, name):
    for value, error, message in BAD_CHOICES[name]:
        with pytest.raises(error, match=f"`{name}` {message}"):
            call(value)


def test_every_choice_is_in_the_tables():
    """Options of the maths are numbers, axes or choices, and each has a table of bad values here."""
    found = set()
    for module in (penalties, prox):
        for function in (getattr(module, name) for name in module.__all__):
            parameters = inspect.signature(function).parameters.values()
            found |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and not isinstance(p.default, float)}
    axes = {name for name in found if name.endswith("_axis")}
    # The names of mesh axes are checked in test_activity.py and test_pairs.py.
    assert found - axes == {*BAD_CHOICES, *NEEDED, "precision", "key", "axis_name"}


# Arrays of the shape of x.

BAD_ARRAYS = [
    (jnp.ones(2), r"of the shape of `x`, \(2, 2\), got float32\[2\]"),
    (jnp.ones((1, 2)), r"of the shape of `x`, \(2, 2\), got float32\[1,2\]"),
    (jnp.ones((2, 1)), r"of the shape of `x`"),
    (jnp.ones((1, 1)), r"of the shape of `x`"),
    (np.ones((3, 2)), r"of the shape of `x`"),
    (jnp.ones((1, 2, 2)), r"of the shape of `x`"),
]


@pytest.mark.parametrize("call", [penalties.anchor, lambda x, **options: prox.anchor(x, 1.0, **options)])
def test_arrays_for_each_weight_have_its_shape(call):
    for value, message in BAD_ARRAYS:
        for form in (lambda f, v: f(v), lambda f, v: jax.jit(f)(v)):
            with pytest.raises(ValueError, match=f"`target` must be an array {message}"):
                form(lambda v: call(X, target=v), value)
            with pytest.raises(ValueError, match=f"`fisher` must be a number or an array {message}"):
                form(lambda v: call(X, target=X, fisher=v), value)
    for scalar in (1.0, np.float32(1.0), jnp.float32(1.0)):
        with pytest.raises(ValueError, match="`target` must be an array of the shape of `x`"):
            call(X, target=scalar)
    for no_number in ("x", None, jnp.ones((2, 2), bool), jnp.ones((2, 2), complex)):
        with pytest.raises(TypeError, match="`target` must be a real number, got"):
            call(X, target=no_number)
    for bad in (np.array([[1.0, -1.0], [1.0, 1.0]]), np.full((2, 2), np.nan), np.full((2, 2), np.inf)):
        with pytest.raises(ValueError, match="`fisher` must be finite and >= 0"):
            call(X, target=X, fisher=bad)
    with pytest.raises(TypeError, match="required keyword-only argument: 'target'"):
        call(X)


@pytest.mark.parametrize("call", [penalties.weighted_l1, lambda x, **options: prox.weighted_l1(x, 1.0, **options)])
def test_numbers_for_each_weight_have_its_shape(call):
    for value, message in BAD_ARRAYS:
        for form in (lambda f, v: f(v), lambda f, v: jax.jit(f)(v)):
            with pytest.raises(ValueError, match=f"`weights` must be a number or an array {message}"):
                form(lambda v: call(X, weights=v), value)
    for no_number in ("x", None, jnp.ones((2, 2), bool), jnp.ones((2, 2), complex)):
        with pytest.raises(TypeError, match=r"`weights` must be a (real )?number, got"):
            call(X, weights=no_number)
    for bad in (-1.0, np.array([[1.0, -1.0], [1.0, 1.0]]), np.full((2, 2), np.nan), np.full((2, 2), np.inf)):
        with pytest.raises(ValueError, match="`weights` must be finite and >= 0"):
            call(X, weights=bad)
    with pytest.raises(TypeError, match="required keyword-only argument: 'weights'"):
        call(X)


@pytest.mark.parametrize("case", [case for case in PENALTIES if case.prox is not None], ids=str)
def test_steps_have_the_shape_of_x_or_none(case):
    rest = dict.fromkeys(NEEDED & set(case.options), X)
    for step in [jnp.ones(2), jnp.ones((1, 2)), jnp.ones((1,)), jnp.ones((1, 1))]:
        for call in (case.prox, jax.jit(case.prox)):
            with pytest.raises(ValueError, match="`step` must be a scalar"):
                call(X, step, **rest)
    for bad in (np.array([[1.0, -1.0], [1.0, 1.0]]), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="`step` must be finite and >= 0"):
            case.prox(X, bad, **rest)


@pytest.mark.parametrize("case", [case for case in PENALTIES if case.prox and not case.steps_for_each], ids=str)
def test_weights_that_are_not_separate_take_one_step(case):
    for call in (case.prox, jax.jit(case.prox)):
        with pytest.raises(ValueError, match=r"`step` must be a scalar, since .* not separate; got float32\[2,2\]"):
            call(X, jnp.ones((2, 2)))


def test_a_sample_needs_a_key():
    with pytest.raises(ValueError, match="`key` must be given where `sample` is, got None for sample=2"):
        penalties.orthogonal(jnp.eye(3), sample=2)


def test_bad_input_is_an_error_at_trace_time():
    with pytest.raises(ValueError, match="rank >= 2"):
        jax.eval_shape(jaxreg.OrthogonalRegularizer(), jax.ShapeDtypeStruct((3,), jnp.float32))
