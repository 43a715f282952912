"""The import rules of the house, read from the source itself, and proof that the guard can fail.

1. Downward or sideways only: cli, studio → compose, imaging, training → tasks → data, formats → adapters.
2. adapters: torch, safetensors and the standard library, and of ours only errors.
3. training knows tasks by tasks.base alone; tasks never import training.
4. Only cli and studio print, parse arguments or exit; importing has no side effect.
5. No import cycles; no function-local import of our own modules, but for the dispatch in cli.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "loraloom"
LEVELS = {
    "adapters": 0,
    "data": 1,
    "formats": 1,
    "tasks": 2,
    "compose": 3,
    "imaging": 3,
    "training": 3,
    "cli": 4,
    "studio": 4,
}
SPEAKERS = {"cli", "studio"}
ENTRANCE = f"{PACKAGE}.__main__"
ADAPTER_LIBRARIES = {"torch", "safetensors"}
PARSERS = {"argparse", "click", "fire", "getopt", "optparse", "typer"}
EXITS = {"exit", "quit", "sys.exit", "os._exit", "os.abort"}
SETTERS = (ast.Attribute, ast.Subscript)


@dataclass(frozen=True)
class Import:
    """One import statement of a module."""

    target: str
    """Dotted name, of a module or of something in it."""
    line: int
    local: bool
    """Inside a function."""
    typing: bool
    """Under `if TYPE_CHECKING`: never run, yet it ties a layer to another."""


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    """Dotted, e.g. "loraloom.adapters.spec"; a package by its own name."""
    package: str
    tree: ast.Module

    @property
    def layer(self) -> str:
        """The folder below the package, "" for the files of the package itself."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 and parts[1] in LEVELS else ""


