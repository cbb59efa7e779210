"""The catalog of regularizers: a table whose formulas, proxes, invariances and sources come from the classes."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from guides import assert_shown, table

import jaxreg

CLASSES = {
    name: found
    for name in jaxreg.__all__
    if isinstance(found := getattr(jaxreg, name), type)
    and issubclass(found, jaxreg.Regularizer)
    and found is not jaxreg.Regularizer
}

# What no class says of itself: the family, the formula as its docstring has it, where the penalty is least, and what
# value and gradient cost. A pass reads or writes all weights once.
PASS, SVD, GRAM, SORT = "a pass", "a decomposition", "3n²d to 4n²d FLOPs", "a pass; a sort for the prox"
ROWS = {
    "single weights": {
        "L1": ("l1 · Σ|x|", "0", PASS),
        "L2": ("l2 · Σx²", "0", PASS),
        "L1L2": ("l1 · Σ|x| + l2 · Σx²", "0", PASS),
        "AdaptiveL1": ("factor · Σ w|x|", "0", PASS),
        "Huber": ("factor · the sum of x²/(2δ) where |x| ≤ δ, and of |x| − δ/2 beyond", "0", PASS),
        "LHalf": ("factor · Σ|x|^½", "0", PASS),
        "LTwoThirds": ("factor · Σ|x|^⅔", "0", PASS),
        "LogSum": ("factor · Σ log(1 + |x|/ε)", "0", PASS),
        "MCP": ("factor · the sum of λ|x| − x²/(2γ) where |x| ≤ γλ, and of γλ²/2 beyond", "0", PASS),
        "SCAD": ("factor · the sum of λ|x| up to λ, a parabola up to aλ, λ²(a + 1)/2 beyond", "0", PASS),
        "L0": ("factor · Σ[x ≠ 0]", "0", PASS),
        "Anchor": ("½ · factor · Σ F(x − w₀)²", "the references", PASS),
        "LInf": ("factor · max|x|", "0", SORT),
        "HoyerSquare": ("factor · (Σ|x|)²/Σx²", "one weight that is not 0", PASS),
    },
    "neighbors": {
        "TotalVariation": ("factor · Σ|x_{i+1} − x_i|", "constant signals", "a pass; several for the prox"),
        "FusedLasso": ("factor · (l1 · Σ|x| + tv · Σ|x_{i+1} − x_i|)", "0", "a pass; several for the prox"),
    },
    "groups": {
        "GroupLasso": ("factor · Σ_g ‖x_g‖", "0", PASS),
        "SparseGroupLasso": ("factor · (l1 · Σ|x| + group · Σ_g ‖x_g‖)", "0", PASS),
        "GroupMCP": ("factor · the sum of λn − n²/(2γ) up to γλ, and of γλ²/2 beyond", "0", PASS),
        "GroupSCAD": ("factor · the sum of λn up to λ, a parabola up to aλ, λ²(a + 1)/2 beyond", "0", PASS),
        "HingedNorm": ("factor · Σ_g (‖x_g‖ − c)₊²", "norms up to c", PASS),
    },
    "singular values": {
        "Nuclear": ("factor · Σσ", "0", SVD),
        "Spectral": ("factor · σ₁", "0", SVD),
        "StableRank": ("factor · Σσ²/σ₁²", "rank 1", SVD),
        "SoftOrthogonal": ("factor · ‖XᵀX − I‖²", "orthonormal vectors", "4nd·min(n, d) FLOPs"),
        "SRIP": ("factor · max |σ² − 1|", "orthonormal vectors", "4nd FLOPs for each step and vector of the block"),
        "ConvOrthogonal": ("factor · ‖conv(K, K) − I‖²", "orthogonal convolutions", "3k⁴CM² FLOPs"),
    },
    "angles": {
        "OrthogonalRegularizer": ("factor · Σ_{i≠j} |cos(x_i, x_j)| / (n(n−1))", "orthogonal vectors", GRAM),
        "FramePotential": (
            "factor · ‖UᵀU − (n/d)I‖² / (n(n−1))",
            "orthogonal vectors, tight frames",
            "4nd·min(n, d) FLOPs",
        ),
        "PFrame": ("factor · Σ_{i≠j} |cos|^p / (n(n−1))", "orthogonal vectors", GRAM),
        "MutualCoherence": ("factor · max_{i≠j} |cos(x_i, x_j)|", "orthogonal vectors", "6n²d FLOPs"),
        "OffDiagonal": ("factor · Σ_{i≠j} ⟨x_i, x_j⟩²", "orthogonal vectors, 0", GRAM),
    },
    "outputs of layers": {
        "ZLoss": ("factor · mean (log Σ_j exp x_j)²", "log Σ exp x = 0", PASS),
        "KLSparsity": ("factor · Σ_j KL(ρ ‖ m_j)", "means of ρ", PASS),
        "DeCov": ("factor · ½ Σ_{i≠j} C_ij² with C = HᵀH/N", "uncorrelated features", "3d²N or 4N²d FLOPs"),
        "VICRegCovariance": ("factor · (1/d) Σ_{i≠j} C_ij²", "uncorrelated features", "3d²N or 4N²d FLOPs"),
        "VICRegVariance": ("factor · mean_j (γ − s_j)₊", "deviations of γ or more", PASS),
    },
}
EVERY = {name: (family, *row) for family, rows in ROWS.items() for name, row in rows.items()}


def of(cls, x):
    """The penalty of a class at its defaults."""
    made = cls(1.0) if cls is not jaxreg.L1L2 else cls(1.0, 1.0)
    if cls is jaxreg.ConvOrthogonal:
        x = x.reshape(2, 2, 2, 3)
    if not made.has_memory:
        return float(made(x))
    return float(made(x, memory=made.init(jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape))))


def unchanged_by(cls):
    """What a penalty is seen not to change under, at random weights."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.3, 1.7, size=(8, 3)) * rng.choice([-1, 0, 1], size=(8, 3), p=[0.4, 0.2, 0.4])
    signs = rng.choice([-1, 1], size=x.shape)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in x.shape)
    changes = {
        "scale": [3.0 * x],
        "signs": [signs * x],
        "rotations of rows and columns": [left @ x @ right],
        "rotations of rows": [x @ right],
        "rotations of columns": [left @ x],
        "shifts of rows": [x + rng.normal(size=(8, 1))],
        "shifts of columns": [x + rng.normal(size=(1, 3))],
    }
    with jax.enable_x64(True):
        value = of(cls, jnp.asarray(x))
        found = {
            name
            for name, others in changes.items()
            if all(abs(of(cls, jnp.asarray(other)) - value) < 1e-9 * abs(value) + 1e-12 for other in others)
        }
    if "rotations of rows and columns" in found:
        found -= {"rotations of rows", "rotations of columns"}
    return ", ".join(name for name in changes if name in found)


