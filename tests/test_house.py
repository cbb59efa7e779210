"""The house itself: imports run downward, each name has one path, docstrings run, the README's blocks run."""

import ast
import doctest
import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxreg

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "jaxreg"

# From the ground up. A module may import those on lower floors, and within its floor those on its left.
FLOORS = (
    ("_numerics", "_pytree", "_matrix", "_paths", "_tables"),
    ("_gram", "_singular"),
    ("penalties._elementwise", "penalties._groups", "penalties._singular", "penalties._orthogonality", "penalties"),
    ("prox._elementwise", "prox._groups", "prox._singular", "prox"),
    ("_configured", "_base"),
    ("_regularizers._strengths", "_regularizers._elementwise", "_regularizers._groups", "_regularizers._matrices"),
    ("_regularizers", "_config", "_matching", "_explain", "_rules"),
    ("_transforms", "_proximal", "_activity"),
    ("diagnostics",),
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


@pytest.mark.parametrize("module", ORDER)
def test_a_file_is_read_in_one_sitting(module):
    assert len(source(module).splitlines()) <= 300


def public_names():
    return [name for name in vars(jaxreg) if not name.startswith("_")]


def test_each_name_has_one_import_path():
    assert sorted(jaxreg.__all__) == sorted(public_names())
    modules = {name for name in public_names() if inspect.ismodule(getattr(jaxreg, name))}
    assert modules == {"penalties", "prox", "diagnostics"}
    for module in modules:
        inside = getattr(jaxreg, module)
        defined = {
            n for n, v in vars(inside).items() if inspect.isfunction(v) and v.__module__.startswith(inside.__name__)
        }
        assert set(inside.__all__) == {name for name in defined if not name.startswith("_")}
        assert not set(inside.__all__) & set(public_names())
    assert set(jaxreg.prox.__all__) == set(jaxreg.penalties.__all__) - {"orthogonal", "frame_potential"}


def test_importing_needs_runtime_packages_only():
    """Keras, Equinox, Haiku, scikit-learn, matplotlib and chex are for tests and examples."""
    extras = {"keras", "equinox", "haiku", "sklearn", "matplotlib", "tqdm", "pytest"}
    code = f"import sys, jaxreg; print(sorted({extras!r} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize("module", [m for m in ORDER if m != "__init__"])
def test_doctests(module):
    names = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "jaxreg": jaxreg}
    assert doctest.testmod(importlib.import_module(f"jaxreg.{module}"), extraglobs=names).failed == 0


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
    if name not in ("PenaltyState", "ProximalState"):
        assert ">>>" in obj.__doc__, f"{name} has no doctest"


README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""


@pytest.mark.standard_promotion
def test_readme_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 8
    names = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, Python block {number}", "exec"), names)


def test_readme_shows_what_explain_prints():
    """The table in the README is the output of the block before it."""
    block, shown = re.search(
        r"```python\n([^`]*rules\.explain\([^`]*)```\n+```text\n(.*?)```", README, re.DOTALL
    ).groups()
    before = README[: README.index(block)]
    names = {}
    for earlier in re.findall(r"```python\n(.*?)```", before, re.DOTALL):
        exec(earlier, names)
    printed = []
    exec(block, {**names, "print": lambda value: printed.append(str(value))})
    assert _lines(printed[-1]) == _lines(shown)


def _lines(text):
    return [line.rstrip() for line in text.strip("\n").splitlines() if line.strip()]


def test_readme_commands_are_the_first_shell_lines():
    lines = [
        line for block in re.findall(r"```(?:sh|bash)\n(.*?)```", README, re.DOTALL) for line in block.splitlines()
    ]
    assert all(line.startswith("python3 ") for line in lines[:2])
    assert "examples/digits.py" in lines[0]
    assert "pytest" in lines[1]
    for caller in (ROOT / ".ci" / "run", ROOT / ".github" / "workflows" / "tests.yml"):
        assert "grep -m1 '^python3 .*pytest' README.md" in caller.read_text()