def read_modules(source: Path) -> dict[str, Module]:
    """Every module below `source`, the folder that holds the package, by its dotted name."""
    modules = {}
    for path in sorted((source / PACKAGE).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        package = name if is_package else name.rpartition(".")[0]
        modules[name] = Module(name, package, ast.parse(path.read_text("utf-8"), str(path)))
    return modules


def imports_of(module: Module) -> Iterator[Import]:
    """Every import statement, with where it stands, relative ones made absolute."""
    yield from _imports(module, module.tree, local=False, typing=False)


def _imports(module: Module, node: ast.AST, *, local: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, local, typing) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            origin = _origin(module, child)
            yield from (Import(f"{origin}.{alias.name}", child.lineno, local, typing) for alias in child.names)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            guarded = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            yield from _imports(module, child, local=local or inside, typing=typing or guarded)


def _origin(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    base = module.package.split(".")[: len(module.package.split(".")) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def module_of(target: str, modules: dict[str, Module]) -> str:
    """The longest part of a dotted name that is a module of ours."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target


def layer_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def faults_of(source: Path) -> list[str]:
    """Every breach of the rules below `source`, as "module:line: what"."""
    modules = read_modules(source)
    faults: list[str] = []
    for module in modules.values():
        for entry in imports_of(module):
            faults += [f"{module.name}:{entry.line}: {what}" for what in _import_faults(module, entry)]
        if module.layer not in SPEAKERS and module.name != ENTRANCE:
            faults += [f"{module.name}:{line}: {what}" for line, what in _speaking(module)]
        faults += [f"{module.name}:{line}: {what}" for line, what in _side_effects(module.tree.body)]
    return faults + [f"import cycle: {' → '.join(cycle)}" for cycle in _cycles(modules)]


def _import_faults(module: Module, entry: Import) -> Iterator[str]:
    root = entry.target.split(".")[0]
    if root != PACKAGE:
        if module.layer == "adapters" and root not in ADAPTER_LIBRARIES | sys.stdlib_module_names:
            yield f"adapters may not import {root}"
        if module.layer not in SPEAKERS and root in PARSERS:
            yield f"only cli and studio parse arguments ({root})"
        return
    if entry.local and module.layer != "cli":
        yield f"function-local import of {entry.target}"
    yield from _layer_faults(module, entry.target)


def _layer_faults(module: Module, target: str) -> Iterator[str]:
    theirs = layer_of(target)
    if module.layer in LEVELS and theirs in LEVELS and LEVELS[theirs] > LEVELS[module.layer]:
        yield f"{module.layer} may not import {theirs} ({target})"
    if module.name == f"{PACKAGE}.errors":
        yield f"errors may not import anything of ours ({target})"
    if module.layer == "adapters" and theirs not in ("adapters", "errors"):
        yield f"adapters may import only errors of ours ({target})"
    in_base = target == f"{PACKAGE}.tasks.base" or target.startswith(f"{PACKAGE}.tasks.base.")
    if module.layer == "training" and theirs == "tasks" and not in_base:
        yield f"training knows tasks only by tasks.base ({target})"


def _speaking(module: Module) -> Iterator[tuple[int, str]]:
    """Printing, exiting and reading the command line, anywhere in a module."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"print", "input"} | EXITS:
                yield node.lineno, f"only cli and studio may call {called}"
        elif isinstance(node, ast.Raise) and node.exc is not None and "SystemExit" in ast.unparse(node.exc):
            yield node.lineno, "only cli and studio may exit"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.argv":
            yield node.lineno, "only cli and studio read sys.argv"


def _side_effects(body: list[ast.stmt]) -> Iterator[tuple[int, str]]:
    """Statements that do something when a module is imported: bare calls, and settings of other modules."""
    for node in body:
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield node.lineno, f"importing calls {ast.unparse(node.value.func)}"
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            changed = [ast.unparse(target) for target in targets if isinstance(target, SETTERS)]
            yield from ((node.lineno, f"importing sets {name}") for name in changed)
        if isinstance(node, ast.ClassDef | ast.If | ast.With | ast.For | ast.While):
            yield from _side_effects(node.body + getattr(node, "orelse", []))
        if isinstance(node, ast.Try):
            handlers = [statement for handler in node.handlers for statement in handler.body]
            yield from _side_effects(node.body + handlers + node.orelse + node.finalbody)


def _cycles(modules: dict[str, Module]) -> list[list[str]]:
    """Circles of imports that are run when a module is imported."""
    edges = {
        name: sorted(
            {module_of(entry.target, modules) for entry in imports_of(module) if not (entry.local or entry.typing)}
            - {"", name}
        )
        for name, module in modules.items()
    }
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
            return
        if name not in done:
            for target in edges.get(name, []):
                visit(target, [*path, name])
            done.add(name)

    for name in modules:
        visit(name, [])
    return found


def test_the_house_keeps_its_import_rules(root: Path) -> None:
    assert read_modules(root / "src"), "no source was read"
    assert faults_of(root / "src") == []


BREACHES = {
    "a layer imports upward": (
        "data/x.py",
        "from loraloom.training import config",
        "data may not import training",
    ),
    "a relative import is no way around": (
        "data/x.py",
        "from ..training import config",
        "data may not import training",
    ),
    "nor is one under TYPE_CHECKING": (
        "tasks/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import loraloom.training.config",
        "tasks may not import training",
    ),
    "training reaches past the task protocol": (
        "training/x.py",
        "from loraloom.tasks.text_classification import TextClassification",
        "training knows tasks only by tasks.base",
    ),
    "training reaches for the registry": (
        "training/x.py",
        "from loraloom.tasks import create_task",
        "tasks.base",
    ),
    "adapters import a heavy library": (
        "adapters/x.py",
        "import transformers",
        "adapters may not import transformers",
    ),
    "adapters import another layer": ("adapters/x.py", "from loraloom.formats import peft", "adapters may"),
    "errors import something of ours": (
        "errors.py",
        "from loraloom.adapters import x",
        "errors may not import",
    ),
    "a library prints": ("training/x.py", "def f():\n    print('loss')", "may call print"),
    "a library exits": ("data/x.py", "import sys\ndef f():\n    sys.exit(2)", "may call sys.exit"),
    "a library raises SystemExit": ("data/x.py", "def f():\n    raise SystemExit(2)", "may exit"),
    "a library parses arguments": ("tasks/x.py", "import argparse", "parse arguments"),
    "a library reads the command line": ("tasks/x.py", "import sys\nwords = sys.argv[1:]", "sys.argv"),
    "importing sets up logging": (
        "data/x.py",
        "import logging\nlogging.basicConfig()",
        "calls logging.basicConfig",
    ),
    "importing seeds": (
        "adapters/x.py",
        "import torch\nif True:\n    torch.manual_seed(0)",
        "calls torch.manual_seed",
    ),
    "importing changes the environment": ("data/x.py", "import os\nos.environ['A'] = '1'", "sets os.environ"),
    "importing chooses threads, in cli too": (
        "cli/x.py",
        "import torch\ntorch.set_num_threads(1)",
        "set_num_threads",
    ),
    "importing sets a backend": (
        "adapters/x.py",
        "import torch\ntorch.backends.x.y = True",
        "sets torch.backends",
    ),
    "a function imports ours": (
        "training/x.py",
        "def f():\n    from loraloom.data import table",
        "function-local",
    ),
    "two modules import each other": ("data/x.py", "import loraloom.data.y", "import cycle"),
}


def _house(folder: Path) -> Path:
    """A small made-up package that keeps every rule."""
    files = {
        "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import loraloom.adapters.x\n",
        "errors.py": "import difflib\n",
        "adapters/__init__.py": "",
        "adapters/x.py": "import math\nimport torch\nfrom loraloom.errors import LoraloomError\n",
        "data/__init__.py": "",
        "data/x.py": "import pyarrow\nfrom loraloom.adapters import x\n",
        "data/y.py": "from . import x\n",
        "tasks/__init__.py": "",
        "tasks/base.py": "from loraloom.data import x\n",
        "training/__init__.py": "",
        "training/x.py": "from loraloom.tasks.base import Task\nfrom loraloom.data import y\n",
        "cli/__init__.py": "",
        "cli/x.py": "import typer\ndef f():\n    from loraloom.training import x\n    print(x)\n",
    }
    for name, text in files.items():
        path = folder / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder


def test_a_house_in_order_has_no_faults(tmp_path: Path) -> None:
    assert faults_of(_house(tmp_path)) == []


@pytest.mark.parametrize("name", BREACHES)
def test_the_guard_sees(name: str, tmp_path: Path) -> None:
    path, breach, told = BREACHES[name]
    house = _house(tmp_path)
    target = house / PACKAGE / path
    target.write_text(breach + "\n", "utf-8")
    faults = faults_of(house)
    assert any(told in fault for fault in faults), faults
