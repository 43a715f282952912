"""Translation: a sentence in one language into another, by any encoder with a decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraloom.data.batches import sorted_batches
from loraloom.data.config import DataConfig
from loraloom.data.table import Example, Table
from loraloom.errors import DataError, FormatError
from loraloom.tasks.base import (
    NOTHING_ASKED,
    AnswerOptions,
    BaseModel,
    Batch,
    Encoded,
    Feature,
    Splits,
    TaskOptions,
)
from loraloom.tasks.language.languages import Direction, choose_direction
from loraloom.tasks.language.pairs import SOURCE, TARGET, identical_notes, read_pairs
from loraloom.tasks.language.seq2seq import (
    IGNORED,
    check_ids,
    decoder_inputs,
    label_loss,
    load_seq2seq,
    logits,
    output_rows,
    require_texts,
    settle_start,
    to_texts,
    token_probability,
    tokenise_targets,
    write,
)
from loraloom.tasks.language.tokens import pad_rows, token_limit, tokenise, vocabulary_size
from loraloom.tasks.language.translation_scores import check_sacrebleu, signatures, translation_scores
from loraloom.tasks.models.bases import resolve_base
from loraloom.tasks.splits import read_splits, with_words

BEAMS = 4
"""Candidates that beam search follows for a user, unless asked otherwise."""
ANSWER_BATCH = 16
"""Sources translated at a time for a user; each stands for as many rows as there are beams."""


class Translated(NamedTuple):
    """What the model makes of one source."""

    text: str
    """The translation, without special tokens."""
    score: float | None = None
    """Geometric mean of its tokens' probabilities, 0 to 1; None where nobody asked."""


class TranslationOptions(TaskOptions):
    """Settings of translation."""

    max_length: int | None = Field(
        default=None,
        ge=1,
        description="Tokens after which a source or a target is cut, special ones included. null: no own limit.",
    )
    source_language: str | None = Field(
        default=None,
        description="Language of the sources, as the base model names it: nl, nl_XX, nld_Latn; for T5 by name. "
        "null: what the model's files say.",
    )
    target_language: str | None = Field(
        default=None, description="Language of the translations, named likewise. null: what the model's files say."
    )
    prefix: str | None = Field(
        default=None,
        description="Text to put before every source. null: none, but 'translate SOURCE to TARGET: ' for T5 when "
        "both languages are given.",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the target's probability that the loss spreads over all tokens."
    )
    evaluation_beams: int = Field(
        default=1, ge=1, description="Candidates that beam search follows when scores are computed: 1 is quickest."
    )
    bleu_tokenizer: Literal["13a", "intl", "char", "zh", "none"] = Field(
        default="13a", description="How sacrebleu cuts words for BLEU: 'zh' for Chinese, 'char' for Japanese and Thai."
    )


