"""Regularizers as objects: what their constructors check, how they add and scale, and how they are subclassed."""

import dataclasses
import enum
import functools
import pickle

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxreg
from jaxreg import penalties

X = jnp.array([[1.0, -2.0], [0.5, 3.0]])
L1, L2 = jaxreg.L1(0.1), jaxreg.L2(0.2)


def test_keras_arguments_to_the_letter():
    assert jaxreg.L1() == jaxreg.L1(0.01) == jaxreg.L1(l1=0.01) == jaxreg.L1(None)
    assert jaxreg.L2() == jaxreg.L2(0.01) == jaxreg.L2(l2=0.01) == jaxreg.L2(None)
    assert jaxreg.L1L2() == jaxreg.L1L2(0.0, 0.0) == jaxreg.L1L2(l1=None, l2=None)
    default = jaxreg.OrthogonalRegularizer()
    assert default == jaxreg.OrthogonalRegularizer(0.01, "rows") == jaxreg.OrthogonalRegularizer(mode="rows")
    with pytest.raises(TypeError, match="`factor` must be a number, got None"):
        jaxreg.OrthogonalRegularizer(None)


def test_the_number_is_kept_as_given():
    assert jaxreg.L2(0.1).get_config() == {"l2": 0.1}
    assert type(jaxreg.L2(1).l2) is float
    assert jaxreg.L2(np.float32(0.1)).l2 == np.float32(0.1)
    array = jnp.asarray(0.1)
    assert jaxreg.L2(array).l2 is array


def test_a_regularizer_is_frozen():
    regularizer = jaxreg.L2(0.1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="l2"):
        regularizer.l2 = 0.2
    with pytest.raises(dataclasses.FrozenInstanceError, match="l2"):
        del regularizer.l2
    assert dataclasses.replace(regularizer, l2=0.2) == jaxreg.L2(0.2)
    assert hash(regularizer) == hash(jaxreg.L2(0.1))
    assert pickle.loads(pickle.dumps(regularizer)) == regularizer


def test_numpy_scales_and_jax_scales():
    for scale in (2, 2.0, np.float64(2.0), np.float32(2.0), np.array(2.0), jnp.asarray(2.0)):
        for scaled in (scale * jaxreg.L2(0.5), jaxreg.L2(0.5) * scale):
            assert isinstance(scaled, jaxreg.Regularizer)
            assert scaled(X) == jaxreg.L2(1.0)(X)


def test_sums_are_flat_and_start_at_zero():
    a, b, c = jaxreg.L1(0.1), jaxreg.L2(0.2), jaxreg.L2(0.3)
    assert repr((a + b) + c) == repr(a + (b + c)) == repr(sum([a, b, c]))
    assert sum([a]) is a
    assert a + 0 is a
    assert repr(penalties.l2 + a) == "l2 + L1(l1=0.1)"


def test_negative_strengths_exist_as_pytrees_only():
    negative = jax.tree.map(jnp.negative, jaxreg.L2(0.5))
    assert negative(X) == -jaxreg.L2(0.5)(X)
    assert jax.grad(lambda r: (1.0 - r(X)) ** 2)(jaxreg.L2(0.0)).l2 < 0


