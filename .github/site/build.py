"""Builds the site in `build/site`: pages from the repository's own texts, and HTML from these pages by Zensical.

    python .github/site/build.py

Every text stands once. The home page is the README, the guides are `examples/guides/`, the gallery is made of the
examples' docstrings, pictures and sources, and the reference is made of docstrings. This script writes them as Markdown
to `build/pages`, with links between files of the repository turned into links between pages. A broken link, a broken
anchor, a guide that the order below does not have, and a public name without an entry are errors.

A picture is shown where its example has been run before.
"""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

from names import docstring, jaxreg, linked, methods, modules, prose, public_names

SITE = Path(__file__).parent
ROOT = SITE.parents[1]
BUILD = ROOT / "build"
PAGES = BUILD / "pages"

# The order in which one would read them.
GUIDES = (
    "placements",
    "rules",
    "catalog",
    "looking",
    "kernels",
    "orthogonality",
    "layouts",
    "trees",
    "exact_zeros",
    "constraints",
    "finetuning",
    "activities",
    "schedules",
    "optimizers",
    "sharded",
    "checkpoints",
    "from_keras",
    "from_pytorch",
    "numbers",
    "questions",
)

# Files of the repository that are pages. Guides and examples are added below.
SOURCES = {
    "README.md": "index.md",
    "examples/README.md": "examples/index.md",
    "examples/benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    ".github/CONTRIBUTING.md": "contributing.md",
}


def main() -> None:
    for old in (PAGES, BUILD / "site"):
        shutil.rmtree(old, ignore_errors=True)
    guides = [path.stem for path in (ROOT / "examples" / "guides").glob("*.md")]
    if unknown := set(guides) - set(GUIDES):
        sys.exit(f"GUIDES in {Path(__file__).name} must have an order for {sorted(unknown)}")
    guides.sort(key=GUIDES.index)
    examples = sorted((ROOT / "examples").glob("*.py"))
    pages = (
        SOURCES
        | {f"examples/guides/{name}.md": f"guides/{name}.md" for name in guides}
        | {f"examples/{path.name}": f"examples/{path.stem}.md" for path in examples}
    )

    for source, page in pages.items():
        text = (ROOT / source).read_text()
        if source == "examples/README.md":
            text += "".join(f"\n## [{path.name}]({path.name})\n\n{picture(path)}\n" for path in examples if drawn(path))
        elif source.endswith(".py"):
            text = example(ROOT / source)
        write(page, linked(relinked(text, source, pages), short=source == "README.md"))
    reference = entries()
    for page, (title, introduction, names) in reference.items():
        write(page, entry_page(title, introduction, names))
    write("reference/index.md", overview(reference))
    shutil.copy(SITE / "extra.css", PAGES)

    nav = [
        {"Home": "index.md"},
        {"Guides": [f"guides/{name}.md" for name in guides]},
        {"Examples": ["examples/index.md", *(f"examples/{path.stem}.md" for path in examples)]},
        {"Reference": ["reference/index.md", *reference]},
        {"Project": ["benchmarks.md", "changelog.md", "contributing.md"]},
    ]
    make_html(nav)
    check_names()


def write(page: str, text: str) -> None:
    path = PAGES / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_html(nav: list) -> None:
    """Runs Zensical, which fails for broken links, anchors and references."""
    # The address is known where the site is published.
    address = {"repo_url": repository(), "site_url": os.environ.get("SITE_URL")}
    lines = [f"{key} = {json.dumps(value)}" for key, value in address.items() if value]
    # An inline table of TOML has `=` where JSON has `:`.
    lines.append("nav = " + re.sub(r'("[^"]*"):', r"\1 =", json.dumps(nav)))
    config = BUILD / "zensical.toml"
    config.write_text((SITE / "zensical.toml").read_text().replace("[project]", "\n".join(["[project]", *lines]), 1))
    environment = os.environ | {"PYTHONPATH": str(SITE), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(config)]
    done = subprocess.run(command, env=environment, cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


def check_names() -> None:
    """Raises an error where a public name has no entry in the HTML."""
    html = "".join(path.read_text() for path in (BUILD / "site" / "reference").rglob("*.html"))
    missing = [name for name in public_names() if f'id="{name}"' not in html]
    if missing:
        sys.exit(f"the reference has no entry for {missing}")
    print(f"build/site has all {len(public_names())} public names")


def repository() -> str | None:
    """Returns the address of the repository, which GitHub's workflows know."""
    name = os.environ.get("GITHUB_REPOSITORY")
    return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}" if name else None


