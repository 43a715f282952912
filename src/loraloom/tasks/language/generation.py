"""Text that a language model writes: chosen token by token, streamed as whole characters, repeatable by its seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from loraloom.errors import ConfigError, DataError
from loraloom.tasks.base import AnswerOptions

Say = Callable[[str], None]
Ids = NDArray[np.int64]
MAX_NEW_TOKENS = 256
"""How much is written when nothing was said about it."""
_CONTEXT = 5
"""Tokens that are decoded again before new ones: some pieces look different at the start of a text."""
_INCOMPLETE = "\ufffd"
_SETTINGS: Any = GenerationConfig  # transformers leaves it untyped


@dataclass(frozen=True)
class Written:
    """What a model wrote."""

    text: str
    tokens: int
    stopped: Literal["end", "length", "context"]
    """Why it ended: by itself, after as many tokens as were asked for, or where the model's context ends."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float
    """0 takes the most probable token."""
    top_p: float
    seed: int
    beams: int
    max_new_tokens: int

    @classmethod
    def of(cls, options: AnswerOptions) -> Sampling:
        """What a user's options mean: the most probable token, unless something about chance is said.

        Raises ConfigError for beams together with chance.
        """
        chance = options.top_p is not None or options.seed is not None
        temperature = options.temperature if options.temperature is not None else float(chance)
        beams = options.beams or 1
        if beams > 1 and temperature > 0:
            raise ConfigError(
                f"beams: {beams} beams look for the most probable text and draw nothing by chance; leave out "
                "temperature, top_p and seed, or the beams"
            )
        return cls(
            temperature, options.top_p or 1.0, options.seed or 0, beams, options.max_new_tokens or MAX_NEW_TOKENS
        )


class Writer:
    """Writes on after prompts, with one model."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, *, ends: Sequence[int], context: int | None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.ends = list(ends)
        """Tokens that end a text."""
        self.context = context
        """Tokens that prompt and text may have together; None is any number."""

    def write(self, prompts: Sequence[Ids], sampling: Sampling, say: Say | None = None) -> list[Written]:
        """A continuation of each prompt, (T,) each.

        Each is drawn from the seed and its own prompt alone, so that it does not depend on the others. With
        `say`, one after the other is written, and heard as it comes. Raises DataError for a prompt that
        leaves no room.
        """
        room = [self._room(number, prompt) for number, prompt in enumerate(prompts)]
        # Rows that would run out of positions before the others are written alone.
        together = [number for number in range(len(prompts)) if room[number] >= sampling.max_new_tokens]
        groups = [[number] for number in range(len(prompts)) if say is not None or number not in together]
        if say is None and together:
            groups.append(together)
        found: dict[int, Written] = {}
        for group in groups:
            most = min(sampling.max_new_tokens, *(room[number] for number in group))
            written = self._together([prompts[number] for number in group], sampling, most, say)
            found |= dict(zip(group, written, strict=True))
        return [found[number] for number in range(len(prompts))]

    def _room(self, number: int, prompt: Ids) -> int:
        """How many tokens may follow a prompt."""
        if not len(prompt):
            raise DataError(f"prompt {number + 1} is empty, and this model has no token that a text starts with")
        if self.context is None:
            return 2**31
        if len(prompt) >= self.context:
            raise DataError(
                f"prompt {number + 1} has {len(prompt)} tokens, but the model takes {self.context} together with what "
                "it writes; shorten it"
            )
        return self.context - len(prompt)

    def _together(self, prompts: Sequence[Ids], sampling: Sampling, most: int, say: Say | None) -> list[Written]:
        width = max(map(len, prompts))
        rows = np.full((len(prompts), width), self._filler, np.int64)
        mask = np.zeros_like(rows)
        for row, prompt in enumerate(prompts):
            rows[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
        pieces = Pieces(self.tokenizer, prompts[0], self.ends, say) if say is not None else None
        ids = self._generate(torch.from_numpy(rows), torch.from_numpy(mask), prompts, sampling, most, pieces)
        written = [
            self._written(prompt, new, most < sampling.max_new_tokens)
            for prompt, new in zip(prompts, ids[:, width:].tolist(), strict=True)
        ]
        if pieces is not None:
            pieces.finish(written[0].text)
        return written

    @property
    def _filler(self) -> int:
        """What stands where nothing is: it is masked, so that any token will do."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else next(iter(self.ends), 0)

    @torch.no_grad()
    def _generate(
        self,
        rows: Tensor,
        mask: Tensor,
        prompts: Sequence[Ids],
        sampling: Sampling,
        most: int,
        pieces: Pieces | None,
    ) -> Tensor:
        config = _SETTINGS(
            max_new_tokens=most,
            num_beams=sampling.beams,
            do_sample=False,
            use_cache=True,
            eos_token_id=self.ends or None,
            pad_token_id=self._filler,
        )
        draw = [Draw(sampling, prompts)] if sampling.temperature > 0 else []
        with _no_settings_of_its_own(self.model):
            ids: Tensor = self.model.generate(
                rows.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=config,
                logits_processor=LogitsProcessorList(draw),
                streamer=pieces if sampling.beams == 1 else None,
            )
        return ids.cpu()

    def _written(self, prompt: Ids, ids: list[int], short: bool) -> Written:
        end = next((at for at, token in enumerate(ids) if token in self.ends), None)
        own = ids[:end]
        if end is not None:
            return Written(continuation(self.tokenizer, prompt, own), len(own), "end")
        return Written(continuation(self.tokenizer, prompt, own), len(own), "context" if short else "length")


