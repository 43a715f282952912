"""How a language model's examples are put to it: the settings, and what training's own examples had in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from loraloom.data.table import Example
from loraloom.tasks.base import TaskOptions
from loraloom.tasks.language.chat import Dialogue, Message, common_system, dialogues, for_reply, renderer
from loraloom.tasks.language.completions import Ids, Passage, Speller
from loraloom.tasks.language.lm_examples import Kind

MAX_LENGTH = 1024
"""Tokens of a row where nothing was said about it: models that take a hundred thousand would need the memory."""


class CausalLMOptions(TaskOptions):
    """Settings of causal language models."""

    max_length: int | None = Field(
        default=None,
        ge=2,
        description="Tokens of a row. Longer texts are read in windows, longer prompts and chats are cut. null: as "
        f"many as the model takes, {MAX_LENGTH} at most.",
    )
    train_on: Literal["completion", "all"] = Field(
        default="completion",
        description="What is learnt and scored of prompts and chats: the completion or the model's turns, or all.",
    )
    pack: bool = Field(
        default=False,
        description="Put several short texts into one row, where none sees another. batch_size then counts rows.",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        description="Tokens that each further window of a long text adds; the rest is context that it takes over from "
        "the window before. null: three quarters of max_length.",
    )
    join_paragraphs: int | None = Field(
        default=None,
        ge=1,
        description="Read the paragraphs of a .txt file together, as documents of up to so many characters. null: "
        "each paragraph is a document.",
    )
    separator: str | None = Field(
        default=None,
        description="What stands between prompt and completion. null: nothing where the data bring white space of "
        "their own there, otherwise a line break.",
    )
    as_chat: bool = Field(
        default=False,
        description="Put prompts and completions through the chat template, as a user's words and the reply.",
    )


@dataclass
class Form:
    """How prompts are put: learnt from the training examples, kept in the run's record."""

    options: CausalLMOptions
    kind: Kind | None = None
    """What training read; None before it did."""
    separator: str = ""
    system: str | None = None
    """The system message that all of training's chats opened with."""

    @property
    def is_chat(self) -> bool:
        """Whether prompts go through the chat template."""
        return self.kind == "messages" or (self.kind == "prompt" and self.options.as_chat)

    def learn(self, train: Sequence[Example]) -> list[str]:
        """Find what the training examples have in common; returns what to tell of it."""
        everything = self.options.train_on == "all"
        if self.kind == "messages":
            self.system = common_system([example.values["messages"] for example in train])
            opening = "; all open with the same system message" if self.system else ""
            return [f"{len(train)} chats: {'all' if everything else 'what the assistant says'} is learnt{opening}"]
        if self.kind == "text":
            return []
        put = ""
        if self.options.separator is not None:
            self.separator = self.options.separator
        elif not self.is_chat:
            bare = sum(not _parted(example.values["prompt"], example.values["completion"]) for example in train)
            self.separator = "\n" if 2 * bare > len(train) else ""
            put = ", a line break put between the two" if self.separator else ""
        return [f"{len(train)} prompts with completions: {'both' if everything else 'the latter'} are learnt{put}"]

    def passages(self, example: Example, speller: Speller, limit: int) -> list[Passage]:
        """The passages of a prompt with its completion, or of a chat, cut at `limit` tokens. Raises DataError."""
        values, everything = example.values, self.options.train_on == "all"
        if "messages" in values or self.is_chat:
            messages = values.get("messages") or self._as_messages(values["prompt"], values["completion"])
            parts = self._dialogues(messages, speller.tokenizer, values.get("tools"))
            own = [speller.dialogue(part, everything=everything) for part in parts]
        else:
            prompt = values["prompt"] + self.separator
            own = [speller.completion(prompt, values["completion"], everything=everything)]
        return [speller.shortened(passage, limit) for passage in own]

    def _dialogues(self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: Any) -> list[Dialogue]:
        render = renderer(tokenizer, tools)
        if self.options.train_on == "completion":
            return dialogues(messages, render)
        text = render(messages, False)
        return [Dialogue(text, ((len(text), len(text)),))]

    def _as_messages(self, prompt: str, *answers: str) -> list[Message]:
        opening = [] if self.system is None else [{"role": "system", "content": self.system}]
        asked = {"role": "user", "content": prompt}
        return [*opening, asked, *({"role": "assistant", "content": answer} for answer in answers)]

    def question(self, example: Example, speller: Speller) -> Ids:
        """The tokens of a prompt to go on from, (T,), put as training put its own. Raises DataError."""
        values = example.values
        if self.is_chat:
            messages = for_reply(values.get("messages") or self._as_messages(values["prompt"]))
            return speller.prompt(renderer(speller.tokenizer, values.get("tools"))(messages, True), start=False)
        prompt: str = values["prompt"]
        seam = self.separator if self.kind == "prompt" and not prompt.endswith(self.separator) else ""
        return speller.prompt(prompt + seam, start=True)


def _parted(prompt: str, completion: str) -> bool:
    """Whether the data bring white space of their own between the two."""
    return prompt[-1:].isspace() or completion[:1].isspace()
