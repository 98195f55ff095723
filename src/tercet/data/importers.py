"""Public data in its common shapes becomes tercet records. One JSON object a line, plain or .gz,
or a .json file with a list of them:

demonstrations  prompt, response
rankings        prompt and one of: chosen, rejected | a, b, votes | replies of {text, rank}
                and what TRL, hh-rlhf, Argilla and Label Studio write (foreign.py)
texts           text (and title, part); or a .txt / .txt.xz file
contexts        context_id, text: what rankings with a `context_id` ask about
"""

import fnmatch
import hashlib
import json
import lzma
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

from tercet.data import foreign
from tercet.data.split import FRACTIONS, split_of
from tercet.records import (
    Demonstration,
    InputError,
    Judge,
    Prompt,
    RankedReply,
    Ranking,
    read_lines,
)

TEXT_PIECE = 8000  # characters: plain text files are cut near this, at a blank line


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """How rows become records, and which rows to take."""

    template: str = "{prompt}"
    r"""the prompt's form, e.g. "Question: {prompt}\n\nAnswer:"; may also name {context}"""
    reply: str = "{reply}"
    """the reply's form, e.g. " {reply}" where the template ends without a space"""
    sources: tuple[str, ...] = ()
    """take only these sources; patterns such as "llmbar/*" are allowed (empty: all)"""
    without: tuple[str, ...] = ()
    """leave out these sources; patterns as above"""
    criteria: tuple[str, ...] = ()
    """take only rankings by these criteria (empty: all)"""
    splits: tuple[str, ...] = ()
    """take only these splits (empty: all)"""
    contexts: Path | None = None
    """file of the texts that rows with a `context_id` ask about"""
    judge: Judge = "person"
    """who ranked"""
    votes: Literal["majority", "each"] = "majority"
    """several votes on one pair: one ranking (no majority: a tie), or one ranking a vote"""
    empty: Literal["refuse", "drop", "keep"] = "refuse"
    """what to do with rows that have an empty reply"""
    prompt_field: str = "prompt"
    """Argilla, Label Studio: the field that holds the prompt"""
    question: str | None = None
    """Argilla, Label Studio: the question or control to read, where there are several"""
    buckets: tuple[str, ...] = ()
    """Label Studio: names of a Ranker's buckets, best first; replies in one bucket tie"""

    def __post_init__(self) -> None:
        for name, place in (("template", "{prompt}"), ("reply", "{reply}")):
            if place not in getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must contain {place}")


@dataclass(frozen=True)
class Text:
    """A document to pretrain on."""

    id: str
    text: str
    source: str
    split: str


@dataclass(frozen=True)
class _Row:
    """One line of a file: its fields, checked as they are asked for."""

    where: str
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        if isinstance(value, str):
            return value
        if name not in self.fields:
            has = ", ".join(self.fields)
            raise InputError(
                f"{self.where}: field '{name}' is missing (has: {has}); add or rename it"
            )
        raise InputError(f"{self.where}: field '{name}' is {value!r:.60}; make it a text")

    def optional(self, name: str) -> str | None:
        return None if self.fields.get(name) is None else self.text(name)

    def id(self) -> str:
        return self.optional("id") or self.where

    def prompt_id(self) -> str:
        """One id for one prompt in every file: a hash of its text and context as published."""
        words = f"{self.fields.get('context_id') or ''}\0{self.text('prompt')}"
        return f"prompt-{hashlib.sha256(words.encode()).hexdigest()[:16]}"


def demonstrations(path: Path, config: ImportConfig) -> list[Demonstration]:
    """Rows of {prompt, response}.

    Raises:
        InputError: a bad row, or filters that leave nothing.
    """
    contexts = _contexts(config.contexts)
    return [
        Demonstration(
            id=row.id(),
            prompt_id=row.prompt_id(),
            prompt=_prompt(row, config, contexts),
            response=config.reply.replace("{reply}", row.text("response")),
            labeler=row.optional("annotator"),
            user_id=row.optional("user_id"),
            source=row.optional("source"),
            split=row.optional("split"),
        )
        for row in _rows(path, config, "demonstrations")
        if _complete(row, [row.text("response")], config)
    ]


