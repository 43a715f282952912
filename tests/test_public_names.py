"""The face of the package: every name it promises is there, lazily, and no other."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import loraloom

NAMES = {
    "attach", "LoRA", "AdapterSet", "AdapterSpec", "adapters_of", "plan_attach", "save", "load",
    "train", "TrainConfig", "load_config", "create_task", "open_run", "evaluate", "predict",
    "convert", "Conversion", "compare", "mix", "MixJob", "Weighted", "resize", "ResizeJob", "merge", "MergeJob",
    "extract", "ExtractJob", "LoraloomError", "__version__",
}  # fmt: skip


def test_the_face_is_as_promised() -> None:
    assert set(loraloom.__all__) == NAMES
    assert set(dir(loraloom)) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES - {"__version__"}))
def test_every_name_is_what_its_home_holds(name: str) -> None:
    module, _, attribute = loraloom._HOMES[name].partition(":")
    assert getattr(loraloom, name) is getattr(importlib.import_module(module), attribute)


def test_lazy_names_and_typed_names_are_the_same(root: Path) -> None:
    """What a type checker sees under TYPE_CHECKING is what `__getattr__` gives."""
    tree = ast.parse((root / "src" / "loraloom" / "__init__.py").read_text("utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == loraloom._HOMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        loraloom.atach  # noqa: B018


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("loraloom.adapters", {"attach", "LoRA", "AdapterSet", "AdapterSpec", "plan_attach", "adapters_of"}),
        ("loraloom.tasks", {"create_task", "task_names"}),
    ],
)
def test_packages_keep_their_public_names(package: str, names: set[str]) -> None:
    module = importlib.import_module(package)
    assert names <= set(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name)
