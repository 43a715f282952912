"""Which language a translation model is told of, and how: codes, marks in the text, or a sentence before it.

Multilingual models name languages each in its own way: NLLB ``nld_Latn``, mBART ``nl_XX``, M2M100 ``nl``,
Marian a mark ``>>nld<<`` before the source, T5 the words "translate English to Dutch: ". `choose_direction`
turns two settings into whichever of these the tokenizer at hand takes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loraloom.errors import ConfigError, suggest

_NLLB_CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}")
_PREFIXED = frozenset(("t5", "mt5", "umt5", "longt5", "switch_transformers"))
"""Model types that are told what to do in words."""

_NAMES = """
Afrikaans af afr, Albanian sq sqi als, Amharic am amh, Arabic ar ara arb, Armenian hy hye, Azerbaijani az aze azj,
Basque eu eus, Belarusian be bel, Bengali bn ben, Bosnian bs bos, Bulgarian bg bul, Burmese my mya,
Catalan ca cat, Chinese zh zho cmn, Croatian hr hrv, Czech cs ces, Danish da dan, Dutch nl nld, English en eng,
Esperanto eo epo, Estonian et est etn, Finnish fi fin, French fr fra, Galician gl glg, Georgian ka kat,
German de deu, Greek el ell, Gujarati gu guj, Hausa ha hau, Hebrew he heb, Hindi hi hin, Hungarian hu hun,
Icelandic is isl, Igbo ig ibo, Indonesian id ind, Irish ga gle, Italian it ita, Japanese ja jpn, Javanese jv jav,
Kannada kn kan, Kazakh kk kaz, Khmer km khm, Korean ko kor, Kurdish ku kur kmr, Kyrgyz ky kir, Lao lo lao,
Latvian lv lav lvs, Lithuanian lt lit, Luxembourgish lb ltz, Macedonian mk mkd, Malagasy mg mlg plt,
Malay ms msa zsm, Malayalam ml mal, Maltese mt mlt, Maori mi mri, Marathi mr mar, Mongolian mn mon khk,
Nepali ne nep npi, Norwegian no nor nob, Occitan oc oci, Oriya or ori ory, Pashto ps pus pbt, Persian fa fas pes,
Polish pl pol, Portuguese pt por, Punjabi pa pan, Romanian ro ron, Russian ru rus, Serbian sr srp, Sindhi sd snd,
Sinhala si sin, Slovak sk slk, Slovenian sl slv, Somali so som, Spanish es spa, Sundanese su sun, Swahili sw swa swh,
Swedish sv swe, Tagalog tl tgl, Tajik tg tgk, Tamil ta tam, Tatar tt tat, Telugu te tel, Thai th tha, Turkish tr tur,
Ukrainian uk ukr, Urdu ur urd, Uzbek uz uzb uzn, Vietnamese vi vie, Welsh cy cym, Xhosa xh xho, Yiddish yi yid ydd,
Yoruba yo yor, Zulu zu zul
"""
_LANGUAGES = [entry.split() for entry in _NAMES.replace("\n", " ").split(",")]
"""Per language its English name, then its codes by ISO 639-1 and 639-3."""


@dataclass(frozen=True)
class Direction:
    """From which language into which, as one tokenizer is told of it."""

    source: str | None = None
    target: str | None = None
    prefix: str = ""
    """Text to put before every source."""
    target_id: int | None = None
    """The token of the target language, where there is one."""
    notes: tuple[str, ...] = ()


def choose_direction(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    source: str | None,
    target: str | None,
    prefix: str | None = None,
) -> Direction:
    """What to tell a model of the languages; a tokenizer with codes is set to them.

    Where a language is not given, what the files of the model name is taken, with a note. Raises ConfigError
    for a code that the model does not know, one that it needs and did not get, languages given to a model that
    tells none apart, and the same language twice.
    """
    if source is not None and source == target:
        raise ConfigError(f"options.target_language: {target!r} is the source language too; give the other one")
    marks = _marks(tokenizer)
    if marks:
        _check_own(tokenizer, "source", source)
        return _by_mark(marks, source, target, prefix)
    codes = language_codes(tokenizer)
    if codes:
        return _by_code(tokenizer, model, codes, source, target, prefix or "")
    if model.config.model_type in _PREFIXED:
        return _by_words(source, target, prefix)
    _check_own(tokenizer, "source", source)
    _check_own(tokenizer, "target", target)
    return Direction(source, target, prefix or "")


def language_codes(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The languages that a tokenizer has a token for, by code; empty where it tells none apart."""
    if not hasattr(tokenizer, "src_lang"):
        return {}
    known: Mapping[str, int] | None = getattr(tokenizer, "lang_code_to_id", None)
    if known:
        return dict(known)
    for tokens in (tokenizer.get_added_vocab(), tokenizer.get_vocab()):
        found = {token: number for token, number in tokens.items() if _NLLB_CODE.fullmatch(token)}
        if found:
            return dict(sorted(found.items()))
    return {}


