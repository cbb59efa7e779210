"""Names and dicts to regularizers, and back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Cube, half_sum_of_squares

import jaxreg

SHIPPED = [
    value
    for value in vars(jaxreg).values()
    if isinstance(value, type) and issubclass(value, jaxreg.Regularizer) and value is not jaxreg.Regularizer
]


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        ("l1", jaxreg.L1(0.01)),
        ("L2", jaxreg.L2(0.01)),
        ("l1_l2", jaxreg.L1L2(0.01, 0.01)),
        ("l1l2", jaxreg.L1L2(0.01, 0.01)),
        ("L1L2", jaxreg.L1L2(0.01, 0.01)),
        (jaxreg.L1L2, jaxreg.L1L2(0.01, 0.01)),
        (jaxreg.L2, jaxreg.L2(0.01)),
        ("orthogonal_regularizer", jaxreg.OrthogonalRegularizer()),
        ({"class_name": "L2", "config": {"l2": 0.5}}, jaxreg.L2(0.5)),
        ({"class_name": "L2", "config": None}, jaxreg.L2()),
        ({"class_name": "l2", "config": {"l2": 0.5}}, jaxreg.L2(0.5)),
        (jaxreg.L1(0.5), jaxreg.L1(0.5)),
        (half_sum_of_squares, half_sum_of_squares),
        (Cube, Cube()),
        (None, None),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_get(identifier, expected):
    assert jaxreg.get(identifier) == expected


def test_get_returns_objects_as_they_are():
    regularizer = jaxreg.L2(0.5)
    assert jaxreg.get(regularizer) is regularizer


def test_a_class_called_by_get_must_need_no_arguments():
    class Needy(jaxreg.Regularizer):
        factor: float

    with pytest.raises(TypeError, match="factor"):
        jaxreg.get(Needy)


def test_options_that_keras_does_not_know_are_left_out_at_their_default():
    assert jaxreg.OrthogonalRegularizer(0.1).get_config() == {"factor": 0.1, "mode": "rows"}
    config = jaxreg.OrthogonalRegularizer(0.1, out_axis=(1, 2), batch_axis=[0]).get_config()
    assert config == {"factor": 0.1, "mode": "rows", "out_axis": [1, 2], "batch_axis": [0]}
    again = jaxreg.OrthogonalRegularizer.from_config(json.loads(json.dumps(config)))
    assert again == jaxreg.OrthogonalRegularizer(0.1, out_axis=(1, 2), batch_axis=(0,))
    assert hash(jax.tree.structure(again)) == hash(jax.tree.structure(again))


def test_numbers_in_configs_are_plain():
    for strength in (np.float32(0.5), np.float64(0.5), jnp.asarray(0.5), jnp.asarray(0.5, jnp.bfloat16), 0.5):
        value = jaxreg.L2(strength).get_config()["l2"]
        assert type(value) is float
        assert value == 0.5


def test_custom_objects():
    made = 2.0 * (Cube(0.5) + half_sum_of_squares)
    config = json.loads(json.dumps(jaxreg.serialize(made)))
    objects = {"Cube": Cube, "half_sum_of_squares": half_sum_of_squares}
    assert jaxreg.deserialize(config, objects) == made
    with pytest.raises(ValueError, match=r"unknown regularizer 'Cube' of module 'cases'.*`custom_objects`.*L1L2"):
        jaxreg.deserialize(config, {"half_sum_of_squares": half_sum_of_squares})
    with pytest.raises(ValueError, match="unknown regularizer 'half_sum_of_squares'"):
        jaxreg.deserialize(config, {"Cube": Cube})
    assert jaxreg.deserialize("Cube", {"Cube": Cube}) == Cube()
    assert type(made).from_config(made.get_config(), objects) == made


def test_the_functions_of_penalties_need_no_custom_objects():
    made = jaxreg.L1(0.1) + jaxreg.penalties.l2
    assert jaxreg.deserialize(json.loads(json.dumps(jaxreg.serialize(made)))) == made


def test_names_are_derived_and_each_class_has_its_own():
    for cls in SHIPPED:
        assert type(jaxreg.get(cls.__name__)) is cls
        assert type(jaxreg.get(cls)) is cls
        assert jaxreg.get(cls) == jaxreg.get(cls.__name__)
    with_a_class = [name for name in jaxreg.penalties.__all__ if _is_known(name)]
    assert {type(jaxreg.get(name)) for name in with_a_class} == set(SHIPPED)
    assert len(with_a_class) == len(SHIPPED)


def _is_known(name):
    try:
        return jaxreg.get(name) is not None
    except ValueError:
        return False


def test_a_users_own_name_comes_before_a_built_in_one():
    class Mine(jaxreg.Regularizer):
        l2: float = 7.0

    for name in ("l2", "L2", "group_lasso"):
        assert type(jaxreg.deserialize(name, {name: Mine})) is Mine
        assert type(jaxreg.deserialize({"class_name": name, "config": {}}, {name: Mine})) is Mine


@pytest.mark.parametrize(
    "origin",
    [
        {"module": "pkg"},
        {"module": "keras_hub.regularizers"},
        {"registered_name": "pkg>L2"},
        {"module": "pkg", "registered_name": "pkg>L2"},
    ],
    ids=str,
)
def test_what_is_not_of_keras_or_jaxreg_is_not_built_in(origin):
    with pytest.raises(ValueError, match="unknown regularizer 'L2'"):
        jaxreg.deserialize({"class_name": "L2", "config": {"l2": 0.5}, **origin})


def test_a_users_class_does_not_become_a_built_in_one():
    class L2(jaxreg.Regularizer):
        l2: float = 7.0

    config = jaxreg.serialize(L2())
    assert config["registered_name"] == "L2"
    with pytest.raises(ValueError, match="unknown regularizer 'L2' of module 'test_serialization'"):
        jaxreg.deserialize(config)
    assert type(jaxreg.deserialize(config, {"L2": L2})) is L2


ERRORS = [
    (lambda: jaxreg.serialize(jaxreg.Rules((r"a", "l2"))), TypeError, r"got Rules\(.*it has a `get_config` of its own"),
    (lambda: jaxreg.get("l3"), ValueError, "unknown regularizer 'l3'; the names are L1, l1, L2, l2, L1L2, l1_l2"),
    (lambda: jaxreg.get(3), TypeError, "`identifier` must be .* got int 3"),
    (lambda: jaxreg.get(dict), TypeError, "`identifier` must be"),
    (lambda: jaxreg.get({"l2": 0.1}), ValueError, r"`config` must have a key 'class_name', got keys \['l2'\]"),
    (lambda: jaxreg.deserialize(3), TypeError, "`config` must be a dict or a name, got int 3"),
    (lambda: jaxreg.deserialize({"class_name": "L9", "config": {}}), ValueError, "unknown regularizer 'L9'"),
    (lambda: jaxreg.deserialize({"class_name": "L2", "config": 3}), TypeError, "`config` of 'L2' must be a dict"),
    (lambda: jaxreg.deserialize({"class_name": "L2", "config": {"l1": 3}}), TypeError, "unexpected keyword.*'l1'"),
    (lambda: jaxreg.get({"class_name": ["L2"], "config": {}}), TypeError, r"`class_name` in a config must be .*list"),
    (lambda: jaxreg.get({"class_name": 3}), TypeError, r"`class_name` in a config must be a name, got int 3"),
    (lambda: jaxreg.serialize(lambda x: x), TypeError, "a function with a name to find it by, got <lambda>"),
    (lambda: jaxreg.serialize("l2"), TypeError, "expected a regularizer or a function with a name"),
    (lambda: jaxreg.L2(jnp.ones(3)).get_config(), TypeError, r"`L2.l2` is stacked.*got float32\[3\].*jax.tree.map"),
    (lambda: jax.jit(lambda s: jaxreg.L2(s).get_config())(0.1), TypeError, "`L2.l2` is traced"),
    (lambda: type(0.5 * jaxreg.L1())(0.5, Cube(object())).get_config(), TypeError, "`Cube.factor` has no form in JSON"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
