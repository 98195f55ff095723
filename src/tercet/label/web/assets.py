"""Static files: read once, named by their content's hash, cached by browsers for ever.

The hash is a folder of the address, `/static/<hash>/task.js`, so that a module's relative imports
carry it too. `/static/task.js` works as well and is revalidated on each use. Scripts and style
sheets go out without comments and indentation, with the lines of the source, and compressed for who
takes that.
"""

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import Response

from tercet.label.errors import not_found

FOLDER = Path(__file__).parent / "static"
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}


@dataclass(frozen=True)
class _File:
    data: bytes
    packed: bytes
    type: str
    name: str

    def etag(self, packed: bool) -> str:
        return f'"{self.name}-gzip"' if packed else f'"{self.name}"'


class Assets:
    """The files of the static folder as they were when the server started."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): _read(path)
            for path in sorted(folder.rglob("*"))
            if path.suffix in TYPES
        }
        everything = "".join(f"{name}{file.name}" for name, file in self._files.items())
        self.version = hashlib.sha256(everything.encode()).hexdigest()[:12]

    def url(self, name: str) -> str:
        """The address of a file, `static("style.css")` in a template."""
        return f"/static/{self.version}/{name}"

    def answer(self, path: str, given: Mapping[str, str]) -> Response:
        """The file at `path` below /static/, or 304 when the browser has it; `given` are the
        request's headers.

        Raises:
            Refused: 404, no such file.
        """
        version, _, name = path.partition("/")
        file = self._files.get(name) or self._files.get(path)
        if file is None:
            raise not_found("file")
        packed = _takes_gzip(given.get("accept-encoding", ""))
        lasting = version == self.version
        headers = {
            "etag": file.etag(packed),
            "cache-control": "public, max-age=31536000, immutable" if lasting else "no-cache",
            "vary": "Accept-Encoding",
        }
        if given.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        headers["content-type"] = file.type
        if packed:
            headers["content-encoding"] = "gzip"
        return Response(file.packed if packed else file.data, headers=headers)


def slim(source: str, kind: str) -> str:
    """A script without comments and indentation, a style sheet also without the spaces around its
    punctuation; every line keeps its number.

    A script must not break a string or template across lines, and a comment that shares a line with
    code is left where a quote follows it. Strings of a style sheet hold no such punctuation.
    """
    if kind == ".css":
        source = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), source, flags=re.DOTALL)
        return "\n".join(_SPACES.sub(r"\1\2", line.strip()) for line in source.splitlines()) + "\n"
    lines, comment = [], False
    for line in map(str.strip, source.splitlines()):
        comment = comment or line.startswith("/*")
        lines.append("" if comment or line.startswith("//") else _TAIL.sub("", line))
        comment = comment and not line.endswith("*/")
    return "\n".join(lines) + "\n"


_SPACES = re.compile(r"\s*([{};])\s*|([:,]) ")
_TAIL = re.compile(r"""\s+// [^"'`]*$""")


def _takes_gzip(accepted: str) -> bool:
    for part in accepted.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _read(path: Path) -> _File:
    data = path.read_bytes()
    if path.suffix in (".js", ".css"):
        data = slim(data.decode(), path.suffix).encode()
    name = hashlib.sha256(data).hexdigest()[:16]
    return _File(data, gzip.compress(data, 9, mtime=0), TYPES[path.suffix], name)
