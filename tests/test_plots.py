"""The numbers in each picture against NumPy, and that awkward arrays and trees can be drawn and read."""

import itertools
import sys

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from matplotlib.colors import to_hex

import jaxreg
from jaxreg import plots
from jaxreg.diagnostics import History

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 5)).astype(np.float32)
MANY_ROWS = RNG.normal(size=(300, 8)).astype(np.float32)
STACK = RNG.normal(size=(3, 4, 5)).astype(np.float32)
WITH_NAN = np.where(np.arange(60).reshape(12, 5) == 7, np.nan, X)
DEAD = X * (RNG.random((12, 5)) < 0.5) * np.float32([1, 0, 1, 1, 0])


@pytest.fixture(autouse=True)
def nothing_is_shown_or_changed(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("plt.show was called"))
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    plt.close("all")


def cosines_of(rows):
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return units @ units.T


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def history_of(rules, trees):
    history = History(rules)
    for number, tree in enumerate(trees):
        history.record(10 * number, tree)
    return history


L1 = jaxreg.Rules((r"", jaxreg.L1(1.0)))
MANY = {f"encoder/block_{i}/attention/query_of_all_heads/kernel": X[:2] * (i % 7 + 1) for i in range(200)}
HISTORY = history_of(
    L1, [{"kernel": X, "bias": X[0]}, {"kernel": X / 2, "bias": X[0] * np.nan}, {"kernel": X, "bias": X[0]}]
)
SHARES = np.linspace(0.0, 0.9, 6)
SEEDS = np.clip(0.9 + 0.02 * RNG.normal(size=(6, 4)), 0, 1)