def prompts(path: Path, config: ImportConfig) -> list[Prompt]:
    """The different prompts of any file whose rows have a `prompt`, at their first place."""
    contexts = _contexts(config.contexts)
    found: dict[str, Prompt] = {}
    for row in _rows(path, config, "prompts"):
        prompt = Prompt(
            id=row.prompt_id(),
            text=_prompt(row, config, contexts),
            user_id=row.optional("user_id"),
            source=row.optional("source"),
            split=row.optional("split"),
        )
        found.setdefault(prompt.id, prompt)
    return list(found.values())


def rankings(path: Path, config: ImportConfig) -> list[Ranking]:
    """Pairs, votes and rankings, each row by its own fields. Ranks become dense: 1, 3, 3, 7 is
    1, 2, 2, 3. With votes, a choice needs more than half of them, otherwise the pair is a tie.

    Raises:
        InputError: a bad row, or filters that leave nothing.
    """
    contexts = _contexts(config.contexts)
    result = []
    for row in _rows(path, config, "rankings"):
        shape = next((name for name in _READERS if name in row.fields), None)
        if shape is None:
            raise InputError(
                f"{row.where}: no ranking (has: {', '.join(row.fields)}); needs 'chosen' and "
                "'rejected', or 'a', 'b' and 'votes', or 'replies'"
            )
        for ranked in _READERS[shape](row, config):
            if _complete(row, [text for text, _, _ in ranked.replies], config):
                result.append(_ranking(row, ranked, config, contexts))
    return result


@dataclass(frozen=True)
class _Ranked:
    """One judgement found in a row: (text, rank, policy) of each reply."""

    id: str
    replies: Sequence[tuple[str, int, str | None]]
    labeler: str | None


def _ranking(row: _Row, ranked: _Ranked, config: ImportConfig, contexts: dict[str, str]) -> Ranking:
    dense = {rank: place for place, rank in enumerate(sorted({r for _, r, _ in ranked.replies}), 1)}
    replies = [
        RankedReply(
            id=str(number),
            text=config.reply.replace("{reply}", text),
            rank=dense[rank],
            policy=policy,
        )
        for number, (text, rank, policy) in enumerate(ranked.replies)
    ]
    return Ranking(
        id=ranked.id,
        prompt_id=row.prompt_id(),
        prompt=_prompt(row, config, contexts),
        replies=tuple(replies),
        judge=config.judge,
        labeler=ranked.labeler,
        criterion=row.optional("criterion"),
        split=row.optional("split"),
        source=row.optional("source"),
    )


def _read_pair(row: _Row, config: ImportConfig) -> list[_Ranked]:
    replies = [(row.text("chosen"), 1, None), (row.text("rejected"), 2, None)]
    return [_Ranked(row.id(), replies, row.optional("annotator"))]


def _read_votes(row: _Row, config: ImportConfig) -> list[_Ranked]:
    votes, models = row.fields["votes"], row.fields.get("models") or [None, None]
    if not (isinstance(votes, list) and votes and all(v in ("a", "b", "tie") for v in votes)):
        raise InputError(f"{row.where}: 'votes' is {votes!r:.60}; give a list of 'a', 'b' or 'tie'")
    if not (isinstance(models, list) and len(models) == 2):
        raise InputError(f"{row.where}: 'models' is {models!r:.60}; give the two models' names")

    def ranked(id_: str, vote: str, labeler: str | None) -> _Ranked:
        a, b = {"a": (1, 2), "b": (2, 1), "tie": (1, 1)}[vote]
        replies = [(row.text("a"), a, models[0]), (row.text("b"), b, models[1])]
        return _Ranked(id_, replies, labeler)

    if config.votes == "each":
        return [ranked(f"{row.id()}/{i}", v, f"voter-{i}") for i, v in enumerate(votes)]
    vote, count = Counter(votes).most_common(1)[0]
    return [ranked(row.id(), vote if 2 * count > len(votes) else "tie", None)]


