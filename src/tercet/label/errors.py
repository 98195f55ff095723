"""Why a request is refused: an HTTP status, a stable code, words for a person, and a body."""

from typing import Any

from tercet.records import InputError, RunFailed


class Refused(Exception):
    """A rule of the labeling flow says no; the transaction is rolled back.

    404 not yours or not there, 409 already done, 410 used or expired, 412 another tab was first,
    422 the answer is incomplete, 423 paused or held.
    """

    def __init__(self, status: int, code: str, message: str, **body: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.body = status, code, message, body


def not_found(what: str) -> Refused:
    """404 for things that do not exist and for things of somebody else: the same answer."""
    return Refused(404, "not-found", f"there is no such {what}")


def ended(refused: Refused, where: str = "") -> InputError | RunFailed:
    """What ends a command that was refused: wrong input, or (from 500 on) a store that does not
    do its work now."""
    type_ = InputError if refused.status < 500 else RunFailed
    return type_(f"{where}: {refused.message}" if where else refused.message)