AWKWARD = {
    "matrix of one": lambda ax: plots.cosine_matrix(X[:1], ax=ax),
    "matrix of 300": lambda ax: plots.cosine_matrix(MANY_ROWS, ax=ax),
    "matrix of NaN": lambda ax: plots.cosine_matrix(WITH_NAN, ax=ax),
    "matrix of zeros": lambda ax: plots.cosine_matrix(0 * X, ax=ax),
    "histogram of one": lambda ax: plots.cosine_histogram(X[:1], ax=ax),
    "histogram of NaN": lambda ax: plots.cosine_histogram(WITH_NAN * np.nan, ax=ax),
    "histogram of zeros": lambda ax: plots.cosine_histogram(0 * X, ax=ax),
    "spectrum of one": lambda ax: plots.singular_values(X[:, :1], ax=ax),
    "spectra of 200": lambda ax: plots.singular_values(MANY, ax=ax),
    "spectra of long names": lambda ax: plots.singular_values({f"{i}{'a' * 43}": X for i in range(14)}, ax=ax),
    "spectrum of NaN": lambda ax: plots.singular_values(WITH_NAN, ax=ax),
    "spectrum of zeros": lambda ax: plots.singular_values(0 * X, ax=ax),
    "spectra of all sizes": lambda ax: plots.singular_values({"$a$": 1e-30 * X, "_b": 1e30 * X, "c": DEAD}, ax=ax),
    "pattern of one": lambda ax: plots.sparsity_pattern(X[:1, :1], ax=ax),
    "pattern of 300": lambda ax: plots.sparsity_pattern(np.ones((2, 300)) * (np.arange(300) % 3), ax=ax),
    "pattern of zeros": lambda ax: plots.sparsity_pattern(0 * X[0], ax=ax),
    "history of one row": lambda ax: plots.penalty_history(history_of(L1, [{"kernel": X}]), ax=ax),
    "history of 200": lambda ax: plots.penalty_history(history_of(L1, [MANY, MANY]), by="path", ax=ax),
    "history with NaN": lambda ax: plots.penalty_history(HISTORY, by="path", ax=ax),
    "history of zeros": lambda ax: plots.penalty_history(history_of(L1, [0 * X, 0 * X]), by="path", ax=ax),
    "accuracy of one": lambda ax: plots.accuracy_against_sparsity([0.5], [0.5], ax=ax),
    "accuracy of 40": lambda ax: plots.accuracy_against_sparsity(
        [SHARES] * 40, [SHARES] * 40, labels=[f"_{number}$a$" for number in range(40)], ax=ax
    ),
    "tree of one": lambda ax: plots.matched_tree(L1, X, ax=ax),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_cases_are_drawn_whole(name):
    """In a figure of its own the words do not overlap, and lie inside of it. In given axes nothing else is touched."""
    ax = AWKWARD[name](None)
    ax.figure.draw_without_rendering()
    whole = ax.figure.bbox.padded(1)
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    boxes += [] if ax.get_legend() is None else [ax.get_legend().get_window_extent()]
    boxes += [label.get_window_extent() for label in (ax.xaxis.label, ax.yaxis.label, ax.title) if label.get_text()]
    assert all(whole.contains(*box.min) and whole.contains(*box.max) for box in boxes)
    assert min(ax.get_window_extent().width, ax.get_window_extent().height) > 0.4 * ax.figure.bbox.height
    if ax.axison:
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            boxes = [label.get_window_extent() for label in ticks if label.get_text()]
            along = sorted((box.x0, box.x1) if axis is ax.xaxis else (box.y0, box.y1) for box in boxes)
            assert all(first[1] <= second[0] for first, second in itertools.pairwise(along))
    _, (given, other) = plt.subplots(1, 2)
    assert AWKWARD[name](given) is given
    assert not other.has_data()


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_cosine_matrix(mode):
    ax = plots.cosine_matrix(jnp.asarray(X), mode=mode)
    expected = cosines_of(X if mode == "rows" else X.T)
    image = ax.images[0]
    np.testing.assert_allclose(image.get_array(), expected, atol=1e-6)
    apart = np.abs(expected - np.diag(np.diag(expected))).max()
    low, high = image.get_clim()
    assert -low == high == min(end for end in (0.1, 0.2, 0.5, 1.0) if end >= apart)
    assert plots.cosine_matrix(np.eye(12, 5, dtype=np.float32), mode=mode).images[0].get_clim() == (-0.1, 0.1)
    assert ax.get_xlabel() == ax.get_ylabel() == f"{mode[:-1]} (index)"
    assert ax.get_title() == f"largest |cosine| of two {mode}: {apart:.3g}"
    assert image.cmap(0.5)[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.01)
    one = plots.cosine_matrix(STACK, mode=mode, batch_axis=0, index=2)
    np.testing.assert_allclose(
        one.images[0].get_array(), cosines_of(STACK[2] if mode == "rows" else STACK[2].T), atol=1e-6
    )
    assert one.get_title().startswith("matrix 2 of 3\n")


def test_cosine_histogram():
    """Every pair is in a bar, also where rounding takes a cosine beyond 1."""
    ax = plots.cosine_histogram(STACK, batch_axis=0)
    found = [cosines_of(x)[np.triu_indices(4, 1)] for x in STACK]
    expected, edges = np.histogram(found, bins=51, range=(-1, 1))
    np.testing.assert_array_equal([bar.get_height() for bar in ax.patches], expected)
    np.testing.assert_allclose([bar.get_x() for bar in ax.patches], edges[:-1], atol=1e-6)
    assert texts(ax) == ["orthogonal"]
    assert ax.get_title() == "18 pairs of rows"
    n, d = 300, 8
    equal = plots.cosine_histogram(np.repeat(MANY_ROWS[:150], 2, axis=0))
    assert sum(bar.get_height() for bar in equal.patches) == n * (n - 1) / 2
    bound = ((n - d) / (d * (n - 1))) ** 0.5
    np.testing.assert_allclose([line.get_xdata()[0] for line in equal.lines], [bound, -bound])
    assert texts(equal) == [f"Welch bound ±{bound:.3g}"]
    rows = WITH_NAN * (np.arange(12) < 10)[:, None]
    assert plots.cosine_histogram(rows).get_title().splitlines() == [
        "36 pairs of rows",
        "left out: 21 pairs with a zero row",
        "left out: 9 pairs with NaN",
    ]
    # Only 4 of its 5 columns are not zero, so they may be orthogonal in 4 dimensions.
    wide = STACK[0] * np.float32([1, 1, 0, 1, 1])
    assert texts(plots.cosine_histogram(wide, mode="columns")) == ["orthogonal"]
    assert texts(plots.cosine_histogram(STACK, mode="columns", batch_axis=0)) == ["Welch bound ±0.25"]


def spectrum(x):
    return np.linalg.svd(x.astype(np.float64), compute_uv=False)


def test_singular_values():
    low_rank = X[:, :2].astype(np.float64) @ X[:2].astype(np.float64)
    tree = {"a": {"bias": X[0], "kernel": X}, "low": low_rank, "bad": WITH_NAN, "steps": 3}
    ax = plots.singular_values(tree)
    assert texts(ax) == ["a/kernel", "bad (NaN or infinite)", "low"]
    whole, bad, low = ax.lines[:3]
    np.testing.assert_array_equal(whole.get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_allclose(whole.get_ydata(), spectrum(X), rtol=1e-6)
    np.testing.assert_allclose(low.get_ydata(), [*spectrum(low_rank)[:2], 0, 0, 0], rtol=1e-6)
    assert np.isnan(bad.get_ydata()).all()
    assert ax.get_yscale() == "symlog"
    assert ax.get_ylim()[0] == 0
    assert ax.yaxis.get_transform().linthresh <= spectrum(low_rank)[1]
    stacked = plots.singular_values(np.moveaxis(STACK, 0, 1), out_axis=0, batch_axis=(1,))
    np.testing.assert_allclose([line.get_ydata() for line in stacked.lines], [spectrum(x) for x in STACK], rtol=1e-6)
    assert stacked.get_yscale() == "log"
    assert texts(stacked) == ["the array (3 matrices)"]
    many = plots.singular_values(MANY)
    assert many.get_legend() is None
    assert len(many.lines) == 200
    assert len({to_hex(line.get_color()) for line in many.lines}) > 150


@pytest.mark.parametrize(
    ("x", "axes", "columns"),
    [
        (DEAD, {}, DEAD),
        (DEAD, {"group_axis": 0}, DEAD.T),
        (DEAD[0], {}, DEAD[:1]),
        (DEAD.reshape(2, 6, 5), {"batch_axis": 0}, np.hstack(DEAD.reshape(2, 6, 5))),
        (DEAD.reshape(3, 4, 5), {"group_axis": (2, 0)}, DEAD.reshape(3, 4, 5).transpose(1, 2, 0).reshape(4, 15)),
        (DEAD, {"group_axis": ()}, DEAD.reshape(60, 1)),
        (np.where(DEAD > 1, np.inf, DEAD), {}, np.where(DEAD > 1, np.inf, DEAD)),
    ],
    ids=["units", "rows", "vector", "batch", "two axes", "whole", "infinite"],
)
def test_sparsity_pattern(x, axes, columns):
    ax = plots.sparsity_pattern(jnp.asarray(x), **axes)
    dead = np.all(columns == 0, axis=0)
    expected = np.where(np.isinf(columns), "#000000", np.where(columns == 0, "#ffffff", "#0072b2"))
    expected[:, dead] = "#e69f00"
    found = [[to_hex(color / 255) for color in row] for row in ax.images[0].get_array()]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(ax.lines[-1].get_xdata(), np.flatnonzero(dead))
    shown = ["not zero", "zero"]
    counts = [(expected == color).sum() for color in ("#0072b2", "#ffffff", "#e69f00", "#000000")]
    if counts[2]:
        shown.append(f"zero in {dead.sum()} dead group{'s' * int(dead.sum() > 1)} of {dead.size}")
    shown += ["NaN or infinite"] * bool(counts[3])
    numbers = [*counts[:2], *(count for count in counts[2:] if count)]
    assert texts(ax) == [f"{s}: {n} weight{'s' * int(n != 1)}" for s, n in zip(shown, numbers, strict=True)]


def tops(ax):
    """The upper edges of the areas, from the lowest one."""
    return np.array([line.get_ydata() for line in ax.lines if len(line.get_ydata()) > 1])


def test_penalty_history():
    rules = jaxreg.Rules((r"head", None), (r"kernel$", jaxreg.L1(1.0)), (r"bias$", jaxreg.L1(2.0)))
    trees = [{"head": X, "kernel": X * t, "a/bias": X[0], "b/bias": X[1] / t} for t in (1.0, 2.0, 4.0)]
    kernel, *biases = (float(np.sum(np.abs(x.astype(np.float64)))) for x in (X, 2 * X[0], 2 * X[1]))
    by_rule = [[kernel * t, biases[0] + biases[1] / t] for t in (1, 2, 4)]
    by_path = [[biases[0], biases[1] / t, kernel * t] for t in (1, 2, 4)]
    history = history_of(rules, trees)
    for by, expected, names in (
        ("rule", by_rule, ["bias$", "kernel$"]),
        ("path", by_path, ["kernel", "b/bias", "a/bias"]),
    ):
        ax = plots.penalty_history(history, by=by)
        np.testing.assert_allclose(tops(ax), np.cumsum(expected, axis=1).T, rtol=1e-5)
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 10, 20])
        assert texts(ax) == names
        areas = [collection.get_paths()[0].vertices[:, 1] for collection in ax.collections]
        np.testing.assert_allclose([area.max() for area in areas], tops(ax).max(axis=1))