STRENGTH_ERRORS = [
    (-1.0, ValueError, "must be finite and >= 0, got -1.0"),
    (-1, ValueError, "must be finite and >= 0"),
    (float("nan"), ValueError, "must be finite and >= 0, got nan"),
    (float("inf"), ValueError, "must be finite and >= 0, got inf"),
    (np.float32(-2.0), ValueError, "must be finite and >= 0"),
    (np.array([0.1, -0.1]), ValueError, "must be finite and >= 0"),
    (np.array(["a"]), TypeError, "must hold numbers"),
    (np.array([True]), TypeError, "must hold numbers"),
    (True, TypeError, "must be a number, got bool True"),
    (np.bool_(True), TypeError, "must be a number"),
    ("0.1", TypeError, "must be a number, got str '0.1'"),
    ([0.1], TypeError, "must be a number, got list"),
    (1j, TypeError, "must be a number, got complex"),
    (jnp.complex64(1j), TypeError, r"must be a real number, got complex64\[\]"),
    (jnp.array(True), TypeError, r"must be a real number, got bool\[\]"),
    (jax.random.key(0), TypeError, "must be a real number, got key"),
]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (jaxreg.L1, "l1"),
        (jaxreg.L2, "l2"),
        (lambda s: jaxreg.L1L2(l1=s), "l1"),
        (lambda s: jaxreg.L1L2(l2=s), "l2"),
        (jaxreg.OrthogonalRegularizer, "factor"),
        (lambda s: jaxreg.add_penalty_gradients(jaxreg.L2(), scale=s), "scale"),
    ],
)
@pytest.mark.parametrize(("value", "error", "message"), STRENGTH_ERRORS)
def test_constructors_check_numbers(make, name, value, error, message):
    with pytest.raises(error, match=f"`{name}` {message}"):
        make(value)


def test_scales_are_checked():
    with pytest.raises(ValueError, match="`scale` must be finite and >= 0, got -1"):
        -1.0 * jaxreg.L2()
    with pytest.raises(TypeError, match=r"`scale` must be a number, got bool"):
        jaxreg.L2() * True
    with pytest.raises(TypeError, match="unsupported operand"):
        jaxreg.L2() * None
    for other in (1.0, "l2", None, jaxreg.L1):
        with pytest.raises(TypeError, match="unsupported operand"):
            jaxreg.L2() + other
        with pytest.raises(TypeError, match=r"unsupported operand|can only concatenate"):
            other + jaxreg.L2()


PENALTY_ERRORS = [
    (lambda: penalties.l1(jnp.arange(3)), TypeError, r"`x` must be a real floating-point array, got int32\[3\]"),
    (lambda: penalties.l2(jnp.ones(3, complex)), TypeError, r"`x` must be .*, got complex64\[3\]"),
    (lambda: penalties.l2(jnp.ones(3, bool)), TypeError, r"got bool\[3\]"),
    (lambda: penalties.l2("kernel"), TypeError, "`x` must be a real floating-point array, got str 'kernel'"),
    (lambda: penalties.l2({"a": X}), TypeError, "`x` must be .* got dict; for a tree of arrays use `jaxreg.Rules`"),
    (
        lambda: penalties.l2(jax.ShapeDtypeStruct((2,), jnp.float32)),
        TypeError,
        r"got float32\[2\] without values; for shapes use `jax.eval_shape`",
    ),
    (lambda: penalties.l2(None), TypeError, "`x` must be a real floating-point array, got None"),
    (lambda: penalties.l2(jax.random.key(0)), TypeError, "`x` must be a real floating-point array, got key"),
    (lambda: penalties.orthogonal(jnp.ones(3)), ValueError, r"`x` must have rank >= 2 .*float32\[3\].*another rule"),
    (lambda: penalties.orthogonal(X, mode="row"), ValueError, "`mode` must be 'rows' or 'columns', got 'row'"),
    (lambda: penalties.orthogonal(X, out_axis=2), ValueError, r"`out_axis` must lie in \[-2, 2\) for rank 2"),
    (lambda: penalties.orthogonal(X, batch_axis=-3), ValueError, r"`batch_axis` must lie in \[-2, 2\) for rank 2"),
    (lambda: penalties.orthogonal(X, out_axis=(1, -1)), ValueError, "`out_axis` must name each axis once"),
    (lambda: penalties.orthogonal(X, out_axis=()), ValueError, "`out_axis` must name at least one axis"),
    (lambda: penalties.orthogonal(X, batch_axis=1), ValueError, r"must not share an axis.*share \[1\]"),
    (lambda: penalties.orthogonal(X, out_axis=(0, 1)), ValueError, r"leave no axis of float32\[2,2\] for the rows"),
    (lambda: penalties.orthogonal(X, out_axis=1.0), TypeError, "`out_axis` must be an int or a tuple of ints"),
    (lambda: jaxreg.OrthogonalRegularizer(mode="row"), ValueError, "`mode` must be 'rows' or 'columns'"),
    (lambda: jaxreg.OrthogonalRegularizer(out_axis=True), TypeError, "`out_axis` must be an int or a tuple"),
    (lambda: jaxreg.OrthogonalRegularizer(batch_axis="0"), TypeError, "`batch_axis` must be an int or a tuple"),
    (lambda: jaxreg.diagnostics.cosines(X, mode="row"), ValueError, "`mode` must be"),
    (lambda: jaxreg.Regularizer()(X), NotImplementedError, "Regularizer must define `__call__"),
    (
        lambda: jaxreg.L2(jnp.ones(3))(X),
        ValueError,
        r"`l2` must be a scalar where the regularizer is called, got shape \(3,\).*vmap",
    ),
    (lambda: (jaxreg.L2() + (lambda x: x))(X), TypeError, r"must return a scalar, got float32\[2,2\]"),
    (
        lambda: (2.0 * (jaxreg.L1() + (lambda x: jnp.sum(x > 0))))(X),
        TypeError,
        r"must return a real .* scalar, got int32",
    ),
    (lambda: (jaxreg.L1() + (lambda x: None))(X), TypeError, "must return a real floating-point scalar, got None"),
]