def use_of(cls):
    """The sentence of the docstring that says when to use it."""
    text = " ".join(inspect.getdoc(cls).split())
    found = re.search(r"(?:^|[.:] )(Use .*?)(?:\. |: )", text)
    return found[1] if found else ""


def source_of(cls):
    """The first source that the docstring names: its authors, or Keras's name, and its year."""
    text = " ".join(inspect.getdoc(cls).split("Source:")[1].split())
    first = text.split(";")[0]
    year = re.search(r"\b(1[89]|20)\d\d\b", first)
    return f"{first.split(',')[0] if first.startswith('`') else shortened(first)}{f', {year[0]}' if year else ''}"


def shortened(source):
    """The authors of a source, of whom more than two become the first and others."""
    words = source.split(", ")
    authors = [words[0]]
    if " and " in words[0] or "et al." in words[0]:
        return words[0]
    for word in words[1:]:
        if " and " in word and len(word.split()) <= 6:
            return f"{authors[0]} et al."
        if len(word.split()) > 2:
            break
        authors.append(word)
    return authors[0]


def test_every_regularizer_is_in_the_catalog():
    assert set(EVERY) == set(CLASSES)


@pytest.mark.parametrize("name", EVERY)
def test_formulas_are_those_of_the_docstrings(name):
    assert EVERY[name][1] in " ".join(inspect.getdoc(CLASSES[name]).split())


@pytest.mark.parametrize("name", EVERY)
def test_docstrings_say_when_to_use_it(name):
    assert use_of(CLASSES[name]), f"the docstring of {name} must have a sentence that begins with 'Use'"


@pytest.mark.parametrize("family", ROWS)
def test_the_catalog_is_shown(family):
    assert_shown("catalog.md", shown(family))


def shown(family):
    """The table of a family, and the list of when to use what."""
    header = ("regularizer", "formula", "least at", "unchanged by", "prox", "cost", "source")
    rows, uses = [], []
    for name, (formula, least, cost) in ROWS[family].items():
        cls = CLASSES[name]
        prox = ("yes, in Adam's metric too" if cls().has_metric_prox else "yes") if cls().has_prox else "-"
        formula = formula.replace("factor · ", "")
        rows.append((f"`{name}`", formula, least, unchanged_by(cls) or "-", prox, cost, source_of(cls)))
        uses.append(f"- `{name}`: {use_of(cls).removeprefix('Use it ').removeprefix('Use ')}.")
    return f"{table(header, rows)}\n\n" + "\n".join(uses)