def test_a_history_of_many_parameters_has_the_largest_and_the_rest():
    ax = plots.penalty_history(history_of(L1, [MANY, MANY]), by="path")
    sizes = sorted((float(np.abs(x).sum()) for x in MANY.values()), reverse=True)
    np.testing.assert_allclose(tops(ax)[-2:, 0], [sum(sizes[:7]), sum(sizes)], rtol=1e-5)
    assert texts(ax)[0] == "193 others"
    assert len(set(texts(ax))) == 8
    assert max(map(len, texts(ax))) <= 56


def test_steps_with_nan_have_a_mark_and_no_area():
    ax = plots.penalty_history(HISTORY, by="path")
    assert texts(ax) == ["kernel", "bias", "NaN or infinite"]
    np.testing.assert_array_equal(ax.lines[-1].get_xdata(), [10])
    np.testing.assert_array_equal(np.isnan(ax.lines[0].get_ydata()), [False, True, False])


def test_accuracy_against_sparsity():
    order = RNG.permutation(6)
    sparsity = np.clip(SHARES[:, None] + 0.01 * RNG.normal(size=(6, 4)), 0, 1)
    both = [sparsity[order], jnp.asarray(SHARES)]
    ax = plots.accuracy_against_sparsity(both, [SEEDS[order], SHARES], labels=["$L_1$", "_L0"])
    assert texts(ax) == ["$L_1$", "_L0"]
    dots, means, single = ax.lines
    np.testing.assert_allclose(means.get_xydata(), np.stack([sparsity.mean(axis=1), SEEDS.mean(axis=1)], axis=1))
    np.testing.assert_allclose(sorted(dots.get_ydata()), sorted(SEEDS.ravel()))
    np.testing.assert_allclose(single.get_xydata(), np.stack([SHARES, SHARES], axis=1), rtol=1e-6)
    (band,) = ax.collections
    low, high = SEEDS.min(axis=1), SEEDS.max(axis=1)
    assert {*low, *high} <= set(band.get_paths()[0].vertices[:, 1])
    assert ax.xaxis.get_major_formatter()(0.5) == "50"


