"""Markdown as a tree of plain JSON nodes, so that a page can build it without any HTML.

A node is {"t": kind} with "c", its children, or "v", its text. A link has both: what it says, and
its address, which pages show as text. Images do not exist here, and HTML is text.
"""

from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

Node = dict[str, Any]

# What has more than this is shown as it is.
LONGEST = 100_000  # characters
BRACKETS = 2_000  # the parser's time grows with the square of the open ones
DEEPEST = 60  # levels of quotes and lists

_OPENS = {
    "paragraph_open": "p",
    "heading_open": "h",
    "bullet_list_open": "ul",
    "ordered_list_open": "ol",
    "list_item_open": "li",
    "blockquote_open": "quote",
    "em_open": "em",
    "strong_open": "strong",
    "link_open": "link",
}
_TEXTS = {"text": "text", "code_inline": "code", "code_block": "pre", "fence": "pre"}
_BREAKS = {"hardbreak": "br", "softbreak": "br", "hr": "hr"}


def tree(text: str) -> list[Node]:
    """The nodes of a text. Every line break of the text stays one.

    Kinds: p h ul ol li quote em strong link (with "c"), text code pre (with "v"), br hr. An
    ordered list that does not begin with 1 has "start".
    """
    if len(text) > LONGEST or text.count("[") > BRACKETS:
        return [{"t": "pre", "v": text}]
    tokens = _parser().parse(text)
    if any(token.level >= DEEPEST - 1 for token in tokens):
        return [{"t": "pre", "v": text}]  # the parser leaves out what is nested deeper
    top: list[Node] = []
    _build(tokens, [top])
    return top


@cache
def _parser() -> MarkdownIt:
    options = {"html": False, "maxNesting": DEEPEST}
    # Link definitions would vanish from the text.
    return MarkdownIt("commonmark", options).disable(["image", "reference"])


def _build(tokens: list[Token], stack: list[list[Node]]) -> None:
    for token in tokens:
        kind = token.type
        if kind == "inline":
            depth = len(stack)
            _build(token.children or [], stack)
            del stack[depth:]  # the parser left a span open where it gave up
        elif kind in _OPENS:
            node: Node = {"t": _OPENS[kind], "c": []}
            if kind == "link_open":
                node["v"] = str(token.attrs.get("href", ""))
            elif token.attrs.get("start"):
                node["start"] = token.attrs["start"]
            stack[-1].append(node)
            stack.append(node["c"])
        elif token.nesting == -1:
            stack.pop()
        elif kind in _BREAKS:
            stack[-1].append({"t": _BREAKS[kind]})
        elif token.content:
            stack[-1].append({"t": _TEXTS.get(kind, "text"), "v": token.content})
