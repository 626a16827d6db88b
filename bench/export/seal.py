"""The last bytes of a file for other programs: what the file is, and the checksum of all bytes before them.

``sealed`` adds them where the format allows it: a ZIP archive may end with a comment, and an ONNX file with
one more entry of its metadata. ``opened`` checks them before any program gets the file. A checksum tells
damage and edits, not malice: whoever writes a file can compute it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from bench.errors import InputError

VERSION = 1
_SEAL = re.compile(rb"progressive-bench network ([a-z0-9]{1,20}) version (\d{1,9}) sha256 [0-9a-f]{64}\Z")
_NO_COMMENT = b"\0\0"  # the last field of a ZIP archive: the length of its comment


def sealed(form: str, body: bytes) -> bytes:
    """Return a file's bytes with their seal.

    ``form``: "onnx" or "qonnx", ``body`` then is a serialized ONNX model; or "pt2", a ZIP archive. Raises
    ``ValueError`` for an archive that has a comment.
    """
    if form == "pt2":
        if body[-22:-18] != b"PK\x05\x06" or body[-2:] != _NO_COMMENT:
            raise ValueError("not a ZIP archive without a comment")
        body = body[:-2] + len(_text(form, body)).to_bytes(2, "little")
    return body + _tail(form, _text(form, body))


def opened(path: Path, form: str) -> bytes:
    """Return the bytes of a sealed file of this form.

    Raises ``InputError`` for a file that cannot be read, has no seal, was written by a newer version, holds
    another form, or has other bytes than those that were written.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    found = _SEAL.search(data[-200:])
    if found is None:
        raise InputError(f"{path}: truncated, edited, or not written by `bench export`; export it again")
    is_form, version = (part.decode() for part in found.groups())
    if int(version) != VERSION:
        what = "was written by a newer version" if int(version) > VERSION else "is none that was ever written"
        raise InputError(f"{path}: format version '{version}' {what}; this one reads {VERSION}")
    tail = _tail(is_form, found.group())
    if not data.endswith(tail) or _text(is_form, data[: -len(tail)]) != found.group():
        raise InputError(f"{path}: its checksum is wrong: the file is damaged or was edited; export it again")
    if is_form != form:
        raise InputError(f"{path}: is a file of the format {is_form}, not {form}")
    return data


def _text(form: str, body: bytes) -> bytes:
    """Return the seal: SHA-256 is of the bytes before it, and of its own words."""
    words = f"progressive-bench network {form} version {VERSION} sha256 ".encode()
    return words + hashlib.sha256(body + words).hexdigest().encode()


def _tail(form: str, text: bytes) -> bytes:
    """Return the last bytes of a file of this form: a ZIP archive's comment, or metadata of an ONNX model."""
    if form == "pt2":
        return text
    from onnx import ModelProto, StringStringEntryProto

    entry = StringStringEntryProto(key="progressive-bench", value=text.decode())
    return ModelProto(metadata_props=[entry]).SerializeToString()