class Translation:
    """The task "translation"; see `loraloom.tasks.base.Task` for what each method is for."""

    name: ClassVar[str] = "translation"
    metric: ClassVar[str] = "chrf"
    higher_is_better: ClassVar[bool] = True
    shares: ClassVar[frozenset[str]] = frozenset()
    peft_type: ClassVar[str | None] = "SEQ_2_SEQ_LM"
    asks_for: ClassVar[Literal["text", "file"]] = "text"
    answer_options: ClassVar[frozenset[str]] = frozenset({"beams", "max_new_tokens"})
    Options: ClassVar[type[TaskOptions]] = TranslationOptions

    def __init__(self, options: TranslationOptions | None = None) -> None:
        self.options = options or TranslationOptions()
        self._columns: dict[str, str] = {}
        self._texts: list[str] = []
        self._direction = Direction()

    @property
    def signatures(self) -> dict[str, str]:
        """sacrebleu's signature of each score, by its name. Raises MissingExtraError."""
        return signatures(self.options.bleu_tokenizer)

    @property
    def _languages(self) -> dict[str, str | None]:
        return {SOURCE.name: self.options.source_language, TARGET.name: self.options.target_language}

    # --- examples

    def read(self, data: DataConfig, *, seed: int) -> Splits:
        """Read training and evaluation examples; without an evaluation file, set a part aside by `seed`.

        Raises DataError for anything that cannot be used, MissingExtraError where scores cannot be computed.
        """
        check_sacrebleu()
        splits, _ = read_splits(
            data,
            lambda source, held_out: self._read(source, data, held_out=held_out),
            seed=seed,
            text_role=SOURCE.name,
            ignore=(TARGET.name,),
        )
        self._texts = [example.values[role] for example in splits.train for role in (SOURCE.name, TARGET.name)]
        return replace(splits, notes=[*splits.notes, *identical_notes(splits.train)])

    def _read(self, source: str, data: DataConfig, *, held_out: bool) -> Table:
        table = read_pairs(source, data, known=self._columns, languages=self._languages, held_out=held_out)
        if not held_out:
            self._columns = dict(table.columns)
        return table

    def read_more(self, source: str, data: DataConfig, *, labelled: bool) -> list[Example]:
        """Read a further file; the columns that training read are looked for first.

        What is to be translated is read whole: `data.words` and `data.where` choose among examples with a target.
        """
        table = read_pairs(
            source, data, known=self._columns, languages=self._languages, held_out=True, labelled=labelled
        )
        return with_words(table, data, SOURCE.name).examples if labelled else table.examples

    def question(self, given: str, line: int) -> Example:
        """A text to translate. Raises DataError when there is none."""
        if not given.strip():
            raise DataError(f"text {line} is empty; give a sentence to translate")
        return Example({SOURCE.name: given}, "text", line)

    # --- model

    def load(
        self,
        base: str,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        from_config: bool = False,
        quantize: str | None = None,
    ) -> BaseModel:
        """The base model, told of the languages; it has no new head."""
        found = resolve_base(base, from_config=from_config)
        model, tokenizer, notes = load_seq2seq(
            found, dtype=dtype, seed=seed, texts=lambda: require_texts(self._texts), quantize=quantize
        )
        options = self.options
        self._direction = choose_direction(
            tokenizer,
            model,
            source=options.source_language,
            target=options.target_language,
            prefix=options.prefix,
        )
        settle_start(model, tokenizer, self._direction.target_id)
        return BaseModel(
            model=model,
            processor=tokenizer,
            heads=(),
            notes=[*notes, *self._direction.notes],
            **found.identity,
        )

    def encode(self, examples: Sequence[Example], base: BaseModel) -> Encoded:
        """Token ids of every source, with its prefix, and of every target; `reference` is the target's text.

        The length for batching is that of both together. An example counts as cut if either side was.
        """
        model: Any = base.model
        tokenizer = base.processor
        limit = token_limit(model, tokenizer, self.options.max_length)
        sources = [self._direction.prefix + example.values[SOURCE.name] for example in examples]
        tokenised = tokenise(sources, tokenizer, limit, vocabulary_size(model))
        rows = tokenised.columns["input_ids"]
        given = [row for row, example in enumerate(examples) if TARGET.name in example.values]
        targets, long = tokenise_targets([examples[row].values[TARGET.name] for row in given], tokenizer, limit)
        check_ids(targets, output_rows(model), tokenizer)
        # a row whose source has the full length is taken to be among those counted already
        cut = sum(is_long and len(rows[row]) != limit for row, is_long in zip(given, long, strict=True))
        labels = dict(zip(given, targets, strict=True))
        features = [
            Feature(
                inputs={"input_ids": rows[row], **({"labels": labels[row]} if row in labels else {})},
                length=len(rows[row]) + len(labels.get(row, ())),
                reference=example.values.get(TARGET.name),
            )
            for row, example in enumerate(examples)
        ]
        return Encoded(features, tokenised.truncated + cut)

    def collate(self, features: Sequence[Feature], base: BaseModel, *, training: bool = False) -> Batch:
        """input_ids (B, S) and, if all targets are known, labels and decoder_input_ids (B, T), all int64.

        attention_mask (B, S) is there only when some source is padded; labels are padded with -100.
        """
        model: Any = base.model
        batch: Batch = dict(
            pad_rows({"input_ids": [feature.inputs["input_ids"] for feature in features]}, base.processor)
        )
        if all("labels" in feature.inputs for feature in features):
            rows = [torch.from_numpy(feature.inputs["labels"]) for feature in features]
            batch["labels"] = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
            batch["decoder_input_ids"] = decoder_inputs(model, batch["labels"])
        return batch

    # --- results

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Cross entropy summed over the target tokens, a float32 scalar, and how many tokens there are."""
        return label_loss(logits(model, batch), batch["labels"], self.options.label_smoothing)

    @torch.no_grad()
    def predict(self, model: nn.Module, batch: Batch, base: BaseModel) -> list[Translated]:
        """The translation of each row with `evaluation_beams`, as scores are computed on."""
        base_model: Any = base.model
        rows = write(model, batch, base_model, base.processor, beams=self.options.evaluation_beams)
        return [Translated(text) for text in to_texts(rows, base.processor, self._direction.target_id)]

    def answer(
        self,
        model: nn.Module,
        features: Sequence[Feature],
        base: BaseModel,
        options: AnswerOptions,
        say: Callable[[str], None] | None = None,
    ) -> list[Translated]:
        """The translation of every feature by beam search, with its score, in their order.

        `options.beams` (4) and `options.max_new_tokens` are heeded. Beam search knows its best candidate at the
        end alone, so that `say` hears every translation as a whole.
        """
        found: dict[int, Translated] = {}
        for indices in sorted_batches([feature.length for feature in features], ANSWER_BATCH):
            answers = self._answer_batch(model, [features[index] for index in indices], base, options)
            found |= zip(indices, answers, strict=True)
            for answer in answers if say is not None else ():
                say(answer.text)  # type: ignore[misc]
        return [found[index] for index in range(len(features))]

    def _answer_batch(
        self, model: nn.Module, features: Sequence[Feature], base: BaseModel, options: AnswerOptions
    ) -> list[Translated]:
        base_model: PreTrainedModel = base.model  # type: ignore[assignment]
        tokenizer = base.processor
        device = next(base_model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in self.collate(features, base).items()}
        rows = write(model, batch, base_model, tokenizer, beams=options.beams or BEAMS, most=options.max_new_tokens)
        ignored = {tokenizer.pad_token_id, self._direction.target_id} - {None}
        scores = token_probability(model, batch, rows, ignored)
        return [
            Translated(*row) for row in zip(to_texts(rows, tokenizer, self._direction.target_id), scores, strict=True)
        ]

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probability of every target token (B, T), 0 where padded; without targets, of each first token (B, V).

        Not the logits of every place: of a vocabulary of 256,000 they would fill gigabytes.
        """
        if "labels" not in batch:
            return self._first_logits(model, batch)
        found, labels = logits(model, batch), batch["labels"]
        counted = labels != IGNORED
        chosen = torch.zeros(labels.shape, device=labels.device)
        rows = found[counted].float().log_softmax(-1)
        chosen[counted] = rows.gather(-1, labels[counted][:, None]).squeeze(-1)
        return chosen

    def _first_logits(self, model: Any, batch: Batch) -> Tensor:
        start = model.generation_config.decoder_start_token_id
        first = torch.full_like(batch["input_ids"][:, :1], start)
        return logits(model, {**batch, "decoder_input_ids": first})[:, 0].float().log_softmax(-1)

    def score(self, predictions: Sequence[Translated], references: Sequence[str]) -> dict[str, float]:
        """chrF and BLEU by sacrebleu, 0 to 100, with 95 % bounds by the bootstrap, and n. Raises DataError."""
        found = [prediction.text for prediction in predictions]
        return translation_scores(found, references, tokenizer=self.options.bleu_tokenizer)

    def describe(self, prediction: Translated, options: AnswerOptions = NOTHING_ASKED) -> Mapping[str, Any]:
        """{"translation": the text} and, where beam search was asked, "score": the mean probability of a token."""
        score = {} if prediction.score is None else {"score": prediction.score}
        return {"translation": prediction.text, **score}

    def state(self) -> dict[str, Any]:
        """The options, the columns that training read, and the signatures of the scores."""
        return {
            "options": self.options.model_dump(mode="json"),
            "columns": dict(self._columns),
            "signatures": self.signatures,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave. Raises FormatError when its options cannot be read."""
        try:
            self.options = TranslationOptions.model_validate(state.get("options") or {})
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise FormatError(f"task state: 'options' are not those of a translation ({reason})") from None
        self._columns = dict(state.get("columns") or {})
