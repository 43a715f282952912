"""What the documents say is so: commands and code run, links and paths lead somewhere, two languages agree."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import urlsplit

import pytest
from tests.cli.commands import make_tiny_base, sentences, write_csv
from tests.documents import (
    DOCUMENTS,
    ROOT,
    anchors,
    blocks,
    commands,
    headings,
    links,
    marked,
    name_of,
    quoted,
    tree,
)

import loraloom
from loraloom.cli import side_by_side
from loraloom.cli.main import VERBS, main

README, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"

ALSO_DONE = {
    # 1 is its word for "not clearly better", which is true of the few random weights that stand in for the base.
    "loraloom demo": (0, 1),
}
"""Commands that may end with another status than 0 here, and which."""

SERVES = "loraloom studio"
"""Runs until it is stopped; tests/studio opens its page."""

NOT_RUN = {"pip": "an installation is what .ci/run does", "make": "its targets are looked up instead"}

HOSTS = {"arxiv.org", "keepachangelog.com", "semver.org", "huggingface.co", "github.com", "www.apache.org"}

FORBIDDEN = {
    "a machine's path": r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt|opt|srv)/|\b[A-Z]:\\",
    "a package index": r"pypi\.org|pythonhosted|index-url|/simple\b",
    "an address": r"\b\d{1,3}(?:\.\d{1,3}){3}\b|\blocalhost\b",
    "how it was made": r"(?i)\b(?:co-authored|chat ?bot|ai-generated|assistant|our team|sub-?agents?|issue #?\d)\b",
}

PLACEHOLDERS = {"tasks/my_task.py", "formats/its_name.py"}
PACKAGES = sorted(path.parent.name for path in (ROOT / "src" / "loraloom").glob("*/__init__.py"))


# -- what is typed ----------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder: the examples, three small tables, and a base of a few kilobytes under the real one's name."""
    make_tiny_base(tmp_path / "sentence-transformers" / "all-MiniLM-L6-v2", seed=0)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    write_csv(tmp_path / "reviews.csv", sentences(48))
    rows = [(text.replace("number", "of day"), label) for text, label in sentences(20)]
    write_csv(tmp_path / "test.csv", rows)
    (tmp_path / "new.csv").write_text("text\nthe soup was great\nthe film was cold\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    # The demo's two runs would be processes of their own; tests/cli/test_demo.py sees to that.
    monkeypatch.setattr(side_by_side, "subprocess", SimpleNamespace(run=same_process, PIPE=subprocess.PIPE))
    return tmp_path


def same_process(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    """`python -m loraloom WORDS…` without the seconds that a new interpreter takes to import everything."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = main(words[3:])
    return subprocess.CompletedProcess(words, status, out.getvalue())


def run(command: str) -> int:
    """The status of a command of the README; 0 for those that are not run here."""
    program, *words = shlex.split(command)
    if program in NOT_RUN or command == SERVES:
        return 0
    if program == "python":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            runpy.run_path(words[0], run_name="__main__")
        return 0
    assert program == "loraloom", f"{command!r} is no command that this test knows how to run"
    return main(words)


@pytest.mark.timeout(300)
def test_every_command_of_the_readme_runs(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In their order, since later ones use what earlier ones made."""
    found = commands(README)
    assert len(found) > 10
    faults = []
    for command in found:
        status = run(command)
        if status not in ALSO_DONE.get(command, (0,)):
            faults.append(f"{command}\n  status {status}: {capsys.readouterr().err.strip()[-300:]}")
    assert not faults, "\n".join(faults)
    assert (desk / "runs/reviews/adapter_model.safetensors").is_file()
    assert len((desk / "predictions.csv").read_text("utf-8").splitlines()) == 3
    assert (desk / "spectrum.png").is_file()


def test_every_verb_has_an_example() -> None:
    shown = {shlex.split(command)[1] for command in commands(README) if command.startswith("loraloom ")}
    assert shown == set(VERBS)


@pytest.mark.usefixtures("desk")
def test_every_python_block_of_the_readme_runs() -> None:
    found = blocks(README, "python")
    assert len(found) >= 4
    names: dict[str, object] = {}
    for block in found:
        exec(compile(block, "README.md", "exec"), names)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_what_is_not_run_is_at_least_there(path: Path) -> None:
    """Targets of the Makefile, and extras of the package."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.optional-dependencies]")[2]
    extras = set(re.findall(r"^([a-z]+) = \[", project, re.MULTILINE))
    for command in [*commands(path), *quoted(path)]:
        if re.fullmatch(r"make( [a-z]+)+( ARGS=.*)?", command):
            assert set(command.partition(" ARGS")[0].split()[1:]) <= targets, command
        if command.startswith("pip install '.["):
            assert set(command[len("pip install '.[") : -2].split(",")) <= extras, command


# -- two languages ----------------------------------------------------------------------------------


def test_the_chinese_readme_has_the_same_commands_code_and_parts() -> None:
    assert commands(CHINESE) == commands(README)
    assert [ast.dump(ast.parse(block)) for block in blocks(CHINESE, "python")] == [
        ast.dump(ast.parse(block)) for block in blocks(README, "python")
    ]
    assert len(headings(CHINESE)) == len(headings(README))
    assert [path for path, _ in tree(CHINESE)] == [path for path, _ in tree(README)]
    assert [link for link in links(CHINESE) if link[0] != "#"] == [link for link in links(README) if link[0] != "#"]


@pytest.mark.parametrize("mark", ["demo", "bench"])
def test_both_readmes_give_the_same_figures(mark: str) -> None:
    numbers = [re.findall(r"\d[\d.,]*", marked(path, mark)) for path in (README, CHINESE)]
    assert numbers[0], f"the block {mark} has no figures"
    assert numbers[0] == numbers[1]


# -- what is named ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for link in links(path):
        if link.startswith("http"):
            assert urlsplit(link).hostname in HOSTS, link
            continue
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), f"{name_of(path)} links to {link}"
        assert not anchor or anchor in anchors(there), f"{name_of(path)} links to {link}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_that_are_named_exist(path: Path) -> None:
    for word in set(quoted(path)) - PLACEHOLDERS:
        for part in word.split():
            if re.fullmatch(r"(src|tests|docs|examples|bench|\.ci)/[\w./-]*", part):
                assert (ROOT / part).exists(), f"{name_of(path)} names {part}"
            elif re.fullmatch(rf"({'|'.join(PACKAGES)})/[\w/-]+\.py", part):
                assert (ROOT / "src" / "loraloom" / part).exists(), f"{name_of(path)} names {part}"


@pytest.mark.parametrize("path", [README, CHINESE], ids=name_of)
def test_the_tree_is_the_tree(path: Path) -> None:
    entries = dict(tree(path))
    assert all((ROOT / entry).exists() for entry in entries), [e for e in entries if not (ROOT / e).exists()]
    assert all((ROOT / entry).is_dir() == entry.endswith("/") for entry in entries)
    expected = {f"src/loraloom/{package}/" for package in PACKAGES} | {"bench/", "tests/", "docs/", "examples/"}
    for folder, suffixes in (("examples", {".py", ".yaml"}), ("docs", {".md", ".py"}), (".", {".md"})):
        files = (file for file in (ROOT / folder).iterdir() if file.suffix in suffixes)
        expected |= {file.relative_to(ROOT).as_posix() for file in files}
    assert expected <= set(entries), f"not in the tree: {sorted(expected - set(entries))}"
    bare = [entry for entry, caption in entries.items() if not caption]
    assert set(bare) <= {"README.zh.md", "docs/README.md"}, f"without a caption: {bare}"


@pytest.mark.parametrize("what", FORBIDDEN)
@pytest.mark.parametrize("path", [*DOCUMENTS, *sorted((ROOT / "examples").rglob("*.*"))], ids=name_of)
def test_documents_speak_of_the_project_alone(path: Path, what: str) -> None:
    if path.is_file():
        found = re.search(FORBIDDEN[what], path.read_text("utf-8"))
        assert found is None, f"{name_of(path)} holds {what}: {found[0] if found else ''}"


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a machine's path", "see /home/someone/run"),
        ("a package index", "pip install --index-url x"),
        ("an address", "http://127.0.0.1"),
        ("how it was made", "as asked in issue 7"),
    ],
)
def test_the_guard_sees(what: str, text: str) -> None:
    assert re.search(FORBIDDEN[what], text)


# -- what is made or kept in step -------------------------------------------------------------------


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return script("generate")


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    return script("figures")


def script(name: str) -> ModuleType:
    """A program of the folder docs as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["configuration.md", "cli.md"])
def test_made_pages_are_up_to_date(name: str, generate: ModuleType) -> None:
    written = (ROOT / "docs" / name).read_text("utf-8")
    assert generate.PAGES[name]() == written, f"docs/{name} is out of date: run python docs/generate.py"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_measured_figures_find_their_place(language: str, figures: ModuleType, tmp_path: Path) -> None:
    scores = {f"{name}{end}": 0.5 for name in ("accuracy", "macro_f1") for end in ("", "_low", "_high")}
    trained = {"trained": 1234, "trained_share": 0.25, "bytes": 2048, "seconds": 7.0, "memory_mib": 30.0}
    page = shutil.copy(figures.READMES[language], tmp_path / "README.md")
    demo = figures.demo_table({"rows": [{"name": "base", **scores}, {"name": "lora", **scores, **trained}]}, language)
    figures.put(page, "demo", demo)
    report = "| part | measure | found | at most | reached |\n| gradients | fused | 1.0e-15 | 1e-10 | yes |\n"
    figures.put(page, "bench", figures.bench_table(report + "| whole job | accuracy | 90 % | – | |\n", language))
    assert "| 1,234 | 25.00 % | 2.0 KiB | 7.0 s | 30 MiB |" in marked(page, "demo")
    assert " | 1.0e-15 | 1e-10 |" in marked(page, "bench") and "90 %" not in marked(page, "bench")
    assert headings(page) == headings(figures.READMES[language])


def test_the_index_has_every_page_and_every_decision_by_its_title() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    for page in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        number, _, title = headings(page)[0].partition(" · ")
        assert page.name.startswith(f"{int(number):04d}-")
        assert f"| {number} | [{title}](decisions/{page.name}) |" in index, page.name
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## \[{re.escape(loraloom.__version__)}\] - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE)
