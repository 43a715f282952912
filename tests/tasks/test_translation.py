"""The task on tiny models of every family with their own tokenizers: languages, batches, losses, text, adapters."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("sentencepiece", reason="the families' tokenizers are made with sentencepiece")
pytest.importorskip("sacrebleu", reason="translations are scored with sacrebleu")

from tokenizers import processors
from transformers import AutoTokenizer, BertConfig, BertModel, MarianConfig

from loraloom.adapters import attach
from loraloom.errors import BaseModelError, ConfigError, DataError, FormatError
from loraloom.formats import load_adapter, save_adapter
from loraloom.tasks.base import AnswerOptions, BaseModel, Batch
from loraloom.tasks.language.seq2seq import IGNORED, most_new_tokens, output_rows, tokenise_targets, write
from loraloom.tasks.translation import Translated, Translation, TranslationOptions

from .translators import FAMILIES, PAIRS, POSITIONS, as_examples, make_translator


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("translators")
    return {name: make_translator(root / name.replace(" ", "-"), name) for name in FAMILIES}


@pytest.fixture(params=list(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(
    folders: dict[str, Path], name: str, prefix: str | None = None, **settings: Any
) -> tuple[Translation, BaseModel]:
    task = Translation(TranslationOptions(**FAMILIES[name].options, prefix=prefix))
    return task, task.load(str(folders[name]), **settings)


def a_batch(task: Translation, base: BaseModel, pairs: list[tuple[str, str]] = PAIRS) -> Batch:
    return task.collate(task.encode(as_examples(pairs), base).features, base)


def trained(
    task: Translation, base: BaseModel, *, steps: int, rate: float = 2e-2, **spec: Any
) -> tuple[Any, list[float]]:
    """An adapter trained on one batch, and the loss per token before every step."""
    adapters = attach(base.model, rank=4, **spec)
    batch = a_batch(task, base)
    optimizer = torch.optim.Adam(list(adapters.parameters()), lr=rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss, items = task.loss(base.model, batch)
        (loss / items).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()) / items)
    return adapters, losses


# --- what the models are fed


def test_a_batch_is_what_the_model_makes_of_labels_itself(folders: dict[str, Path], name: str) -> None:
    task, base = load(folders, name)
    batch = a_batch(task, base)
    loss, items = task.loss(base.model, batch)
    with torch.no_grad():
        own = base.model(
            input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), labels=batch["labels"]
        )
    assert items == int((batch["labels"] != IGNORED).sum()) == sum(len(row[row != IGNORED]) for row in batch["labels"])
    assert float(loss.detach()) / items == pytest.approx(float(own.loss), rel=1e-5)


def test_the_languages_are_where_the_family_wants_them(folders: dict[str, Path], name: str) -> None:
    task, base = load(folders, name)
    tokenizer, kind = base.processor, FAMILIES[name]
    batch = a_batch(task, base)
    settings: Any = base.model.generation_config
    start = tokenizer.convert_tokens_to_ids(kind.start)
    assert settings.decoder_start_token_id == start
    assert batch["decoder_input_ids"][:, 0].tolist() == [start] * len(PAIRS)
    if kind.forced is None:
        assert settings.forced_bos_token_id is None
    else:
        assert settings.forced_bos_token_id == tokenizer.convert_tokens_to_ids(kind.forced)
        assert batch["labels"][:, 0].tolist() == [settings.forced_bos_token_id] * len(PAIRS)
    for row, ids in zip(batch["labels"], batch["decoder_input_ids"], strict=True):
        kept = row[row != IGNORED]
        assert tokenizer.eos_token_id in kept[-2:].tolist()
        assert ids[1 : len(kept)].tolist() == kept[:-1].tolist()


def test_the_source_names_its_language(folders: dict[str, Path]) -> None:
    first = {
        name: load(folders, name)[0].encode(as_examples(), load(folders, name)[1]).features[0].inputs["input_ids"]
        for name in ("nllb", "m2m100", "mbart-50", "mbart")
    }
    for name, token, place in (
        ("nllb", "eng_Latn", 0),
        ("m2m100", "__en__", 0),
        ("mbart-50", "en_XX", 0),
        ("mbart", "en_XX", -1),
    ):
        tokenizer = load(folders, name)[1].processor
        assert first[name][place] == tokenizer.convert_tokens_to_ids(token), name


@pytest.mark.parametrize(
    ("family", "prefix"), [("marian, several targets", ">>nld<< "), ("t5", "translate English to Dutch: ")]
)
def test_what_is_put_before_the_source(folders: dict[str, Path], family: str, prefix: str) -> None:
    task, base = load(folders, family)
    found = task.encode(as_examples(), base).features[0].inputs["input_ids"].tolist()
    assert found == base.processor(prefix + PAIRS[0][0])["input_ids"]
    assert found != base.processor(PAIRS[0][0])["input_ids"]


def test_marians_mark_is_one_token(folders: dict[str, Path]) -> None:
    task, base = load(folders, "marian, several targets")
    first = task.encode(as_examples(), base).features[0].inputs["input_ids"][0]
    assert base.processor.convert_ids_to_tokens(int(first)) == ">>nld<<"


def test_a_prefix_of_ones_own_goes_before_the_made_one(folders: dict[str, Path]) -> None:
    task = Translation(TranslationOptions(prefix="nl: ", source_language="English", target_language="Dutch"))
    base = task.load(str(folders["t5"]))
    found = task.encode(as_examples(), base).features[0].inputs["input_ids"].tolist()
    assert found == base.processor("nl: " + PAIRS[0][0])["input_ids"]


def test_a_prefix_made_of_codes_uses_the_languages_names(folders: dict[str, Path]) -> None:
    task = Translation(TranslationOptions(source_language="en", target_language="deu"))
    base = task.load(str(folders["t5"]))
    assert "every source begins with 'translate English to German: '" in base.notes[-1]


WRONG = [
    ("nllb", {"target_language": "nl"}, "'nl' is no language code of this base model; did you mean 'nld_Latn'"),
    ("nllb", {"source_language": "eng_Latm", "target_language": "nld_Latn"}, "options.source_language.*'eng_Latn'"),
    ("mbart-50", {"target_language": "nld"}, "did you mean 'nl_XX'"),
    ("m2m100", {"target_language": "Dutch"}, "did you mean 'nl'"),
    ("m2m100", {"source_language": "qqqqq", "target_language": "nl"}, "it knows 100 of them, e.g. 'af'"),
    ("marian, several targets", {"target_language": "nl"}, "did you mean 'nld'"),
    ("marian, several targets", {}, "needs to be told the target language; it knows 2 of them, e.g. 'fra', 'nld'"),
    ("nllb", {}, "needs to be told the target language; it knows 202"),
    ("nllb", {"source_language": "nld_Latn", "target_language": "nld_Latn"}, "is the source language too"),
    ("nllb", {"target_language": "eng_Latn"}, "source and target are both 'eng_Latn'"),
    ("t5", {"target_language": "Dutch"}, "options.source_language: the prefix of a T5 model names both languages"),
    ("marian", {"target_language": "fr"}, "'fr' cannot be told to this base model, .* 'nl'"),
]


@pytest.mark.parametrize(("family", "options", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_languages(folders: dict[str, Path], family: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Translation(TranslationOptions(**options)).load(str(folders[family]))


def test_languages_that_the_files_name_are_taken_and_told(folders: dict[str, Path], tmp_path: Path) -> None:
    _, base = load(folders, "nllb")
    base.model.save_pretrained(tmp_path)  # type: ignore[operator]
    base.processor.save_pretrained(tmp_path)
    again = Translation()
    notes = again.load(str(tmp_path)).notes
    assert again._direction.target == "nld_Latn"
    assert any("'nld_Latn', as the model's files have it" in note for note in notes)


def test_a_model_for_one_target_names_it_by_its_forced_token(folders: dict[str, Path], tmp_path: Path) -> None:
    task = Translation(TranslationOptions(target_language="en_XX", source_language="nl_XX"))
    base = task.load(str(folders["mbart-50"]))
    model: Any = base.model
    model.generation_config.forced_bos_token_id = None
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    old = json.loads((tmp_path / "config.json").read_text("utf-8"))  # as checkpoints of some years ago have it
    old["forced_bos_token_id"] = base.processor.convert_tokens_to_ids("de_DE")
    (tmp_path / "config.json").write_text(json.dumps(old), "utf-8")
    FAMILIES["mbart-50"].tokenizer(tmp_path / "made").save_pretrained(tmp_path)
    again = Translation()
    again.load(str(tmp_path))
    assert again._direction.target == "de_DE"


def test_a_language_that_bilingual_files_name_too_is_fine(folders: dict[str, Path]) -> None:
    task = Translation(TranslationOptions(source_language="en", target_language="Dutch"))
    base = task.load(str(folders["marian"])) if _keeps_languages(folders) else None
    assert base is None or task._direction.prefix == ""


def _keeps_languages(folders: dict[str, Path]) -> bool:
    """Whether this version of transformers writes down a Marian tokenizer's languages."""
    return bool(load(folders, "marian")[1].processor.target_lang)