def language_names(word: str) -> list[str]:
    """All that a language is called, lower case: its name and codes; of an unknown one, the word alone.

    What follows a code, its script or country, does not matter.

    >>> language_names("nl"), language_names("nld_Latn")
    (['dutch', 'nl', 'nld'], ['dutch', 'nl', 'nld'])
    """
    return [name.lower() for name in _entry(word) or [word]]


def _by_mark(marks: Collection[str], source: str | None, target: str | None, prefix: str | None) -> Direction:
    """Marian with several target languages: a mark before the source."""
    if target is None:
        raise _missing("target", marks)
    _check_known("target", target, marks)
    return Direction(source, target, f">>{target}<< {prefix or ''}")


def _by_code(
    tokenizer: Any,
    model: PreTrainedModel,
    codes: Mapping[str, int],
    source: str | None,
    target: str | None,
    prefix: str,
) -> Direction:
    """NLLB, mBART and M2M100: the tokenizer puts a token of the language beside every text."""
    for side, code in (("source", source), ("target", target)):
        if code is not None:
            _check_known(side, code, codes)
    notes = []
    if source is None:
        source = str(tokenizer.src_lang)
        notes.append(f"source language: {source!r}, as the tokenizer has it; options.source_language changes it")
    if target is None:
        target = tokenizer.tgt_lang or _target_of(model, codes)
        if target is None:
            raise _missing("target", codes)
        notes.append(f"target language: {target!r}, as the model's files have it; options.target_language changes it")
    if source == target:
        raise ConfigError(
            f"options.source_language: source and target are both {source!r}; give the language of the source texts"
        )
    tokenizer.tgt_lang = target
    tokenizer.src_lang = source  # last: setting it also makes the tokenizer ready for sources
    # what save_pretrained writes down of a tokenizer
    tokenizer.init_kwargs.update(src_lang=source, tgt_lang=target)
    return Direction(source, target, prefix, codes[target], tuple(notes))


def _by_words(source: str | None, target: str | None, prefix: str | None) -> Direction:
    """T5: a sentence of its own, or one made of the languages' names."""
    if prefix is not None or (source is None and target is None):
        return Direction(source, target, prefix or "")
    if source is None or target is None:
        missing = "source" if source is None else "target"
        raise ConfigError(
            f"options.{missing}_language: the prefix of a T5 model names both languages; give this one too"
        )
    made = f"translate {_title(source)} to {_title(target)}: "
    return Direction(source, target, made, notes=(f"every source begins with {made!r}; options.prefix changes it",))


def _entry(word: str) -> list[str] | None:
    """The language that a name or code, with or without a script or country, stands for."""
    code = re.split("[_-]", word.lower())[0]
    return next((entry for entry in _LANGUAGES if code in map(str.lower, entry)), None)


def _title(word: str) -> str:
    """The English name of a language; an unknown word as it stands."""
    return (_entry(word) or [word])[0]


def _marks(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Marian's target languages, without their signs."""
    return [mark[2:-2] for mark in getattr(tokenizer, "supported_language_codes", ())]


def _target_of(model: PreTrainedModel, codes: Mapping[str, int]) -> str | None:
    """The language whose token a model made for one target begins its output with."""
    by_id = {number: code for code, number in codes.items()}
    settings: Any = model.generation_config
    tokens = (settings.forced_bos_token_id, settings.decoder_start_token_id)
    return next((by_id[token] for token in tokens if token in by_id), None)


def _check_own(tokenizer: PreTrainedTokenizerBase, side: str, given: str | None) -> None:
    """Raise ConfigError for a language that a model without codes was not made for."""
    own = getattr(tokenizer, f"{side}_lang", None)
    if given is None or (own and set(language_names(own)) & set(language_names(given))):
        return
    made_for = f"its {side} language is {own!r}" if own else f"it tells no {side} languages apart"
    raise ConfigError(
        f"options.{side}_language: {given!r} cannot be told to this base model, {made_for}; leave the setting out"
    )


def _check_known(side: str, code: str, known: Collection[str]) -> None:
    if code in known:
        return
    names = language_names(code)
    same = [each for each in known if re.split("[_-]", each.lower())[0] in names]
    near = f"; did you mean {' or '.join(repr(each) for each in same[:3])}?" if same else suggest(code, known)
    raise ConfigError(f"options.{side}_language: {code!r} is no language code of this base model{near or _some(known)}")


def _missing(side: str, known: Collection[str]) -> ConfigError:
    return ConfigError(f"options.{side}_language: this base model needs to be told the {side} language{_some(known)}")


def _some(known: Collection[str]) -> str:
    first = ", ".join(repr(code) for code in sorted(known)[:4])
    return f"; it knows {len(known)} of them, e.g. {first}"
