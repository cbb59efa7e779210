"""The house itself: imports run downward, each name has one path, docstrings run."""

import ast
import doctest
import importlib
import inspect
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import OF_PAIRS

import jaxreg

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "jaxreg"

# From the ground up. A module may import those on lower floors, and on its own floor those to its left. A package comes
# after its modules.
FLOORS = (
    ("_names", "_checks", "_shards", "_alike", "_numerics", "_values", "_pytree", "_matrix", "_paths", "_tables"),
    ("_plans", "_spread", "_variation", "_gram", "_angles", "_products", "_convolution"),
    ("_blocks", "_singular", "_ritz", "_selection"),
    ("penalties._elementwise", "penalties._groups", "penalties._neighbors", "penalties._norms"),
    ("penalties._orthogonality", "penalties._outputs", "penalties._pairs", "penalties"),
    ("prox._elementwise", "prox._groups", "prox._neighbors", "prox._norms", "prox._orthogonality", "prox"),
    ("_projections",),
    ("_config", "_term", "_evaluate", "_base", "_constraint", "_fields", "_regularizers._shipped"),
    ("_regularizers._kept", "_regularizers._elementwise", "_regularizers._groups", "_regularizers._neighbors"),
    ("_regularizers._norms", "_regularizers._orthogonality", "_regularizers._outputs"),
    ("_regularizers", "constraints._shipped", "constraints._elementwise", "constraints._groups", "constraints._norms"),
    ("constraints._sparsity", "constraints", "_serialization", "_matching", "_short"),
    ("_explain", "_met", "_memory", "_rules"),
    ("_keras", "_updates", "_transforms", "_probe", "_metric", "_proximal", "_optimizers", "_activity"),
    ("diagnostics._cosines", "diagnostics._fisher", "diagnostics._history", "diagnostics._sparsity"),
    ("diagnostics._spectra", "diagnostics"),
    ("plots._axes", "plots._cosines", "plots._penalties", "plots._sparsity", "plots._spectra", "plots._trees", "plots"),
    ("__init__",),
)
ORDER = [module for floor in FLOORS for module in floor]


def source(module):
    """The text of a module, which may be a package."""
    path = PACKAGE / module.replace(".", "/")
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def imported(module):
    """The modules of the package that a module imports, anywhere in its body."""
    for node in ast.walk(ast.parse(source(module))):
        if isinstance(node, ast.ImportFrom) and node.module == "jaxreg":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxreg."):
            yield node.module.removeprefix("jaxreg.")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("jaxreg.") for alias in node.names if alias.name.startswith("jaxreg"))