Q = jax.ShapeDtypeStruct((8, 16), jnp.float32)
NET = {
    **{
        f"Block_{i}": {"dense": {"kernel": Q, "bias": jax.ShapeDtypeStruct((16,), "bfloat16")}, "norm": Q}
        for i in range(12)
    },
    "head": {"kernel": Q},
    "step": 3,
    "rate": optax.MaskedNode(),
}


def marks(ax):
    """The words in each line of a tree, with the marker and the color of its mark."""
    lines = {}
    for text in sorted(ax.texts, key=lambda text: text.get_position()):
        x, y = text.get_position()
        lines.setdefault((x // (ax.get_xlim()[1] + 1), y), []).append(text.get_text())
    shown = {
        line.get_ydata()[0]: (line.get_marker(), line.get_color()) for line in ax.lines if len(line.get_xdata()) == 1
    }
    return [(*words, *shown.get(y, ())) for (_, y), words in sorted(lines.items()) if any(words)]


def test_matched_tree():
    calls = []

    def mine(x):
        calls.append(x)
        return jnp.sum(x)

    rules = jaxreg.Rules((r"head/", None), (r"Block_5/dense/kernel$", jaxreg.L1(0.5)), (r"kernel$", mine))
    left, first, second, free = ("x", "#555555"), ("s", "#E69F00"), ("s", "#009E73"), ("o", "#999999")
    expected = [
        ("head/", "left alone", "rule 0", *left),
        ("Block_5/dense/kernel$", "L1(l1=0.5)", "rule 1", *first),
        ("kernel$", repr(rules.regularizers[2]), "rule 2", *second),
        ("Block_[0-4, 6-11]",),
        ("dense",),
        ("bias", "bfloat16[16]", "no rule", *free),
        ("kernel", "float32[8,16]", "rule 2", *second),
        ("norm", "float32[8,16]", "no rule", *free),
        ("Block_5",),
        ("dense",),
        ("bias", "bfloat16[16]", "no rule", *free),
        ("kernel", "float32[8,16]", "rule 1", *first),
        ("norm", "float32[8,16]", "no rule", *free),
        ("head/kernel", "float32[8,16]", "rule 0", *left),
        ("rate", "masked", "", ".", "#999999"),
    ]
    assert marks(plots.matched_tree(rules, NET)) == expected
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype) if hasattr(x, "shape") else x, NET)
    assert marks(plots.matched_tree(rules, ones)) == expected
    assert calls == []


