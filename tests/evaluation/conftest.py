"""The servers and prompts of the annotation tests, for comparing annotators."""

from tests.annotation.conftest import asking, prompt_file, serve

__all__ = ["asking", "prompt_file", "serve"]
