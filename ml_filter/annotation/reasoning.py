"""Reasoning in an answer: what a model writes to itself before the answer proper, in the marks of many models."""

from __future__ import annotations

import re
from typing import Literal

_EDGE = re.compile(
    r"""(?xi)
    (?: < | &lt; | \u25c1 | \[ (?=/?think(?:ing)?\]) ) \s? (?P<close>/?) \s? (?:seed:)?
    (?P<name> think(?:ing)? | antthinking | thoughts? | reasoning | reflection | analysis | scratchpad )
    (?: \s [^<>\[\]\n]{0,40} )? \s? (?: > | &gt; | \] | \u25b7 )
    | (?P<opens> <\|channel\|> \s? (?:analysis|commentary) [^<\n]{0,40} <\|message\|> | <\|channel>thought
        | <\|start_thinking\|> | <\|inner_prefix\|> | \A \s{0,9} (?-i:analysis) (?-i:(?=[A-Z"'*]))
        | \A \s{0,9} here(?:'s|\ is)\ my\ thought\ process: )
    | <\|channel\|> \s? final [^<\n]{0,40} <\|message\|> | <channel\|> | <\|end_thinking\|> | <\|inner_suffix\|>
    | (?-i:assistantfinal) | \b here(?:'s|\ is)\ my\ response:"""
)
_END_OF_TURN = re.compile(r"<\|(?:im_end|eot_id|eom_id|end_of_text|endoftext|return)\|>|<end_of_turn>|</s>")


def first_mark(text: str) -> Literal["opens", "closes"] | None:
    """What the first mark of reasoning in a text does; None: it has none.

    One that closes says that the reasoning was opened by the chat template, before the answer began.
    """
    edge = _EDGE.search(text)
    if edge is None:
        return None
    return "opens" if _opens(edge) else "closes"


def _opens(edge: re.Match[str]) -> bool:
    return bool(edge["opens"] or (edge["name"] and not edge["close"]))


def without_reasoning(text: str) -> str | None:
    """The answer proper, with reasoning and whatever follows the end of the turn replaced by white space, so that
    offsets stay; None if the reasoning does not end.

    A closing mark without an opening one ends reasoning that the chat template has opened. Of nested marks, each must
    be closed.
    """
    blanks: list[tuple[int, int]] = []
    opened, depth, start = "", 0, 0
    for edge in _EDGE.finditer(text):
        name = edge["name"].casefold() if edge["name"] else "channel"
        opens = _opens(edge)
        if depth == 0 and opens:
            opened, depth, start = name, 1, edge.start()
        elif depth == 0:
            blanks = [(0, edge.end())]
        elif name == opened:
            depth += (name != "channel") if opens else -1  # channels follow each other and do not nest
            if depth == 0:
                blanks.append((start, edge.end()))
    if depth:
        return None
    if end := _END_OF_TURN.search(text, blanks[-1][1] if blanks else 0):
        blanks.append((end.start(), len(text)))
    pieces, position = [], 0
    for start, stop in blanks:
        # A new line, so that whatever comes before or after has ended.
        pieces += [text[position:start], "\n".ljust(stop - start)]
        position = stop
    return "".join([*pieces, text[position:]])