# --- lengths


def test_what_is_longer_than_the_positions_is_cut_and_counted(folders: dict[str, Path], name: str) -> None:
    task, base = load(folders, name, prefix="")
    long = "the cat sits " * 20
    pairs = [("a cat", "een kat"), (long, "een kat"), ("a cat", long), (long, long)]
    limited = FAMILIES[name].model.__name__ not in ("T5ForConditionalGeneration", "MT5ForConditionalGeneration")
    task.options = task.options.model_copy(update={"max_length": None if limited else POSITIONS})
    encoded = task.encode(as_examples(pairs), base)
    assert encoded.truncated == 3
    assert max(len(feature.inputs["input_ids"]) for feature in encoded.features) == POSITIONS
    assert max(len(feature.inputs["labels"]) for feature in encoded.features) == POSITIONS
    for feature in encoded.features:
        assert base.processor.eos_token_id in feature.inputs["labels"][-2:]
        assert feature.length == len(feature.inputs["input_ids"]) + len(feature.inputs["labels"])
    loss, _ = task.loss(base.model, task.collate(encoded.features, base))
    assert torch.isfinite(loss)


def test_targets_without_an_end_token_get_one(folders: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["t5"])
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    rows, _ = tokenise_targets(["de kat zit", "het huis is groot"], tokenizer, None)
    assert all(row[-1] == tokenizer.eos_token_id for row in rows)
    rows, long = tokenise_targets(["de kat zit"], tokenizer, 4)
    assert long == [True] and len(rows[0]) == 4 and rows[0][-1] == tokenizer.eos_token_id


