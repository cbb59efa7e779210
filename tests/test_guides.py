"""The README and the guides: their code runs, and what they print is what they show."""

import contextlib
import io
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
GUIDES = sorted((ROOT / "examples" / "guides").glob("*.md"))
README = (ROOT / "README.md").read_text()

BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def run(text, name, *, together):
    """Runs the Python blocks of a page, in order or each alone. A text block is what the one before it printed."""
    names, printed = {}, ""
    for number, (language, block) in enumerate(BLOCK.findall(text)):
        if language == "python":
            names = names if together else {"__name__": "block"}
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(block, f"{name}, block {number}", "exec"), names)
            printed = output.getvalue()
        elif language == "text":
            assert lines(block) == lines(printed), f"{name}, block {number} is not what is printed:\n{printed}"


def lines(text):
    return [line.rstrip() for line in text.strip("\n").splitlines() if line.strip()]


@pytest.mark.standard_promotion
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_the_blocks_of_a_guide_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    assert text.startswith("# ")
    assert "```python" in text
    run(text, page.name, together=True)


@pytest.mark.standard_promotion
@pytest.mark.parametrize("number", range(README.count("```python")))
def test_each_block_of_the_readme_runs_alone(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = [match.start() for match in re.finditer("```python", README)][number]
    following = README.find("```python", start + 1)
    run(README[start : None if following < 0 else following], "README.md", together=False)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 220


def test_readme_commands_are_the_first_shell_lines():
    shell = [line for language, block in BLOCK.findall(README) if language == "sh" for line in block.splitlines()]
    assert all(line.startswith("python3 ") for line in shell[:2])
    assert "examples/digits.py" in shell[0]
    assert "pytest" in shell[1]
    for caller in (ROOT / ".ci" / "run", ROOT / ".github" / "workflows" / "tests.yml"):
        assert "grep -m1 '^python3 .*pytest' README.md" in caller.read_text()