def test_every_module_has_a_floor():
    found = [path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")]
    packages = [parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts for parts in found]
    assert sorted(ORDER) == sorted(".".join(parts) for parts in packages)


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_downward(module):
    for other in imported(module):
        assert ORDER.index(other) < ORDER.index(module), f"{module} imports {other}"


# Sums and maxima over weights. Penalties and proxes take them by `sum_of`, `largest` and `norms`.
REDUCTIONS = {"sum", "max", "min", "mean", "prod", "norm", "vdot", "amax", "amin", "nansum"}


@pytest.mark.parametrize("module", [m for m in ORDER if m.startswith(("penalties", "prox", "_gram", "_singular"))])
def test_all_penalties_reduce_through_the_same_functions(module):
    called = [node.func for node in ast.walk(ast.parse(source(module))) if isinstance(node, ast.Call)]
    assert not {function.attr for function in called if isinstance(function, ast.Attribute)} & REDUCTIONS


def test_a_penalty_costs_three_definitions(tmp_path):
    """Adds a penalty, its prox and its regularizer to a copy of the package, and finds them under every name."""
    shutil.copytree(PACKAGE, tmp_path / "jaxreg", ignore=shutil.ignore_patterns("__pycache__"))
    definitions = {
        "penalties": """
            @public
            def twice_l1(x: ArrayLike) -> jax.Array:
                return 2 * sum_of(magnitude(as_wide(x)))
        """,
        "prox": """
            @public
            def twice_l1(x: ArrayLike, step: ArrayLike) -> jax.Array:
                return l1(x, 2 * step)
        """,
        "_regularizers": """
            @public
            class TwiceL1(Shipped):
                factor: Any = strength(0.01)
                _penalty, _prox, has_metric_prox = penalties.twice_l1, prox.twice_l1, True
        """,
    }
    for package, text in definitions.items():
        with (tmp_path / "jaxreg" / package / "_elementwise.py").open("a") as file:
            file.write(textwrap.dedent(text))
    code = """
        import jax.numpy as jnp, jaxreg
        x = jnp.array([1.0, -3.0])
        made = jaxreg.TwiceL1(0.5)
        assert jaxreg.get("twice_l1") == jaxreg.get("TwiceL1") == jaxreg.TwiceL1(0.01)
        assert jaxreg.deserialize(jaxreg.serialize(made)) == made
        assert made(x) == 0.5 * jaxreg.penalties.twice_l1(x) == 4.0
        assert jnp.all(made.prox(x, 1.0) == jaxreg.prox.twice_l1(x, 0.5))
        assert made.has_prox and made.has_metric_prox
        assert "TwiceL1" in jaxreg.__all__
        assert "twice_l1" in jaxreg.penalties.__all__ and "twice_l1" in jaxreg.prox.__all__
        assert jaxreg.__file__.startswith(PLACE)
    """
    code = textwrap.dedent(code).replace("PLACE", repr(str(tmp_path)))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_the_oldest_versions_are_the_lower_bounds():
    """The versions that `.github/oldest.txt` tests are those that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    oldest = (ROOT / ".github" / "oldest.txt").read_text().split()
    assert sorted(oldest) == sorted(bound.replace(">=", "==") for bound in bounds)


def public_names():
    return [name for name in vars(jaxreg) if not name.startswith("_")]


def test_each_name_has_one_import_path():
    assert sorted(jaxreg.__all__) == sorted(public_names())
    modules = {name for name in public_names() if inspect.ismodule(getattr(jaxreg, name))}
    assert modules == {"constraints", "penalties", "prox", "diagnostics", "plots"}
    for module in modules:
        inside = getattr(jaxreg, module)
        defined = {
            n
            for n, v in vars(inside).items()
            if (inspect.isfunction(v) or inspect.isclass(v))
            and (v.__module__.startswith(inside.__name__) or v is jaxreg.constraints.Constraint)
        }
        assert set(inside.__all__) == {name for name in defined if not name.startswith("_")}
        assert not set(inside.__all__) & set(public_names())
    without_prox = [v for v in vars(jaxreg).values() if _is_shipped(v) and not v().has_prox]
    alone = {cls._penalty.__name__ for cls in without_prox} | set(OF_PAIRS)
    assert set(jaxreg.penalties.__all__) - set(jaxreg.prox.__all__) == alone
    assert set(jaxreg.prox.__all__) < set(jaxreg.penalties.__all__)


# Their examples run Adam, which mixes dtypes.
AROUND_ADAM = {"_transforms", "_proximal", "_optimizers"}


@pytest.mark.parametrize("module", [m for m in ORDER if m != "__init__"])
def test_doctests(module):
    names = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "jaxreg": jaxreg}
    with jax.numpy_dtype_promotion("standard" if module in AROUND_ADAM else "strict"):
        assert doctest.testmod(importlib.import_module(f"jaxreg.{module}"), extraglobs=names).failed == 0


def _is_shipped(obj):
    bases = (jaxreg.Regularizer, jaxreg.constraints.Constraint)
    return inspect.isclass(obj) and issubclass(obj, bases) and obj not in bases


def documented():
    for name in public_names():
        obj = getattr(jaxreg, name)
        if inspect.ismodule(obj):
            yield from ((f"{name}.{inner}", getattr(obj, inner)) for inner in obj.__all__)
        else:
            yield name, obj


@pytest.mark.parametrize(("name", "obj"), list(documented()), ids=lambda value: value if isinstance(value, str) else "")
def test_public_names_are_documented(name, obj):
    assert inspect.getdoc(obj)
    if not (inspect.isclass(obj) and issubclass(obj, tuple)):  # a state, which a transform makes
        assert ">>>" in obj.__doc__, f"{name} has no doctest"


TRANSFORMS = (
    jaxreg.activity_penalty,
    jaxreg.add_penalty_gradients,
    jaxreg.decoupled,
    jaxreg.proximal,
    jaxreg.proximal_adam,
    jaxreg.proximal_adamw,
    jaxreg.proximal_sgd,
)
WHOLE = [(name, obj) for name, obj in documented() if _is_shipped(obj) or obj in TRANSFORMS]


@pytest.mark.parametrize(("name", "obj"), WHOLE, ids=lambda value: value if isinstance(value, str) else "")
def test_the_docstrings_of_regularizers_and_transforms_are_whole(name, obj):
    text = inspect.getdoc(obj)
    for part in ("Args:", "Raises:", ">>>", "Source: ", "gradient", "dtype"):
        takes_none = part == "Args:" and not inspect.signature(obj).parameters
        assert part in text or takes_none, f"{name} lacks {part!r}"
    assert re.search(r"\b(19|20)\d\d\b", text[text.index("Source: ") :]), f"the source of {name} has no year"


@pytest.mark.parametrize("module", ["penalties", "prox"])
def test_the_docstrings_of_penalties_and_proxes_are_short_and_link_to_the_regularizer(module):
    inside = getattr(jaxreg, module)
    for name in inside.__all__:
        text = inspect.getdoc(getattr(inside, name))
        assert text.startswith("Returns ")
        links = re.findall(r"`jaxreg\.([A-Z]\w+)`", text)
        assert all(hasattr(jaxreg, link) for link in links)
        assert links or "Args:" in text or f"penalties.{name}" in text, f"{name} links to no regularizer"


@pytest.mark.parametrize("module", ORDER)
def test_docstrings_begin_with_a_subject_or_a_verb(module):
    tree = ast.parse(source(module))
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    first_words = {(ast.get_docstring(node) or "The").split()[0] for node in nodes}
    assert not first_words & {"Of", "What", "Whether", "Which", "From", "Where"}