def test_a_translation_has_room_by_its_source_and_the_positions(folders: dict[str, Path]) -> None:
    base = load(folders, "marian")[1]
    assert most_new_tokens(base.model, base.processor, 2) == 20  # type: ignore[arg-type]
    assert most_new_tokens(base.model, base.processor, 20) == POSITIONS - 1  # type: ignore[arg-type]
    t5 = load(folders, "t5")[1]
    assert most_new_tokens(t5.model, t5.processor, 50) == 116  # type: ignore[arg-type]


def test_a_row_is_translated_alike_in_any_batch(folders: dict[str, Path]) -> None:
    """Random weights never end a text, so that the bound of each row shows."""
    task, base = load(folders, "t5")
    features = task.encode(as_examples([("a", "b"), ("the house is big " * 6, "b")]), base).features
    together = task.predict(base.model, task.collate(features, base), base)
    alone = [task.predict(base.model, task.collate([feature], base), base)[0] for feature in features]
    assert together == alone


# --- training and results


def test_the_loss_falls(folders: dict[str, Path], name: str) -> None:
    task, base = load(folders, name)
    _, losses = trained(task, base, steps=30, rate=3e-2)
    assert losses[-1] < 0.9 * losses[0], (losses[0], losses[-1])


def test_every_attention_has_adapters_by_default(folders: dict[str, Path], name: str) -> None:
    _, base = load(folders, name)
    paths = [site.path for site in attach(base.model, rank=2).plan("default").sites]
    crossing = ("encoder_attn", "EncDecAttention")
    assert any(part in path for path in paths for part in crossing), paths
    assert any("encoder." in path for path in paths) and any("decoder." in path for path in paths)
    assert not any("lm_head" in path or "shared" in path or "embed" in path for path in paths)