def test_a_tree_goes_on_in_further_columns():
    tree = {chr(200 + i): {"w": X, "b" * (1 + i % 50): X[0]} for i in range(60)}
    rules = jaxreg.Rules((r"w$", jaxreg.L1(0.5)))
    ax = plots.matched_tree(rules, tree)
    places = [text.get_position() for text in ax.texts]
    assert len(set(places)) == len(places)
    assert max(y for _, y in places) < 60
    assert min(np.min(line.get_ydata()) for line in ax.lines) == -0.5  # below a part in the column before
    assert len([text for text in ax.texts if text.get_text() == "rule 0"]) == 61
    width, height = ax.figure.get_size_inches()
    assert 0.5 < width / height < 3
    size = ax.texts[0].get_size()
    figure, small = plt.subplots(figsize=(3, 3))
    assert plots.matched_tree(rules, tree, ax=small).texts[0].get_size() < size
    figure.draw_without_rendering()
    inside = small.get_window_extent().padded(2)
    boxes = [text.get_window_extent() for text in small.texts if text.get_text()]
    assert all(inside.contains(*box.min) and inside.contains(*box.max) for box in boxes)


def test_names_are_shown_as_they_are():
    """matplotlib would take two `$` for mathematics, and leave a name out that begins with `_`."""
    ax = plots.penalty_history(
        history_of(jaxreg.Rules((r"a$|b$", jaxreg.L1()), ("_c", jaxreg.L1())), [{"a": X, "_c": X}])
    )
    assert texts(ax) == ["_c", "a$|b$"]
    tree = plots.matched_tree(jaxreg.Rules((r"a$|b$", jaxreg.L1())), {"a": X})
    for text in (*ax.get_legend().get_texts(), *tree.texts):
        assert not text.get_parse_math()
        assert not text.get_usetex()