def _read_replies(row: _Row, config: ImportConfig) -> list[_Ranked]:
    items = row.fields["replies"]
    if not (isinstance(items, list) and len(items) >= 2):
        raise InputError(
            f"{row.where}: 'replies' is {items!r:.60}; give a list of at least 2 replies"
        )
    replies = []
    for number, item in enumerate(items):
        where = f"{row.where}: reply {number}"
        if not isinstance(item, dict):
            raise InputError(f"{where} is {item!r:.60}; give an object with 'text' and 'rank'")
        rank = item.get("rank")
        if type(rank) is not int:  # bool is an int too
            raise InputError(f"{where}: 'rank' is {rank!r}; give a whole number, 1 = best")
        reply = _Row(where, item)
        replies.append((reply.text("text"), rank, reply.optional("model")))
    return [_Ranked(row.id(), replies, row.optional("annotator"))]


_READERS: dict[str, Callable[[_Row, ImportConfig], list[_Ranked]]] = {
    "replies": _read_replies,
    "votes": _read_votes,
    "chosen": _read_pair,
}


def best_replies(rankings: Iterable[Ranking]) -> list[Demonstration]:
    """Demonstrations made of first-ranked replies: ties all serve, each text once a prompt,
    and a ranking that ties all its replies prefers none and gives none."""
    found: dict[tuple[str, str], Demonstration] = {}
    for ranking in rankings:
        if len({reply.rank for reply in ranking.replies}) == 1:
            continue
        for reply in ranking.replies:
            if reply.rank == min(other.rank for other in ranking.replies):
                demonstration = Demonstration(
                    id=f"{ranking.id}/{reply.id}",
                    prompt_id=ranking.prompt_id,
                    prompt=ranking.prompt,
                    response=reply.text,
                    labeler=ranking.labeler,
                    source=ranking.source,
                    split=ranking.split,
                )
                found.setdefault((ranking.prompt_id, reply.text), demonstration)
    return list(found.values())


def texts(
    path: Path, config: ImportConfig, fractions: dict[str, float] | None = None
) -> Iterator[Text]:
    """Documents to pretrain on, from .jsonl(.gz) rows with a `text`, or a .txt / .txt.xz file.

    Consecutive rows with one `title` are parts of one document. A plain text file is cut at blank
    lines near 8,000 characters, so that some of it can be held out. Without a split of its own, a
    document's split comes from a hash of its id (source, author and title; or file and number).
    """
    shares = fractions or dict(FRACTIONS)
    if path.name.endswith((".txt", ".txt.xz")):
        found: Iterable[tuple[str, str, str, str | None]] = (
            (f"{path.name}/{number}", piece, path.name, None)
            for number, piece in enumerate(_pieces(_plain_text(path)))
        )
    else:
        found = _titled(_rows(path, replace(config, splits=())))  # splits may be made only below
    for id_, text, source, split in found:
        chosen = split or split_of(id_, shares)
        if text.strip() and (not config.splits or chosen in config.splits):
            yield Text(id_, text, source, chosen)


def _titled(rows: Iterator[_Row]) -> Iterator[tuple[str, str, str, str | None]]:
    def title(row: _Row) -> tuple[str, str]:
        names = (row.optional("source"), row.optional("author"), row.optional("title"))
        # A row without a title stands alone.
        return "/".join(n for n in names if n), "" if names[2] else row.where

    for (name, where), group in groupby(rows, title):
        parts = list(group)
        split, source = parts[0].optional("split"), parts[0].optional("source") or ""
        yield where or name, "\n\n".join(part.text("text") for part in parts), source, split


