"""A folder as one file to download."""

import tempfile
import zipfile
from pathlib import Path


def pack(folder: Path) -> Path:
    """A zip of the folder's files; the caller deletes it. Same files, same bytes."""
    with tempfile.NamedTemporaryFile(suffix=".zip", delete=False) as target:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.iterdir()):
                entry = zipfile.ZipInfo(path.name)  # dated 1980, so that equal files stay equal
                entry.compress_type = zipfile.ZIP_DEFLATED
                with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as out:
                    while part := source.read(2**20):
                        out.write(part)
        return Path(target.name)