TWO = ["a", "b"]
ERRORS = [
    (TypeError, "`x` must be a real floating-point array, got str 'x'", lambda: plots.cosine_matrix("x")),
    (TypeError, r"`x` must have values, got traced float32\[12,5\]", lambda: jax.jit(plots.cosine_matrix)(X)),
    (ValueError, "`x` must have rank >= 2", lambda: plots.cosine_matrix(X[0])),
    (ValueError, "`mode` must be 'rows' or 'columns', got 'row'", lambda: plots.cosine_matrix(X, mode="row")),
    (ValueError, "`index` must say which of the 3", lambda: plots.cosine_matrix(STACK, batch_axis=0)),
    (ValueError, "`index` must be less than .* 3, got 3", lambda: plots.cosine_matrix(STACK, batch_axis=0, index=3)),
    (TypeError, "`index` must be an int, got str '0'", lambda: plots.cosine_matrix(X, index="0")),
    (ValueError, r"`x` must hold at least one of the rows, got float32\[0,5\]", lambda: plots.cosine_matrix(X[:0])),
    (
        TypeError,
        "`ax` must be matplotlib Axes of two dimensions or None, got Figure",
        lambda: plots.cosine_matrix(X, ax=plt.figure()),
    ),
    (ValueError, "`out_axis` must lie in", lambda: plots.cosine_histogram(X, out_axis=2)),
    (TypeError, "`out_axis` must be an int or", lambda: plots.singular_values({"a": X}, out_axis="a")),
    (ValueError, "at `a/w`: `out_axis` must lie in", lambda: plots.singular_values({"a": {"w": X}}, out_axis=2)),
    (ValueError, "`tree` must hold a floating-point array of rank >= 2", lambda: plots.singular_values({"a": X[0]})),
    (ValueError, "`tree` must have a rank of at least 2, got float32", lambda: plots.singular_values(X[0])),
    (
        TypeError,
        r"at `a`: `tree` must have values, got the shape float32\[8,16\]",
        lambda: plots.singular_values({"a": Q}),
    ),
    (TypeError, r"`tree` must have values, got traced float32\[12,5\]", lambda: jax.jit(plots.singular_values)(X)),
    (ValueError, r"no empty arrays, got float32\[0,5\] at `a`", lambda: plots.singular_values({"a": X[:0]})),
    (ValueError, "`x` must have rank >= 1 and at least one weight", lambda: plots.sparsity_pattern(np.float32(1))),
    (ValueError, "`x` must have rank >= 1 and at least one weight", lambda: plots.sparsity_pattern(X[:0])),
    (ValueError, "must not share an axis", lambda: plots.sparsity_pattern(X, batch_axis=1)),
    (ValueError, "`group_axis` must lie in", lambda: plots.sparsity_pattern(X, group_axis=2)),
    (TypeError, "`x` must have values, got traced", lambda: jax.jit(plots.sparsity_pattern)(X)),
    (TypeError, "`history` must be a jaxreg.diagnostics.History, got list", lambda: plots.penalty_history([])),
    (ValueError, "`by` must be 'rule' or 'path', got 'step'", lambda: plots.penalty_history(HISTORY, by="step")),
    (ValueError, "`history` must have penalties of parameters", lambda: plots.penalty_history(History(L1))),
    (
        ValueError,
        "`sparsity` must lie between 0 and 1, got 0 to 90",
        lambda: plots.accuracy_against_sparsity([0, 90.0], [1, 1]),
    ),
    (
        ValueError,
        "`sparsity` must lie .* got NaN",
        lambda: plots.accuracy_against_sparsity([np.nan, 0.5], [1, 1]),
    ),
    (
        ValueError,
        r"`accuracy` must have the shape .* \(2,\), got \(1,\)",
        lambda: plots.accuracy_against_sparsity([0, 1], [1]),
    ),
    (ValueError, r"`accuracy` must have the shape \(points", lambda: plots.accuracy_against_sparsity([0.5], 0.5)),
    (TypeError, "`sparsity` must be an array of numbers, got str", lambda: plots.accuracy_against_sparsity("a", [1])),
    (TypeError, "`labels` must be a list of names", lambda: plots.accuracy_against_sparsity([[0]], [[1]], labels="a")),
    (
        ValueError,
        "`sparsity` must be a list of 2 .* 1 in a list",
        lambda: plots.accuracy_against_sparsity([[0]], [[1]], labels=TWO),
    ),
    (
        ValueError,
        "`accuracy` of 'b' must lie",
        lambda: plots.accuracy_against_sparsity([[0], [0]], [[1], [2]], labels=TWO),
    ),
    (TypeError, "`rules` must be jaxreg.Rules, got L1", lambda: plots.matched_tree(jaxreg.L1(), {"a": X})),
    (ValueError, "rule 0 .* met no parameter", lambda: plots.matched_tree(jaxreg.Rules(("b", None)), {"a": X})),
    (
        ValueError,
        "`tree` must hold parameters",
        lambda: plots.matched_tree(jaxreg.Rules(("b", None), strict=False), {"a": 1}),
    ),
]