def _plain_text(path: Path) -> str:
    if path.suffix != ".xz":
        return "".join(line for _, line in read_lines(path))
    try:
        return lzma.decompress(path.read_bytes()).decode("utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except lzma.LZMAError as error:
        raise InputError(
            f"{path}: damaged or incomplete xz file ({error}); copy it again"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); save the text as UTF-8") from error


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that concatenate back to it, each ending at a blank line."""
    start = 0
    for blank in re.finditer(r"\n[ \t]*\n", text):
        if blank.end() - start >= TEXT_PIECE:
            yield text[start : blank.end()]
            start = blank.end()
    yield text[start:]


def _rows(path: Path, config: ImportConfig, want: foreign.Want | None = None) -> Iterator[_Row]:
    """Rows that pass the filters; with `want` those of other tools too, one for each answer.

    Raises:
        InputError: not JSON objects, no rows at all, or a filter that leaves nothing.
    """
    seen: dict[str, Counter[str]] = {
        "source": Counter(),
        "criterion": Counter(),
        "split": Counter(),
    }
    count = kept = 0
    for row in _own_rows(path, config, want):
        count += 1
        for name, values in seen.items():
            values[row.optional(name) or "none"] += 1
        if _passes(row, config):
            kept += 1
            yield row
    if not count:
        raise InputError(f"{path}: holds no rows; give a file with one JSON object a line")
    if not kept:
        has = "; ".join(f"{name}: {', '.join(sorted(values))}" for name, values in seen.items())
        raise InputError(f"{path}: no row passes the filters; the file has {has}")


def _own_rows(path: Path, config: ImportConfig, want: foreign.Want | None) -> Iterator[_Row]:
    """All rows in tercet's own form."""
    choice = foreign.Choice(config.question, config.prompt_field, config.buckets)
    for where, value in _values(path):
        fields = _object(value, where)
        if want is None:
            yield _Row(where, fields)
        else:
            for row in foreign.rows(fields, where, want, choice):
                yield _Row(where, row)


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of every line, or of every entry of a .json file's list."""
    if path.name.endswith((".json", ".json.gz")):
        values = _json("".join(line for _, line in read_lines(path)), str(path), "this file")
        if not isinstance(values, list):
            raise InputError(f"{path}: not a list of objects; give one, or a .jsonl file")
        for number, value in enumerate(values, 1):
            yield f"{path}: entry {number}", value
    else:
        for number, line in read_lines(path):
            if line.strip():
                yield f"{path}:{number}", _json(line, f"{path}:{number}", "this line")


def _json(text: str, where: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg}); mend or delete {what}") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: not a JSON object; mend or delete this line")
    return value


def _passes(row: _Row, config: ImportConfig) -> bool:
    source = row.optional("source") or ""
    return (
        (not config.sources or _matches(source, config.sources))
        and not _matches(source, config.without)
        and (not config.criteria or row.optional("criterion") in config.criteria)
        and (not config.splits or row.optional("split") in config.splits)
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _complete(row: _Row, replies: Sequence[str], config: ImportConfig) -> bool:
    """False for a row to drop because it has an empty reply."""
    if all(reply.strip() for reply in replies) or config.empty == "keep":
        return True
    if config.empty == "refuse":
        raise InputError(f'{row.where}: a reply is empty; mend it, or set empty = "drop" or "keep"')
    return False


def _prompt(row: _Row, config: ImportConfig, contexts: dict[str, str]) -> str:
    text = row.text("prompt")
    if not text.strip():
        raise InputError(f"{row.where}: the prompt is empty; fill it or delete the row")
    context_id = row.optional("context_id")
    template = config.template
    if context_id is not None:
        if context_id not in contexts:
            raise InputError(
                f"{row.where}: asks about context '{context_id}'; set contexts to the file that "
                f'has it, or leave out this source: without = ["{row.optional("source")}"]'
            )
        if "{context}" not in template:
            template = "{context}\n\n" + template
    # One pass over the template, because prompts and contexts may hold braces of their own.
    parts = {"{prompt}": text, "{context}": contexts.get(context_id or "", "")}
    return "".join(parts.get(piece, piece) for piece in _template_pieces(template))


def _template_pieces(template: str) -> list[str]:
    for place in ("{prompt}", "{context}"):
        template = template.replace(place, f"\0{place}\0")
    return template.split("\0")


def _contexts(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    rows = _rows(path, ImportConfig())
    return {row.text("context_id"): row.text("text") for row in rows}


def read_texts(path: Path, limit: int | None = None) -> list[str]:
    """The first `limit` texts of a file, in any form that `texts` reads."""
    return [text.text for text in islice(texts(path, ImportConfig()), limit)]