@pytest.mark.parametrize(("call", "error", "message"), PENALTY_ERRORS)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_bad_input_is_an_error_at_trace_time():
    with pytest.raises(ValueError, match="rank >= 2"):
        jax.eval_shape(jaxreg.OrthogonalRegularizer(), jax.ShapeDtypeStruct((3,), jnp.float32))


# Subclasses.


class Annotated(jaxreg.Regularizer):
    factor: float = 0.1
    target: float = -1.0
    order: int = dataclasses.field(default=2, metadata={"static": True})
    kind: str = "even"

    def __call__(self, x):
        return self.factor * jnp.sum((x - self.target) ** self.order)


class KerasForm(jaxreg.Regularizer):
    def __init__(self, l2=0.0, name="mine", axes=(0, 1)):
        self.l2 = l2
        self.name = name
        self.axes = axes

    def __call__(self, x):
        return self.l2 * jnp.sum(jnp.square(x), axis=self.axes)

    def get_config(self):
        return {"l2": float(self.l2), "name": self.name}


class Nested(jaxreg.Regularizer):
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, x):
        return 2.0 * self.inner(x)


@pytest.mark.parametrize(
    "make", [Annotated, KerasForm, lambda s: Nested(jaxreg.L2(s))], ids=["fields", "init", "nested"]
)
def test_a_strength_is_never_lost_in_jit(make):
    penalty = jax.jit(chex.assert_max_traces(lambda r, x: r(x), n=1))
    values = [float(penalty(make(s), X)) for s in (0.5, 1.0, 2.0)]
    np.testing.assert_allclose(values, [float(make(s)(X)) for s in (0.5, 1.0, 2.0)], rtol=1e-6)
    assert values[2] == pytest.approx(4 * values[0])
    slope = jax.grad(lambda s: make(s)(X))(0.5)
    assert float(slope) == pytest.approx(values[1])


def test_leaves_and_static_attributes():
    assert jax.tree.leaves(Annotated()) == [0.1, -1.0]
    assert jax.tree.leaves(KerasForm(0.5)) == [0.5]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(Nested(jaxreg.L2()))]
    assert paths == [".inner.l2"]
    assert jax.tree.structure(KerasForm(1.0, "a")) != jax.tree.structure(KerasForm(1.0, "b"))


