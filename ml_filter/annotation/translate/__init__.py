"""Translate documents (documents.py) and prompts (prompts.py) with an LLM, and reject bad translations (checks.py)."""

from ml_filter.annotation.translate.documents import translate_documents
from ml_filter.annotation.translate.prompts import is_prompt, translate_prompt

__all__ = ["is_prompt", "translate_documents", "translate_prompt"]