@pytest.mark.parametrize(("error", "message", "call"), ERRORS)
def test_what_cannot_be_drawn_is_an_error_and_leaves_no_figure(error, message, call):
    with pytest.raises(error, match=message):
        call()
    assert len(plt.get_fignums()) == ("Figure" in message)


@pytest.mark.parametrize("name", sorted(plots.__all__))
def test_without_matplotlib_the_error_says_what_to_install(name, monkeypatch):
    arguments = {
        "accuracy_against_sparsity": ([0.5], [0.5]),
        "matched_tree": (L1, X),
        "penalty_history": (HISTORY,),
    }.get(name, (X,))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'`jaxreg.plots` needs matplotlib: pip install "jaxreg\[plots\]"'):
        getattr(plots, name)(*arguments)


def test_kernels_on_an_explicit_mesh_are_gathered():
    mesh = jax.make_mesh((4,), ("data",))
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    divided = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    assert plots.cosine_matrix(divided).get_title() == plots.cosine_matrix(x).get_title()
    np.testing.assert_allclose(jaxreg.diagnostics.cosines(divided), jaxreg.diagnostics.cosines(x), rtol=1e-6, atol=1e-7)


def test_arrays_of_numpy_keep_their_own_dtype():
    texts = plots.sparsity_pattern(np.full((2, 2), 1e-60)).get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["not zero: 4 weights", "zero: 0 weights"]
    rank_1 = np.outer(np.arange(1.0, 4.0), np.arange(1.0, 5.0)) * 1e300
    of_array, of_tree = (plots.singular_values(tree).lines[0].get_ydata() for tree in (rank_1, {"k": rank_1}))
    np.testing.assert_array_equal(of_array, of_tree)


def test_a_kernel_of_nan_has_no_largest_cosine():
    assert "largest |cosine| of two rows: nan" in plots.cosine_matrix(jnp.full((3, 4), jnp.nan)).get_title()


def test_negative_penalties_cannot_be_stacked():
    history = jaxreg.diagnostics.History(jaxreg.Rules(("kernel", lambda x: -jnp.sum(x))))
    history.record(0, {"kernel": jnp.ones(3)})
    with pytest.raises(ValueError, match="`history` must have penalties >= 0, which can be stacked, got -3"):
        plots.penalty_history(history)