def test_annotated_subclasses_have_constructor_repr_equality_and_config():
    made = Annotated(0.5, kind="odd")
    assert repr(made) == "Annotated(factor=0.5, target=-1.0, order=2, kind='odd')"
    assert made == Annotated(0.5, kind="odd") != Annotated(0.5)
    assert made.get_config() == {"factor": 0.5, "target": -1.0, "order": 2, "kind": "odd"}
    assert Annotated.from_config(made.get_config()) == made


def test_a_decorator_by_habit_does_no_harm():
    @dataclasses.dataclass(frozen=True)
    class Decorated(jaxreg.Regularizer):
        factor: float = 0.1
        weights: tuple = dataclasses.field(default_factory=tuple)
        axis: int = dataclasses.field(default=0, metadata={"static": True})

        def __call__(self, x):
            return self.factor * jnp.sum(x)

    assert jax.tree.leaves(Decorated(0.5)) == [0.5]
    assert Decorated(weights=(0.5,)).weights == (0.5,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Decorated().factor = 1.0


def test_subclasses_of_subclasses():
    class Stronger(Annotated):
        def __call__(self, x):
            return 2.0 * super().__call__(x)

    class Shifted(Annotated):
        shift: float = 3.0

    class Redefined(Annotated):
        factor: float = 0.7

    class Renamed(KerasForm):
        pass

    class WithInit(Annotated):
        def __init__(self, strength):
            self.factor, self.target, self.order, self.kind = strength / 2, -1.0, 2, "even"

    assert Stronger(0.5)(X) == 2 * Annotated(0.5)(X)
    assert repr(Stronger()) == "Stronger(factor=0.1, target=-1.0, order=2, kind='even')"
    assert jax.tree.leaves(Shifted()) == [0.1, -1.0, 3.0]
    assert jax.tree.leaves(Redefined()) == [0.7, -1.0]
    assert jax.jit(lambda r: r(X))(Renamed(0.5)) == KerasForm(0.5)(X)
    assert jax.jit(lambda r: r(X))(WithInit(1.0)) == Annotated(0.5)(X)


def test_own_init_below_a_dataclass_compares_by_all_its_attributes():
    class Weighted(Annotated):
        def __init__(self, factor, weight):
            self.factor, self.weight = factor, weight

        def __call__(self, x):
            return self.weight * self.factor * jnp.sum(jnp.square(x))

    assert Weighted(1.0, 2.0) != Weighted(1.0, 3.0)
    penalty = jax.jit(lambda r: r(X), static_argnums=0)
    assert penalty(Weighted(1.0, 4.0)) == 2 * penalty(Weighted(1.0, 2.0))


SHIPPED = [
    value
    for value in vars(jaxreg).values()
    if isinstance(value, type) and issubclass(value, jaxreg.Regularizer) and value is not jaxreg.Regularizer
]


@pytest.mark.parametrize("base", [*SHIPPED, *(type(r) for r in (L1 + L2, 2.0 * L1, (L1 + jnp.sum).terms[1]))])
def test_what_jaxreg_ships_is_not_for_subclassing(base):
    """A redefined default would lose its checks, and a new field would reach the penalty as an option."""

    class Mixin:
        pass

    message = f"must not subclass {base.__name__}, which is not for subclassing; subclass jaxreg.Regularizer"
    for bases, fields in (((base,), {}), ((base,), {"factor": 0.5}), ((Mixin, base), {})):
        annotations = dict.fromkeys(fields, float)
        with pytest.raises(TypeError, match=message):
            type("Mine", bases, {"__annotations__": annotations, **fields})


class Plain(jaxreg.Regularizer):
    factor: float = 0.5

    def __call__(self, x):
        return self.factor * jnp.sum(jnp.abs(x))


class WithProx(Plain):
    has_metric_prox = True

    def __call__(self, x):
        return self.factor * jnp.sum(jnp.abs(x))

    def prox(self, x, step):
        return jaxreg.prox.l1(x, step * self.factor)


class Quartic:
    """Another penalty, as a mixin that is not a regularizer."""

    def __call__(self, x):
        return jnp.sum(x**4)


def _subclass(*bases, **members):
    return type("Mine", bases, members)


def _quartic(self, x):
    return jnp.sum(x**4)


def _zero(self, x, step):
    return 0 * x


@pytest.mark.parametrize(
    ("cls", "has_prox", "has_metric_prox"),
    [
        (Plain, False, False),
        (WithProx, True, True),
        (_subclass(WithProx), True, True),
        (_subclass(WithProx, __call__=_quartic), False, False),
        (_subclass(WithProx, __call__=_quartic, prox=_zero), True, False),
        (_subclass(WithProx, __call__=_quartic, prox=_zero, has_metric_prox=True), True, True),
        (_subclass(WithProx, prox=_zero), True, False),
        (_subclass(Plain, prox=_zero), True, False),
        (_subclass(Quartic, WithProx), False, False),
        (_subclass(_subclass(WithProx, __call__=_quartic)), False, False),
    ],
)
def test_a_prox_belongs_to_the_call_beside_it(cls, has_prox, has_metric_prox):
    made = cls()
    assert (made.has_prox, made.has_metric_prox) == (has_prox, has_metric_prox)
    assert ((2.0 * made).has_prox, (2.0 * made).has_metric_prox) == (has_prox, has_metric_prox)
    assert not (made + L2).has_prox
    rules = jaxreg.Rules((r"", made))
    if has_prox:
        assert jaxreg.proximal(optax.sgd(0.1), rules, 0.1)
        assert made.prox(X, 0.1).shape == X.shape
    else:
        with pytest.raises(NotImplementedError, match=f"{cls.__name__}.*no prox in closed form"):
            made.prox(X, 1.0)
        with pytest.raises(ValueError, match="no prox in closed form"):
            jaxreg.proximal(optax.sgd(0.1), rules, 0.1)


# Leaves and choices.


class Axis(jaxreg.Regularizer):
    factor: float = 1
    weight: "jax.Array | int" = 2
    maybe: "Optional[float]" = None  # noqa: F821  # an annotation is read as text
    axis: int = -1
    axes: tuple[int, ...] = (0, 1)
    count: "int" = 3

    def __call__(self, x):
        return self.factor * self.weight * self.count * jnp.max(jnp.sum(jnp.square(x), axis=self.axis))


def test_an_int_is_a_choice_unless_the_annotation_is_of_a_number():
    made = Axis()
    assert jax.tree.leaves(made) == [1.0, 2.0]
    assert [type(leaf) for leaf in jax.tree.leaves(made)] == [float, float]
    assert type(made.axis) is int
    assert jax.jit(lambda r: r(X))(made) == made(X)
    assert jax.grad(lambda r: r(X))(made).factor == made(X)
    assert jax.tree.leaves(Axis(np.int64(3), maybe=4, axis=np.int64(0))) == [3.0, 2.0, 4.0]
    assert jax.tree.structure(Axis(axis=0)) != jax.tree.structure(Axis(axis=1))

    class Marked(jaxreg.Regularizer):
        power: float = dataclasses.field(default=2, metadata={"static": True})

    assert jax.tree.leaves(Marked()) == []
    assert type(Marked().power) is int


def test_an_int_of_an_own_init_is_a_choice():
    assert jax.tree.leaves(KerasForm(1)) == []
    assert jax.tree.leaves(KerasForm(float(1))) == [1.0]
    assert KerasForm(1)(X) == KerasForm(1.0)(X)


def test_what_is_derived_from_strengths_follows_them():
    class Cached(jaxreg.Regularizer):
        l2: float = 1.0

        @functools.cached_property
        def twice(self):
            return 2.0 * self.l2

        def __call__(self, x):
            return self.twice * jnp.sum(jnp.square(x))

    regularizer = Cached(0.5)
    expected = regularizer(X)
    assert jax.tree.leaves(regularizer) == [0.5]
    assert jax.grad(lambda r: r(X))(regularizer).l2 == 2 * expected
    assert jax.tree.map(lambda leaf: 2 * leaf, regularizer)(X) == 2 * expected

    class Derived(jaxreg.Regularizer):
        l2: float = 1.0

        def __post_init__(self):
            object.__setattr__(self, "twice", 2.0 * self.l2)

    with pytest.raises(TypeError, match="`twice` of Derived is not a field; make it one, or a property"):
        jax.tree.leaves(Derived())


def test_members_of_an_enum_are_choices():
    class Kind(enum.IntEnum):
        SUM = 0
        SQUARES = 1

    class Chosen(jaxreg.Regularizer):
        factor: float = 0.5
        kind: Kind = Kind.SQUARES

        def __call__(self, x):
            return self.factor * jnp.sum(jnp.square(x) if self.kind is Kind.SQUARES else x)

    assert jax.jit(lambda r: r(X))(Chosen()) == Chosen()(X)


def test_equal_static_values_of_other_types_are_other_choices():
    class Flagged(jaxreg.Regularizer):
        factor: float = 0.5
        flag: object = dataclasses.field(default=1, metadata={"static": True})

        def __call__(self, x):
            return self.factor * jnp.sum(x) * (10.0 if self.flag is True else 1.0)

    penalty = jax.jit(lambda r: r(X))
    assert penalty(Flagged(flag=True)) == 10 * penalty(Flagged(flag=1))
    assert Flagged(flag=True) != Flagged(flag=1)


def test_array_strengths_are_equal_by_identity_and_hashable():
    strengths = jnp.ones(3)
    assert jaxreg.L2(strengths) == jaxreg.L2(strengths)
    assert jaxreg.L2(strengths) != jaxreg.L2(jnp.ones(3))
    assert jax.jit(jaxreg.L2(jnp.asarray(0.5)))(X) == jaxreg.L2(0.5)(X)


def test_slots_are_refused():
    with pytest.raises(TypeError, match="Slotted must not have `__slots__`"):

        class Slotted(jaxreg.Regularizer):
            __slots__ = ("l2",)


def test_configs_of_classes_made_of_more_than_their_fields():
    class Made(jaxreg.Regularizer):
        factor: float
        times: dataclasses.InitVar[float] = 2.0
        doubled: float = dataclasses.field(init=False, default=0.0)

        def __post_init__(self, times):
            object.__setattr__(self, "factor", self.factor * times)

    with pytest.raises(NotImplementedError, match="Made is made of more than its fields and must define `get_config`"):
        Made(0.5).get_config()

    class Partly(jaxreg.Regularizer):
        factor: float = 0.5
        doubled: float = dataclasses.field(init=False, default=1.0)

    assert Partly(0.25).get_config() == {"factor": 0.25}
    assert Partly.from_config(Partly(0.25).get_config()) == Partly(0.25)


def test_an_axis_is_static_where_it_is_marked_in_both_forms():
    class Marked(jaxreg.Regularizer):
        axis: int = dataclasses.field(default=0, metadata={"static": True})

        def __init__(self, factor, axis):
            self.factor, self.axis = factor, axis

        def __call__(self, x):
            return self.factor * jnp.max(jnp.sum(x, axis=self.axis))

    assert jax.tree.leaves(Marked(0.5, 1)) == [0.5]
    assert jax.jit(lambda r: r(X))(Marked(0.5, 1)) == Marked(0.5, 1)(X)
    assert jax.tree.leaves(KerasForm(0.5)) == [0.5]


def test_annotations_below_the_keras_form_keep_its_init():
    class Noted(KerasForm):
        note: str = "hi"

    assert Noted(0.5)(X) == KerasForm(0.5)(X)


def test_keyword_only_fields_are_hidden_at_their_default_alone():
    class Options(jaxreg.Regularizer):
        factor: float = 0.5
        flag: bool = dataclasses.field(default=True, kw_only=True)
        level: float = dataclasses.field(default=1.0, kw_only=True)

        def __call__(self, x):
            return self.factor * self.level * jnp.sum(x)

    assert Options().get_config() == {"factor": 0.5}
    assert Options(flag=1).get_config() == {"factor": 0.5, "flag": 1}
    assert Options(level=jnp.asarray(1.0)).get_config() == {"factor": 0.5, "level": 1.0}


def test_attributes_that_hold_arrays_are_leaves():
    class Anchored(jaxreg.Regularizer):
        def __init__(self, anchor, weights):
            self.anchor, self.weights = anchor, weights

        def __call__(self, x):
            return self.weights["a"] * jnp.sum(jnp.square(x - self.anchor))

    made = Anchored(jnp.zeros((2, 2)), {"a": 0.5})
    assert len(jax.tree.leaves(made)) == 2
    assert jax.jit(lambda r: r(X))(made) == jaxreg.L2(0.5)(X)


def test_an_unhashable_static_attribute_is_named():
    with pytest.raises(TypeError, match=r"`axes` of KerasForm is static, so it must be hashable, got list \[0, 1\]"):
        jax.tree.leaves(KerasForm(0.5, axes=[0, 1]))


def test_keras_form_without_get_config_says_so():
    with pytest.raises(
        NotImplementedError, match="Nested is made of more than its fields and must define `get_config`"
    ):
        Nested(jaxreg.L2()).get_config()


def test_plain_functions_serve():
    summed = jaxreg.L1(0.5) + penalties.l2
    assert jax.tree.leaves(summed) == [0.5]
    assert summed(X) == jaxreg.L1L2(0.5, 1.0)(X)
    partial = jax.tree_util.Partial(lambda s, x: s * jnp.sum(x), jnp.asarray(3.0))
    assert jax.tree.leaves(jaxreg.L1(0.5) + partial) == [0.5, jnp.asarray(3.0)]


def test_sums_take_regularizers_only():
    with pytest.raises(TypeError, match="expected a regularizer or a function from an array to a scalar, got str"):
        type(jaxreg.L1() + jaxreg.L2())(("l1",))


def test_flax_serialization_restores_strengths():
    regularizer = jaxreg.L1(jnp.asarray(0.5)) + 2.0 * jaxreg.L2(jnp.asarray(0.25))
    state = flax.serialization.to_state_dict(regularizer)
    other = jaxreg.L1(jnp.asarray(0.0)) + 1.0 * jaxreg.L2(jnp.asarray(0.0))
    restored = flax.serialization.from_state_dict(other, state)
    assert jax.tree.leaves(restored) == jax.tree.leaves(regularizer)
    data = flax.serialization.to_bytes(regularizer)
    assert jax.tree.leaves(flax.serialization.from_bytes(other, data)) == jax.tree.leaves(regularizer)
    with pytest.raises(ValueError, match=r"the saved state of L1 must hold \['l1'\], got \['l2'\]"):
        flax.serialization.from_state_dict(jaxreg.L1(0.5), {"l2": 0.5})


def test_repr_is_short():
    assert repr(jaxreg.L2(jnp.asarray(0.5))) == "L2(l2=0.5)"
    assert repr(2 * (jaxreg.L1(0.5) + penalties.l2)) == "2.0 * (L1(l1=0.5) + l2)"
    assert repr(0.5 * jaxreg.L1(0.5) + jaxreg.L2(0.5)) == "0.5 * L1(l1=0.5) + L2(l2=0.5)"
    assert repr(jaxreg.L2(np.logspace(-3, 0, 4))) == "L2(l2=float64[4])"
    assert repr(jaxreg.OrthogonalRegularizer(0.5, out_axis=[1, 2])) == (
        "OrthogonalRegularizer(factor=0.5, mode='rows', out_axis=(1, 2))"
    )
    shown = []
    jax.jit(lambda s: shown.append(repr(jaxreg.L2(s))))(0.5)
    assert shown == ["L2(l2=traced float32[])"]