def test_saved_and_loaded_again_it_says_the_same(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    task, base = load(folders, name)
    before = task.outputs(base.model, a_batch(task, base))
    adapters, _ = trained(task, base, steps=8)
    save_adapter(adapters, "default", tmp_path, task_type=task.peft_type)
    batch = a_batch(task, base)
    expected, texts = task.outputs(base.model, batch), task.predict(base.model, batch, base)
    fresh_task, fresh = load(folders, name)
    load_adapter(fresh.model, tmp_path)
    assert torch.equal(fresh_task.outputs(fresh.model, batch), expected)
    assert fresh_task.predict(fresh.model, batch, fresh) == texts
    assert (expected - before).abs().max() > 1e-2, "the adapter does nothing"


def test_peft_gives_the_same_logits(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed: nothing to compare with")
    task, base = load(folders, name, dtype=torch.float64)
    adapters = attach(base.model, rank=4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).double() * 0.1)
    save_adapter(adapters, "default", tmp_path, task_type=task.peft_type)
    batch = a_batch(task, base)
    batch = {key: tensor for key, tensor in batch.items() if key != "labels"}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = load(folders, name, dtype=torch.float64)[1].model
        bare = plain(**batch).logits
        other = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
        assert type(other).__name__ == "PeftModelForSeq2SeqLM"
        found, expected = other(**batch).logits, base.model(**batch).logits
    size = float(expected.abs().max())
    assert (found - expected).abs().max() <= 1e-6 * size
    assert (bare - expected).abs().max() > 1e-2 * size


def test_a_bf16_base_trains_and_writes(folders: dict[str, Path], name: str) -> None:
    task, base = load(folders, name, dtype=torch.bfloat16)
    _, losses = trained(task, base, steps=12)
    assert losses[-1] < losses[0]
    batch = a_batch(task, base)
    assert task.loss(base.model, batch)[0].dtype == task.outputs(base.model, batch).dtype == torch.float32
    assert all(isinstance(found.text, str) for found in task.predict(base.model, batch, base))


def test_a_learnt_batch_is_translated_without_marks_of_the_language(folders: dict[str, Path]) -> None:
    task, base = load(folders, "m2m100")
    batch = a_batch(task, base)
    base.model.requires_grad_(True)
    optimizer = torch.optim.Adam(base.model.parameters(), lr=2e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss, items = task.loss(base.model, batch)
        (loss / items).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert [found.text for found in task.predict(base.model, batch, base)] == [target for _, target in PAIRS]


def test_smoothing_is_part_of_the_loss(folders: dict[str, Path]) -> None:
    task, base = load(folders, "marian")
    batch = a_batch(task, base)
    plain, items = task.loss(base.model, batch)
    task.options = task.options.model_copy(update={"label_smoothing": 0.2})
    smoothed, same = task.loss(base.model, batch)
    with torch.no_grad():
        rows = base.model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    spread = -rows[batch["labels"] != IGNORED].float().log_softmax(-1).mean(-1).sum()
    assert items == same
    assert float(smoothed.detach()) == pytest.approx(float((0.8 * plain + 0.2 * spread).detach()), rel=1e-5)


def test_outputs_are_the_targets_log_probabilities(folders: dict[str, Path]) -> None:
    task, base = load(folders, "marian")
    batch = a_batch(task, base)
    found = task.outputs(base.model, batch)
    assert found.shape == batch["labels"].shape and (found[batch["labels"] == IGNORED] == 0).all()
    assert float(-found.sum()) == pytest.approx(float(task.loss(base.model, batch)[0].detach()), rel=1e-5)
    bare = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask")}
    assert task.outputs(base.model, bare).shape == (len(PAIRS), output_rows(base.model))  # type: ignore[arg-type]


# --- answers


def test_answers_by_beam_search(folders: dict[str, Path]) -> None:
    task, base = load(folders, "nllb")
    trained(task, base, steps=40)
    features = task.encode([task.question(source, 1) for source, _ in PAIRS], base).features
    assert all("labels" not in feature.inputs and feature.reference is None for feature in features)
    found = task.answer(base.model, features, base, AnswerOptions())
    assert len(found) == len(PAIRS)
    batch = task.collate([features[2]], base)
    rows = write(base.model, batch, base.model, base.processor, beams=4)  # type: ignore[arg-type]
    text = base.processor.decode(
        [i for i in rows[0].tolist() if i != task._direction.target_id], skip_special_tokens=True
    )
    assert found[2].text == text.strip()
    told = task.describe(found[2])
    assert told["translation"] == found[2].text and 0 < told["score"] <= 1
    assert task.describe(Translated("Hallo")) == {"translation": "Hallo"}


def test_the_score_is_the_mean_probability_of_a_token(folders: dict[str, Path]) -> None:
    task, base = load(folders, "nllb")
    features = task.encode([task.question(PAIRS[0][0], 1)], base).features
    found = task.answer(base.model, features, base, AnswerOptions(beams=1, max_new_tokens=5))[0]
    rows = write(base.model, task.collate(features, base), base.model, base.processor, beams=1, most=5)  # type: ignore[arg-type]
    with torch.no_grad():
        logits = base.model(**task.collate(features, base), decoder_input_ids=rows[:, :-1]).logits
    told = [token for token in rows[0, 2:].tolist() if token != base.processor.pad_token_id]
    chances = logits[0].softmax(-1)[1 : 1 + len(told)].gather(1, torch.tensor(told)[:, None])
    assert rows.shape[1] <= 6 and rows[0, 1] == task._direction.target_id
    assert found.score == pytest.approx(float(chances.log().mean().exp()), rel=1e-4)


def test_more_beams_find_what_is_no_less_probable(folders: dict[str, Path]) -> None:
    task, base = load(folders, "marian")
    trained(task, base, steps=30)
    features = task.encode(as_examples(), base).features
    greedy = task.answer(base.model, features, base, AnswerOptions(beams=1))
    assert [found.text for found in greedy] == [
        found.text for found in task.predict(base.model, task.collate(features, base), base)
    ]
    many = task.answer(base.model, features, base, AnswerOptions(beams=6))
    assert sum(found.score or 0 for found in many) >= sum(found.score or 0 for found in greedy) - 1e-3


def test_an_empty_question_is_refused() -> None:
    with pytest.raises(DataError, match="text 3 is empty"):
        Translation().question("  ", 3)


# --- bases


def test_a_model_without_a_decoder_is_refused(tmp_path: Path) -> None:
    BertModel(
        BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match="holds a 'bert' model, which has no encoder beside a decoder; Marian"):
        Translation().load(str(tmp_path))


def test_a_model_that_is_not_whole_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["marian"], tmp_path / "base"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.decoder.layers.0.encoder_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseModelError, match=r"lacks or misshapes 1 of the tensors .* \(model.decoder.layers.0.enc"):
        Translation().load(str(folder))


@pytest.mark.parametrize("kind", ["marian", "t5", "bart"])
def test_a_base_from_a_configuration_alone(kind: str, tmp_path: Path) -> None:
    tokenizer = FAMILIES["t5" if kind == "t5" else "nllb"].tokenizer(tmp_path / "made")
    config = FAMILIES[kind].config(tokenizer, vocab_size=300)
    (tmp_path / "config").mkdir()
    config.save_pretrained(tmp_path / "config")
    task = Translation()
    with pytest.raises(ConfigError, match="a tokenizer is learnt from the training texts"):
        task.load(str(tmp_path / "config"), from_config=True)
    task._texts = [text for pair in PAIRS for text in pair]
    base, same, other = (task.load(str(tmp_path / "config"), from_config=True, seed=seed) for seed in (1, 1, 2))
    assert base.source == "config" and "drawn from seed 1" in " ".join(base.notes)
    assert base.model.config.vocab_size == len(base.processor) <= 300  # type: ignore[union-attr]
    first = next(base.model.parameters())
    assert torch.equal(first, next(same.model.parameters())) and not torch.equal(first, next(other.model.parameters()))
    batch = a_batch(task, base)
    base.model.save_pretrained(tmp_path / "made-base")  # type: ignore[operator]
    base.processor.save_pretrained(tmp_path / "made-base")
    again = Translation().load(str(tmp_path / "made-base"))
    assert torch.equal(task.outputs(base.model, batch), task.outputs(again.model, batch))
    assert again.processor(PAIRS[0][0])["input_ids"] == base.processor(PAIRS[0][0])["input_ids"]
    assert (
        again.processor.decode(again.processor("de kat, 'zit'!")["input_ids"], skip_special_tokens=True)
        == "de kat, 'zit'!"
    )


def test_a_configuration_with_ids_of_another_vocabulary_is_fitted(tmp_path: Path) -> None:
    MarianConfig(
        vocab_size=320,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    ).save_pretrained(tmp_path)
    task = Translation()
    task._texts = [text for pair in PAIRS for text in pair]
    base = task.load(str(tmp_path), from_config=True)
    task.predict(base.model, a_batch(task, base), base)
    settings: Any = base.model.generation_config
    assert settings.decoder_start_token_id == settings.pad_token_id == base.processor.pad_token_id
    assert settings.eos_token_id == base.processor.eos_token_id


# --- state


def test_state_brings_everything_back(folders: dict[str, Path]) -> None:
    task = Translation(TranslationOptions(target_language="nld_Latn", source_language="eng_Latn", evaluation_beams=2))
    task._columns = {"source": "en", "target": "nl"}
    state = task.state()
    assert state["signatures"] == task.signatures
    assert state["signatures"]["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    again = Translation()
    again.restore(state)
    assert again.options == task.options and again._columns == task._columns
    assert again.load(str(folders["nllb"])).model.generation_config.forced_bos_token_id is not None  # type: ignore[union-attr]


def test_a_damaged_state_is_refused() -> None:
    with pytest.raises(FormatError, match="'options' are not those of a translation"):
        Translation().restore({"options": {"evaluation_beams": 0}})