@contextmanager
def _no_settings_of_its_own(model: Any) -> Iterator[None]:
    """Keep a checkpoint's generation_config.json (a temperature, a penalty for repeating) out of what was asked."""
    own = model.generation_config
    model.generation_config = _SETTINGS()
    try:
        yield
    finally:
        model.generation_config = own


class Draw(LogitsProcessor):
    """Chooses each row's next token by chance, from a generator of the row's own.

    Temperature first, then the most probable tokens that hold `top_p` in all (nucleus sampling, Holtzman et
    al., arXiv 1904.09751). What is drawn is one number between 0 and 1, which tokens share out by their
    probabilities: a rounding error elsewhere hardly ever changes the choice.
    """

    def __init__(self, sampling: Sampling, prompts: Sequence[Ids]) -> None:
        self.temperature = sampling.temperature
        self.top_p = sampling.top_p
        self.generators = [_generator(sampling.seed, prompt) for prompt in prompts]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) with all but the chosen token at -inf."""
        probabilities, order = (
            (scores.float() / self.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
        )
        reached = probabilities.cumsum(-1)
        probabilities = probabilities.where(reached - probabilities < self.top_p, 0.0)
        reached = probabilities.cumsum(-1)
        drawn = torch.tensor([[generator.random()] for generator in self.generators], dtype=torch.float32)
        at = torch.searchsorted(reached, drawn.to(reached.device) * reached[:, -1:], right=True)
        at = at.clamp(max=(probabilities > 0).sum(-1, keepdim=True) - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, order.gather(-1, at), 0.0)


def _generator(seed: int, prompt: Ids) -> np.random.Generator:
    """Chance that depends on the seed and the prompt, and on nothing else."""
    digest = hashlib.sha256(f"{seed}/".encode() + prompt.astype("<i8").tobytes()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: Ids, ids: Sequence[int]) -> str:
    """The text of `ids` as it stands after the prompt."""
    before = prompt[-_CONTEXT:].tolist()
    whole, known = _decoded(tokenizer, [*before, *ids]), _decoded(tokenizer, before)
    return whole[len(known) :] if whole.startswith(known) else _decoded(tokenizer, ids)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Pieces(BaseStreamer):
    """Hears tokens and says text: a character only when all of its bytes are there."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Ids, ends: Sequence[int], say: Say) -> None:
        self._tokenizer = tokenizer
        self._ids = prompt[-_CONTEXT:].tolist()
        self._ends = frozenset(ends)
        self._say = say
        self._first, self._read = 0, len(self._ids)
        self._said = ""
        self._prompt_heard = False

    def put(self, value: Tensor) -> None:
        """The prompt first, which is known, then token by token."""
        if not self._prompt_heard:
            self._prompt_heard = True
            return
        for token in value.flatten().tolist():
            if token not in self._ends:
                self._ids.append(token)
                self._tell()

    def _tell(self) -> None:
        """Say what the newest tokens add, decoded together with the few before them."""
        known = _decoded(self._tokenizer, self._ids[self._first : self._read])
        text = _decoded(self._tokenizer, self._ids[self._first :])
        if len(text) > len(known) and not text.endswith(_INCOMPLETE) and text.startswith(known):
            self._speak(text[len(known) :])
            self._first, self._read = self._read, len(self._ids)

    def end(self) -> None:
        """Nothing yet: `finish` knows the whole text."""

    def finish(self, text: str) -> None:
        """Say what is missing of the whole text: bytes that never became a character, or all of it after beams."""
        if text.startswith(self._said):
            self._speak(text[len(self._said) :])

    def _speak(self, piece: str) -> None:
        if piece:
            self._said += piece
            self._say(piece)