def relinked(text: str, source: str, pages: dict[str, str]) -> str:
    """Returns the text with its links between files turned into links between pages.

    The name of a file in backticks, from the root of the repository, becomes a link too.
    """
    here = PurePosixPath(pages[source]).parent

    def link(match: re.Match) -> str:
        mark, label, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:") or not path:
            return match[0]
        file = os.path.normpath(PurePosixPath(source).parent / path)
        if file in pages:
            return f"{mark}[{label}]({os.path.relpath(pages[file], here)}{hash_}{anchor})"
        if mark and file.startswith("examples/output/") and not (ROOT / file).exists():
            return ""  # the example has not been run
        if file.startswith("..") or not (ROOT / file).exists():
            sys.exit(f"{source} has a link to {target}, and there is no such file")
        if mark:
            (PAGES / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, PAGES / file)
            return f"{mark}[{label}]({os.path.relpath(file, here)})"
        return f"[{label}]({repository()}/blob/main/{file})" if repository() else label

    def name(match: re.Match) -> str:
        file = match[1]
        return f"[{match[0]}]({os.path.relpath(pages[file], here)})" if file in pages and file != source else match[0]

    # Badges belong to the page of the repository.
    text = re.sub(r"^\[!\[.*\n", "", text, flags=re.MULTILINE)
    text = prose(text, lambda part: re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, part))
    return prose(text, lambda part: re.sub(r"(?<!\[)`([\w./]+)`", name, part))


def example(path: Path) -> str:
    """Returns the page of an example: its docstring, its picture and its code."""
    text = path.read_text()
    tree = ast.parse(text)
    code = "\n".join(text.splitlines()[tree.body[0].end_lineno :]).strip()  # what follows the docstring
    parts = [f"# {path.name}", ast.get_docstring(tree), "## Source", f"````python\n{code}\n````"]
    if drawn(path):
        parts.insert(2, picture(path))
    return "\n\n".join(parts)


def drawn(path: Path) -> bool:
    """Returns whether the example has been run."""
    return (path.parent / "output" / f"{path.stem}.png").exists()


def picture(path: Path) -> str:
    return f"![The picture of {path.name}](output/{path.stem}.png)"


def entries() -> dict[str, tuple[str, str, list[str]]]:
    """Returns the pages of the reference, each with its title, an introduction and the names on it."""
    found = {
        "reference/jaxreg.md": (
            "Rules and transforms",
            inspect.getdoc(jaxreg),
            [name for name in names_of("jaxreg") if not is_regularizer(name)],
        ),
        "reference/regularizers.md": (
            "Regularizers",
            "A regularizer is a penalty with its strength.",
            [name for name in names_of("jaxreg") if is_regularizer(name)],
        ),
    }
    for module in modules():
        owner = f"jaxreg.{module}"
        found[f"reference/{module}.md"] = (owner, inspect.getdoc(sys.modules[owner]), names_of(owner))
    return found


def names_of(owner: str) -> list[str]:
    """Returns the public names of a module. The states, which nobody makes by hand, come last."""
    names = [name for name in public_names() if name.rpartition(".")[0] == owner]
    return sorted(names, key=lambda name: name.endswith("State"))


def is_regularizer(name: str) -> bool:
    obj = public_names()[name]
    return inspect.isclass(obj) and issubclass(obj, jaxreg.Regularizer)


def entry_page(title: str, introduction: str, names: list[str]) -> str:
    blocks = [f"::: {name}\n    options:\n      members: {json.dumps(methods(name))}" for name in names]
    return "\n\n".join([f"# {title}", docstring(introduction), *blocks]) + "\n"


def overview(pages: dict[str, tuple[str, str, list[str]]]) -> str:
    """Returns the page that lists all names with the first sentence of their docstrings."""
    lines = ["# Reference"]
    for title, _, names in pages.values():
        lines += ["", f"## {title}", "", "| | |", "|---|---|"]
        for name in names:
            text = re.split(r"(?<=\.)\s|\n\n", inspect.getdoc(public_names()[name]))[0]
            sentence = docstring(" ".join(text.split())).replace("|", "\\|")
            lines.append(f"| [`{name.rpartition('.')[2]}`][{name}] | {sentence} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
