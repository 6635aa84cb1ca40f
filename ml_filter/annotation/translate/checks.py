"""Checks of translations: whether a text can be the translation of another into a language."""

from __future__ import annotations

import re

import regex

from ml_filter.annotation.prompts import language_code
from ml_filter.errors import ConfigError

_FENCED = re.compile(r"\A\s*([=+]{10})\s*\n(.*?)\n\s*\1\s*\Z", re.DOTALL)
_WIDE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
_WIDE_AS = 2.5
"""Approximate number of Latin letters that a character of these scripts corresponds to."""
_LENGTH_SLACK = 30
"""Characters by which short texts may differ in length whatever their ratio."""
_COPY_WORDS = 8
_COPIED_SHARE = 0.8
"""A translation of at least this many words is a copy if at least this share of its word triples is in the original."""
_SCRIPT_LETTERS = 20
_SCRIPT_SHARE = 0.2
"""A translation of at least this many letters must have at least this share of them in the language's script. The share
is low because names and code stay as they are; a translation into the wrong language has almost none."""
_SCRIPTS = {"Hans": "Han", "Hant": "Han", "Jpan": "Han Hira Kana", "Kore": "Hang Han"}
"""Unicode scripts of languages whose script has another name there."""


def suspicion(original: str, translation: str, language: str, length_ratio: tuple[float, float]) -> str | None:
    """The reason why a text is probably not a translation into `language`; None if it looks like one.

    Checks the length (a Chinese, Japanese or Korean character counts as 2.5 letters), the script, and whether the text
    is still the original.
    """
    if not translation.strip():
        return "the translation is empty"
    sizes = [len(text) + (_WIDE_AS - 1) * len(_WIDE.findall(text)) for text in (original, translation)]
    low, high = length_ratio
    if not low * sizes[0] - _LENGTH_SLACK <= sizes[1] <= high * sizes[0] + _LENGTH_SLACK:
        return f"the translation has {len(translation):,} characters, the original {len(original):,}"
    triples = [_word_triples(text) for text in (original, translation)]
    if len(triples[1]) >= _COPY_WORDS - 2:
        copied = len(triples[1] & triples[0]) / len(triples[1])
        if copied > _COPIED_SHARE:
            return f"{copied:.0%} of the translation is copied from the original"
    elif len(original) > _LENGTH_SLACK and translation.split() == original.split():
        return "the translation is the same as the original"
    share = _share_in_script(translation, language)
    if share is not None and share < _SCRIPT_SHARE:
        return f"only {share:.0%} of the letters of the translation belong to a script of {language_name(language)}"
    return None


def _word_triples(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return set(zip(words, words[1:], words[2:], strict=False))


def _share_in_script(text: str, language: str) -> float | None:
    """The share of letters in the script of a language; None if the script is unknown or the text too short."""
    from langcodes import Language

    script = Language.get(language.replace("_", "-")).maximize().script
    letters = regex.findall(r"\p{L}", text)
    if script is None or len(letters) < _SCRIPT_LETTERS:
        return None
    names = _SCRIPTS.get(script, script).split()
    try:
        in_script = regex.compile("[" + "".join(rf"\p{{Script={name}}}" for name in names) + "]")
    except regex.error:
        return None
    return sum(in_script.match(letter) is not None for letter in letters) / len(letters)


def without_fence(answer: str) -> str:
    """The translation without the fence lines of the prompt, which some models repeat."""
    match = _FENCED.match(answer)
    return (match[2] if match else answer).strip()


def language_name(code: str) -> str:
    """The English name of a language: `German` for `de` and `deu_Latn`.

    Raises:
        ConfigError: unknown language code.
    """
    from babel import Locale, UnknownLocaleError
    from langcodes import Language
    from langcodes.tag_parser import LanguageTagError

    english = Locale("en")
    try:
        tag = Language.get(code.replace("_", "-"))
        script = f" ({english.scripts[tag.script]} script)" if tag.script else ""
        territory = f" as in {english.territories[tag.territory]}" if tag.territory else ""
        return f"{english.languages[str(tag.language)]}{script}{territory}"
    except (LanguageTagError, UnknownLocaleError, KeyError):
        raise ConfigError(f"unknown language code {code!r}; use codes such as de, es or zh-Hant") from None


def default_code(language: str) -> str | None:
    """The short code of a language in its default form; None for another form, such as zh-Hant."""
    from langcodes import Language

    code = language_code(language)
    is_default = Language.get(language.replace("_", "-")).maximize() == Language.get(code).maximize()
    return code if is_default else None
