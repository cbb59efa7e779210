"""The public names of jaxreg, and Markdown with links to them."""

import inspect
import pkgutil
import re
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import jaxreg


@cache
def modules() -> tuple[str, ...]:
    """Returns the public submodules, and imports them."""
    found = tuple(info.name for info in pkgutil.iter_modules(jaxreg.__path__) if not info.name.startswith("_"))
    for name in found:
        import_module(f"jaxreg.{name}")
    return found


@cache
def public_names() -> dict[str, Any]:
    """Returns every public name with its object: those of `jaxreg`, and those of its submodules."""
    owners = {"jaxreg": jaxreg} | {f"jaxreg.{name}": sys.modules[f"jaxreg.{name}"] for name in modules()}
    return {
        f"{owner}.{name}": getattr(module, name)
        for owner, module in owners.items()
        for name in sorted(module.__all__)
        if not inspect.ismodule(getattr(module, name))
    }


def methods(name: str) -> list[str]:
    """Returns the documented methods that a class defines. The tuples that are states have none."""
    obj = public_names()[name]
    if not inspect.isclass(obj) or issubclass(obj, tuple):
        return []
    return [n for n in vars(obj) if not n.startswith("_") and vars(obj)[n].__doc__ and callable(getattr(obj, n))]


def docstring(text: str) -> str:
    """Returns a docstring as Markdown. Doctests, which end at an empty line, become code, and names become links."""
    return linked(re.sub(r"^>>> .*(?:\n.+)*", r"```pycon\n\g<0>\n```", text, flags=re.MULTILINE), short=True)


def linked(text: str, *, short: bool = False) -> str:
    """Returns the text with a link from each public name in backticks to its entry.

    Args:
      text: Markdown.
      short: whether classes are known without their modules, as docstrings and the README write them.
    """
    names = {name: name for name in public_names()}
    if short:
        names |= {name.rpartition(".")[2]: name for name, obj in public_names().items() if inspect.isclass(obj)}

    def replaced(match: re.Match) -> str:
        return f"[{match[0]}][{names[match[1]]}]" if match[1] in names else match[0]

    # A name in a heading, or inside of a link, stays as it is: the first alternatives take it without a name.
    pattern = r"^#.*$|\[[^\]]*\]\(|\[[^\]]*\]\[|`([\w.]+)`"
    return prose(text, lambda part: re.sub(pattern, replaced, part, flags=re.MULTILINE))


def prose(text: str, change: Callable[[str], str]) -> str:
    """Returns the text with `change` applied to what is not a block of code."""
    parts = re.split(r"(^(`{3,})[^\n]*\n.*?^\2[ ]*$)", text, flags=re.MULTILINE | re.DOTALL)
    # The split gives text, block, fence, text, block, fence, ...
    return "".join(change(part) if i % 3 == 0 else part for i, part in enumerate(parts) if i % 3 != 2)
