"""What the documents name exists: links, files, commands, targets."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "benchmarks|compiler|docs|examples|relay_ops|schedules|tests|tuning_logs|out"
MADE = {"out"}  # by `make`
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def document(request):
    return request.param


def anchors(path):
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_relative_links_resolve(document):
    text = FENCED.sub("", document.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_document_is_reachable():
    """README.md links to every page, itself or through another one."""
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+)", page.read_text())
        todo += [(page.parent / link).resolve() for link in links if ":" not in link]
    assert set(DOCUMENTS) <= seen


def test_files_that_are_named_exist(document):
    """Names with capitals (relay_ops/NAME.py) stand for files to be added."""
    for name in re.findall(rf"`((?:{FOLDERS})/[^\s`]*)`", document.read_text()):
        if name.split("/")[0] in MADE or "NAME" in name or "CHIP" in name:
            continue
        found = list(ROOT.glob(name.rstrip("/"))) if "*" in name else [ROOT / name]
        assert found and all(path.exists() for path in found), name


def commands(text):
    """The command lines in code blocks."""
    inside = "\n".join(FENCED.findall(text)) + "\n" + FENCED.sub("", text)
    return re.findall(r"^(?: {4,})?((?:intformer|make) .*)$", inside, re.MULTILINE)


def test_commands_exist(document):
    from intformer import cli
    from intformer.cli import options

    makefile = (ROOT / "Makefile").read_text()
    for line in commands(document.read_text()):
        program, verb, *words = shlex.split(line, comments=True)
        if program == "make":
            assert re.search(rf"^{verb}:", makefile, re.MULTILINE), line
            continue
        module = import_module(f"intformer.cli.{verb.replace('-', '_')}")
        assert verb in cli.VERBS, line
        parser = cli.parser()._subparsers._group_actions[0].choices[verb]
        function = module.function() if hasattr(module, "function") else None
        options.add(parser, function, module.options())
        known = {flag for action in parser._actions for flag in action.option_strings}
        for word in words:
            assert not word.startswith("-") or word.partition("=")[0] in known, f"{line}: {word}"


def test_every_target_is_described():
    from intformer.backends.targets import TARGETS

    text = (ROOT / "docs" / "targets.md").read_text()
    for name in TARGETS:
        assert f"`{name}`" in text, name
