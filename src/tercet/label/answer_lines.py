"""One line of an export's answers.jsonl, as it is read back."""

from typing import Annotated, Any, Literal

from pydantic import Field, StrictInt

from tercet.label.schema import Kind
from tercet.records import Identifier, Record


class AnswerLine(Record):
    """What a record has no field for. Questions and notes are checked with the answer itself."""

    schema_: Literal["tercet.answer/1"] = Field(default="tercet.answer/1", alias="schema")
    kind: Kind
    id: Identifier
    revision: Annotated[StrictInt, Field(ge=1, lt=2**31)] = 1
    at: Annotated[StrictInt, Field(ge=0, lt=2**53)] | None = None
    prompt_flags: dict[str, Any] | None = None
    note: str = ""
    notes: dict[str, str] | None = None
    strength: str | None = None
    arranged: bool = False
    swapped: bool = False
    shown: list[str] | None = None
    extra: bool = False
    gold: bool = False
    repeat: bool = False
    judge: Literal["person", "simulated"] | None = None
    group: str | None = None
    fold: StrictInt | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None
    guidelines: str | None = None
