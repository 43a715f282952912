"""Causal language models: what comes next in a text, an answer to a prompt, or a chat's next turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from loraloom.data.config import DataConfig
from loraloom.data.table import Example, Table
from loraloom.errors import BaseModelError, ConfigError, DataError, FormatError
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
from loraloom.tasks.language.chat import PLAIN_TEMPLATE, end_of_turn
from loraloom.tasks.language.completions import Passage, Speller, windows
from loraloom.tasks.language.generation import Sampling, Writer, Written
from loraloom.tasks.language.likelihood import Sums, last_logits, likelihood_scores, passage_sums, summed_loss
from loraloom.tasks.language.lm_examples import Kind, question_of, read_examples
from loraloom.tasks.language.lm_form import MAX_LENGTH, CausalLMOptions, Form
from loraloom.tasks.language.packing import keeps_passages_apart, make_batch, make_row, packed
from loraloom.tasks.language.tokens import token_limit, vocabulary_size
from loraloom.tasks.language.vocabulary import train_tokenizer
from loraloom.tasks.models.bases import ResolvedBase, resolve_base
from loraloom.tasks.models.loading import LoadedModel, has_tokenizer, load_config, load_model, load_tokenizer, some
from loraloom.tasks.splits import read_splits, with_words

_KINDS: tuple[Kind, ...] = ("text", "prompt", "messages")


class CausalLM:
    """The task "causal-lm"; see `loraloom.tasks.base.Task` for what each method is for."""

    name: ClassVar[str] = "causal-lm"
    metric: ClassVar[str] = "perplexity"
    higher_is_better: ClassVar[bool] = False
    shares: ClassVar[frozenset[str]] = frozenset({"token_accuracy"})
    peft_type: ClassVar[str | None] = "CAUSAL_LM"
    asks_for: ClassVar[Literal["text", "file"]] = "text"
    answer_options: ClassVar[frozenset[str]] = frozenset({"max_new_tokens", "temperature", "top_p", "beams", "seed"})
    Options: ClassVar[type[TaskOptions]] = CausalLMOptions

    def __init__(self, options: CausalLMOptions | None = None) -> None:
        self.options = options or CausalLMOptions()
        self._form = Form(self.options)
        self._columns: dict[str, str] = {}
        self._skip_bad = False
        self._train: list[Example] = []

    # --- examples

    def read(self, data: DataConfig, *, seed: int) -> Splits:
        """Read training and evaluation examples; their columns tell what kind they are."""
        self._skip_bad = data.skip_bad
        first, self._form.kind = self._read(data.train, data, held_out=False)
        self._columns = dict(first.columns)
        splits, _ = read_splits(
            data,
            lambda source, held_out: self._read(source, data, held_out=True)[0] if held_out else first,
            seed=seed,
            text_role="prompt" if self._form.kind == "prompt" else "text",
        )
        self._train = splits.train
        return replace(splits, notes=[*splits.notes, *self._form.learn(splits.train)])

    def _read(self, source: str, data: DataConfig, *, held_out: bool, labelled: bool = True) -> tuple[Table, Kind]:
        join = self.options.join_paragraphs
        return read_examples(source, data, known=self._columns, held_out=held_out, labelled=labelled, join=join)

    def read_more(self, source: str, data: DataConfig, *, labelled: bool) -> list[Example]:
        """Read a further file, of whatever kind: a model of chats can be scored on plain text."""
        self._skip_bad = data.skip_bad
        table, kind = self._read(source, data, held_out=True, labelled=labelled)
        role = "prompt" if kind == "prompt" or not labelled else "text"
        return with_words(table, data, role).examples

    def question(self, given: str, line: int) -> Example:
        """A prompt to go on from; where training read chats, what a user says."""
        return question_of(given, line)

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
        """The base model as it is: a language model needs no new head."""
        found = resolve_base(base, from_config=from_config)
        tokenizer, notes = self._tokenizer(found)
        config = load_config(found)
        loaded = load_model(
            AutoModelForCausalLM, found, "language model", config=config, dtype=dtype, seed=seed, quantize=quantize
        )
        _check_whole(loaded, found)
        return BaseModel(
            model=loaded.model,
            processor=tokenizer,
            heads=(),
            notes=[*notes, *loaded.notes],
            **found.identity,
        )

    def _tokenizer(self, base: ResolvedBase) -> tuple[PreTrainedTokenizerBase, list[str]]:
        """The base's own, or one made from the training texts; with a plain chat template where one is needed."""
        notes = []
        if base.random and not has_tokenizer(base):
            size = load_config(base).get_text_config().vocab_size
            tokenizer: PreTrainedTokenizerBase = train_tokenizer(map(_all_text, self._train), size, begin=True)
            notes.append(f"tokenizer of {len(tokenizer)} pieces made from the {len(self._train)} training texts")
        else:
            tokenizer = load_tokenizer(base)
        if tokenizer.eos_token_id is None:
            notes.append("the tokenizer has no end-of-text token: texts are not closed, and what is written has no end")
        if self._form.is_chat and not tokenizer.chat_template:
            tokenizer.chat_template = PLAIN_TEMPLATE
            notes.append("the tokenizer has no chat template: turns are written as 'User: …' and 'Assistant: …'")
        return tokenizer, notes

    def _speller(self, base: BaseModel) -> Speller:
        model: Any = base.model
        tokenizer: PreTrainedTokenizerBase = base.processor
        end = tokenizer.eos_token_id
        # Without a token of its own for it, the end of one text is the start of the next, as in pretraining.
        starts = (tokenizer.bos_token_id, getattr(model.config, "bos_token_id", None), end)
        start = next((token for token in starts if isinstance(token, int)), None)
        rows = vocabulary_size(model)
        return Speller(
            tokenizer,
            start=() if start is None or start >= rows else (start,),
            end=() if not isinstance(end, int) or end >= rows else (end,),
            vocabulary=rows,
        )

    def _limit(self, base: BaseModel) -> int:
        model: Any = base.model
        limit = token_limit(model, base.processor, self.options.max_length)
        most = MAX_LENGTH if self.options.max_length is None else limit
        return min(filter(None, (limit, most)), default=MAX_LENGTH)

    def _stride(self, limit: int) -> int:
        stride = self.options.stride
        if stride is not None and stride >= limit:
            raise ConfigError(
                f"stride: {stride} tokens leave a window of {limit} (max_length) no context, at most {limit - 1} can be"
            )
        return stride or max(1, 3 * limit // 4)

    # --- tokens

    def encode(self, examples: Sequence[Example], base: BaseModel) -> Encoded:
        """Rows of tokens with their targets; of prompts without a completion, one row each to go on from.

        There may be fewer rows than examples (packed) or more (windows). `reference` of a row is (document,
        bytes) of each passage in it. Raises DataError for examples that leave nothing to learn, unless bad
        ones are to be skipped.
        """
        if examples and "prompt" in examples[0].values and "completion" not in examples[0].values:
            return Encoded([self._question(example, self._speller(base)) for example in examples])
        limit = self._limit(base)
        stride = self._stride(limit)
        passages, unfit = self._passages(examples, self._speller(base), limit)
        notes = self._notes_on(unfit, len(examples))
        cut = len({passage.document for passage in passages if passage.cut})
        short = [part for passage in passages for part in windows(passage, limit, stride) if part.targets.any()]
        if not self.options.pack:
            return Encoded([make_row([passage]) for passage in short], cut, notes)
        if not keeps_passages_apart(base.model, vocabulary_size(base.model)):  # type: ignore[arg-type]
            kind = type(base.model).__name__
            raise ConfigError(f"pack: {kind} cannot keep the texts of a row apart; take pack: false")
        rows = packed([len(passage.ids) for passage in short], limit)
        return Encoded([make_row([short[index] for index in row]) for row in rows], cut, notes)

    def _passages(
        self, examples: Sequence[Example], speller: Speller, limit: int
    ) -> tuple[list[Passage], list[tuple[str, str]]]:
        """Passages numbered by their example, and the place of each example that gave none, with the reason."""
        found: list[Passage] = []
        unfit: list[tuple[str, str]] = []
        texts = {
            number: example.values["text"]
            for number, example in enumerate(examples)
            if not {"messages", "completion"} & set(example.values)
        }
        whole = dict(zip(texts, speller.documents(list(texts.values())), strict=True))
        for number, example in enumerate(examples):
            try:
                own = [whole[number]] if number in whole else self._form.passages(example, speller, limit)
            except DataError as error:
                unfit.append((example.place, str(error)))
                continue
            own = [replace(passage, document=number) for passage in own if passage.targets.any()]
            found += own
            if not own:
                unfit.append((example.place, f"nothing is left to learn within max_length {limit}"))
        return found, unfit

    def _question(self, example: Example, speller: Speller) -> Feature:
        ids = self._form.question(example, speller)
        return replace(make_row([Passage(ids, np.zeros(len(ids), np.bool_), 0, 0)]), reference=None)

    def _notes_on(self, unfit: Sequence[tuple[str, str]], total: int) -> list[str]:
        """What to tell of examples that gave nothing to learn. Raises DataError unless they may be left out."""
        if not unfit:
            return []
        places = ", ".join(place for place, _ in unfit[:5]) + (", …" if len(unfit) > 5 else "")
        told = f"{len(unfit)} of {total} examples cannot be learnt from ({places}): {unfit[0][1]}"
        if not self._skip_bad or len(unfit) == total:
            raise DataError(f"{told}; raise max_length, mend them, or leave them out with data.skip_bad")
        return [f"{told}; left out"]

    def collate(self, features: Sequence[Feature], base: BaseModel, *, training: bool = False) -> Batch:
        """input_ids, labels and, where a row is packed, position_ids, (B, T) each; see `packing.make_batch`."""
        return make_batch(features)

    # --- results

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Cross entropy summed over the targets, a float32 scalar whatever the precision; and how many they are."""
        return summed_loss(model, batch)

    @torch.no_grad()
    def predict(self, model: nn.Module, batch: Batch, base: BaseModel) -> list[list[Sums]]:
        """For each row, what the model says of each of its passages."""
        return passage_sums(model, batch)

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, V), float32, for the last target of each row."""
        return last_logits(model, batch)

    def score(
        self, predictions: Sequence[Sequence[Sums]], references: Sequence[Sequence[tuple[int, int]]]
    ) -> dict[str, float]:
        """perplexity, token_accuracy and bits_per_byte with intervals; tokens, bytes, and `n` documents."""
        return likelihood_scores(predictions, references)

    def answer(
        self,
        model: nn.Module,
        features: Sequence[Feature],
        base: BaseModel,
        options: AnswerOptions,
        say: Callable[[str], None] | None = None,
    ) -> list[Written]:
        """What the model writes after each prompt; see `generation.Writer`."""
        inner: Any = base.model  # whatever `model` compiles, generating has caches and shapes of its own
        own = inner.generation_config.eos_token_id
        ends = {base.processor.eos_token_id, *(own if isinstance(own, list) else [own])}
        if self._form.is_chat:
            ends.add(end_of_turn(base.processor))
        context = token_limit(inner, base.processor, None)
        writer = Writer(inner, base.processor, ends=sorted(ends - {None}), context=context)
        return writer.write([feature.inputs["input_ids"] for feature in features], Sampling.of(options), say)

    def describe(self, prediction: Any, options: AnswerOptions = NOTHING_ASKED) -> Mapping[str, Any]:
        """What was written as "answer", its "tokens", and why it "stopped"; of scored rows, their sums."""
        if isinstance(prediction, Written):
            return {"answer": prediction.text, "tokens": prediction.tokens, "stopped": prediction.stopped}
        total = Sums(*(sum(values) for values in zip(*prediction, strict=True)))
        return dict(total._asdict())

    def state(self) -> dict[str, Any]:
        """How training read its data and put its prompts."""
        return {
            "kind": self._form.kind,
            "columns": dict(self._columns),
            "separator": self._form.separator,
            "system": self._form.system,
            "options": self.options.model_dump(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave. Raises FormatError when it names no kind of examples."""
        if state.get("kind") not in _KINDS:
            raise FormatError(f"task state: 'kind' is {state.get('kind')!r}, expected one of {', '.join(_KINDS)}")
        self.options = CausalLMOptions.model_validate(state.get("options") or {})
        self._form = Form(self.options, state["kind"], state.get("separator") or "", state.get("system"))
        self._columns = dict(state.get("columns") or {})


def _check_whole(loaded: LoadedModel, base: ResolvedBase) -> None:
    """Raise BaseModelError for a missing tensor: the output layer is no new head, and must not be drawn by chance."""
    if loaded.missing:
        raise BaseModelError(
            f"base model {base.name!r}: {base.folder} lacks or misshapes {len(loaded.missing)} of the tensors that "
            f"{type(loaded.model).__name__} needs ({some(sorted(loaded.missing))}); it is no language model, or its "
            "config.json belongs to other weights"
        )


def _all_text(example: Example) -> str:
    """Everything that an example says, for a tokenizer to learn from."""
    values = example.values
    return str(values["text"]) if "text" in values else f"{values['prompt']}\n{values['completion']}"
