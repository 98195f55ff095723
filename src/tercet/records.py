"""The records that stages exchange: one JSON object a line, schema and version on each line.

rankings = read_records(Path("rankings.jsonl"), Ranking)
write_records(Path("train.jsonl.gz"), [r for r in rankings if r.split == "train"])
"""

import errno
import gzip
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

DISK_IS_FULL = 2**20  # bytes free, with the unfinished file still there

Identifier = Annotated[str, StringConstraints(min_length=1)]
Finish = Literal["stop", "length"]
Judge = Literal["person", "simulated", "reward", "llm", "gold"]


class InputError(ValueError):
    """Something the user gave is wrong: one line that names file, row or option, and the remedy."""


class RunFailed(RuntimeError):
    """A run that cannot go on, though its input was fine: one line that says why and what to do."""


@contextmanager
def about(where: str) -> Iterator[None]:
    """Names the file and row in front of an InputError that does not know them."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


class Record(BaseModel):
    """What all records share: immutable, unknown fields refused, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class Message(Record):
    """One turn of a dialogue."""

    role: Identifier
    content: str


class Prompt(Record):
    """What a person asks: plain `text`, or the `messages` of a dialogue; exactly one of them."""

    schema_: Literal["tercet.prompt/1"] = Field(default="tercet.prompt/1", alias="schema")
    id: Identifier
    text: str | None = None
    messages: Annotated[tuple[Message, ...], Field(min_length=1)] | None = None
    user_id: str | None = None
    source: str | None = None
    split: str | None = None
    tags: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one_of_text_and_messages(self) -> "Prompt":
        if (self.text is None) == (self.messages is None):
            raise ValueError("give either 'text' or 'messages'")
        return self


class Demonstration(Record):
    """A prompt and the reply that a person wrote for it."""

    schema_: Literal["tercet.demonstration/1"] = Field(
        default="tercet.demonstration/1", alias="schema"
    )
    id: Identifier
    prompt_id: Identifier
    prompt: str
    response: str
    labeler: str | None = None
    user_id: str | None = None
    source: str | None = None
    split: str | None = None


class Candidate(Record):
    """One sampled reply and where it came from. `finish` is "length" when it was cut off."""

    id: Identifier
    text: str
    policy: str
    temperature: float = Field(ge=0)
    seed: StrictInt
    finish: Finish


