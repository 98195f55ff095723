"""Static files: read once, named by their content's hash, cached by browsers for ever.

The hash is a folder of the address, `/static/<hash>/task.js`, so that a module's relative imports
carry it too. `/static/task.js` works as well and is revalidated on each use.
"""

import hashlib
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
    type: str
    etag: str


class Assets:
    """The files of the static folder as they were when the server started."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): _read(path)
            for path in sorted(folder.rglob("*"))
            if path.suffix in TYPES
        }
        everything = "".join(f"{name}{file.etag}" for name, file in self._files.items())
        self.version = hashlib.sha256(everything.encode()).hexdigest()[:12]

    def url(self, name: str) -> str:
        """The address of a file, `static("style.css")` in a template."""
        return f"/static/{self.version}/{name}"

    def answer(self, path: str, if_none_match: str | None) -> Response:
        """The file at `path` below /static/, or 304 when the browser has it.

        Raises:
            Refused: 404, no such file.
        """
        version, _, name = path.partition("/")
        file = self._files.get(name) or self._files.get(path)
        if file is None:
            raise not_found("file")
        lasting = version == self.version
        headers = {
            "etag": file.etag,
            "cache-control": "public, max-age=31536000, immutable" if lasting else "no-cache",
        }
        if file.etag == if_none_match:
            return Response(status_code=304, headers=headers)
        return Response(file.data, headers={**headers, "content-type": file.type})


def _read(path: Path) -> _File:
    data = path.read_bytes()
    return _File(data, TYPES[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:16]}"')