class CandidateSet(Record):
    """K replies to one prompt, waiting to be ranked."""

    schema_: Literal["tercet.candidates/1"] = Field(default="tercet.candidates/1", alias="schema")
    id: Identifier
    prompt_id: Identifier
    prompt: str
    candidates: tuple[Candidate, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ids_differ(self) -> "CandidateSet":
        _refuse_repeated([candidate.id for candidate in self.candidates], "candidate")
        return self


class RankedReply(Record):
    """One reply and its rank: 1 is best, equal ranks are a tie, only the order matters.

    `rating` is overall quality 1 to 7, `flags` the yes / no / not asked (null) questions of
    InstructGPT's Table 3.
    """

    id: Identifier
    text: str
    rank: Annotated[StrictInt, Field(ge=1)]
    policy: str | None = None
    finish: Finish = "stop"
    rating: Annotated[StrictInt, Field(ge=1, le=7)] | None = None
    flags: dict[str, bool | None] | None = None


class Ranking(Record):
    """K replies to one prompt in one judge's order. A public pair is a ranking with K = 2."""

    schema_: Literal["tercet.ranking/1"] = Field(default="tercet.ranking/1", alias="schema")
    id: Identifier
    prompt_id: Identifier
    prompt: str
    replies: tuple[RankedReply, ...] = Field(min_length=2)
    judge: Judge
    labeler: str | None = None
    group: str | None = None
    fold: StrictInt | None = None
    criterion: str | None = None
    seconds: float | None = Field(default=None, ge=0)
    guidelines: str | None = None
    split: str | None = None
    source: str | None = None

    @model_validator(mode="after")
    def _ids_differ(self) -> "Ranking":
        _refuse_repeated([reply.id for reply in self.replies], "reply")
        return self


def _refuse_repeated(ids: list[str], what: str) -> None:
    if len(set(ids)) < len(ids):
        repeated = next(name for name in ids if ids.count(name) > 1)
        raise ValueError(f"two entries have the {what} id {repeated!r}; ids must differ")


T = TypeVar("T", bound=Record)


def prompt_text(record: Prompt | Demonstration | CandidateSet | Ranking) -> str:
    r"""The text that a model continues.

    Messages are rendered simply, in the form of Anthropic's public transcripts:
    "\n\nHuman: ...\n\nAssistant: ...", ending with an open "\n\nAssistant:".
    """
    if not isinstance(record, Prompt):
        return record.prompt
    if record.text is not None:
        return record.text
    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    turns = [f"\n\n{names.get(m.role, m.role)}: {m.content}" for m in record.messages or ()]
    return "".join(turns) + "\n\nAssistant:"


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (row number from 1, line with its end) of a UTF-8 file, plain or .gz.

    Raises:
        InputError: the file is missing, unreadable, not UTF-8, or a damaged archive.
    """
    if not path.exists():
        near = get_close_matches(path.name, _names(path.parent), n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise InputError(f"{path}: no such file{hint or '; check the path'}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the file inside it")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            # Split on \n only: U+2028 and friends are legal inside a JSON string.
            for row, line in enumerate(file, start=1):
                text = _decode(line, f"{path}:{row}")
                yield row, text.removeprefix("\ufeff") if row == 1 else text
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(
            f"{path}: damaged or incomplete gzip file ({error}); copy it again"
        ) from error
    except PermissionError as error:
        raise InputError(f"{path}: not readable; change its permissions") from error


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def read_records(path: Path, type_: type[T]) -> list[T]:
    """All records of a .jsonl or .jsonl.gz file; blank lines are skipped.

    Raises:
        InputError: names file, row, field and remedy.
    """
    return [_parse(text, type_, f"{path}:{row}") for row, text in read_lines(path) if text.strip()]


def _parse(text: str, type_: type[T], where: str) -> T:
    try:
        return type_.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, type_)}") from error


def _explain(error: ValidationError, type_: type[Record]) -> str:
    """One line from pydantic's first complaint, with what to do."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    kind, message = first["type"], first["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return f"not one JSON object ({message}); mend or delete this line"
    if field == "schema":
        expected = type_.model_fields["schema_"].default
        return (
            f"schema is {first['input']!r} where {expected!r} is needed; give a file of that kind"
        )
    if kind == "missing":
        return f"field '{field}' is missing; add it"
    if kind == "extra_forbidden":
        names = [info.alias or name for name, info in type_.model_fields.items()]
        near = get_close_matches(field, names, n=1)
        return f"unknown field '{field}'; " + (
            f"did you mean '{near[0]}'?" if near else "remove it"
        )
    found = f" (found {json.dumps(first['input'], ensure_ascii=False, default=str)[:60]})"
    return f"field '{field}': {message}{found}; correct it" if field else f"{message}; correct it"


def dump(record: Record) -> str:
    """The record as one line of JSON, absent fields left out, without the line end."""
    return record.model_dump_json(exclude_none=True)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes all records or, if interrupted, leaves the old file as it was. `.gz` compresses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(dump(record) + "\n" for record in records).encode()
    write_atomically(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, a library writes `path`; a full disk becomes the OSError that Python itself raises.

    torch, safetensors and shutil have errors of their own for it. What was half-written goes away.
    """
    try:
        yield
    except Exception as error:
        unnamed = getattr(error, "errno", None) is None
        full = unnamed and shutil.disk_usage(path.parent).free < DISK_IS_FULL
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Writes next to the target, then renames: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Adds records to a .jsonl file in one durable write, never after an unfinished line.

    Raises:
        InputError: the file's last line is unfinished (an earlier write was cut off).
    """
    assert path.suffix != ".gz", "appending is for plain .jsonl files"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                raise InputError(f"{path}: the last line is unfinished; delete that line")
        file.write("".join(dump(record) + "\n" for record in records).encode())
        file.flush()
        os.fsync(file.fileno())
