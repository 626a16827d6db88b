"""Structured mutations of valid files, as hypothesis strategies: trees, TOML, JSON, CSV, text and bytes.

A valid document is changed in a few places: values of other types, huge numbers, NaN, hostile text, keys
deleted, misspelt, doubled or moved, nesting; then, perhaps, its text (lines, control characters, encodings)
or its bytes (cut, flipped, moved). So most cases get past the parser, to the code behind it.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
TWICE = "\ue000"  # ends a key that is written without it: so a document can hold a key twice


class Raw(str):
    """Text that a writer copies as it is."""

    __slots__ = ()


TEXTS = (
    "",
    " ",
    "x",
    "plain",
    "branch",
    "own",
    "mine",
    "dorefa",
    "digits",
    "svhn",
    "npz:mine",
    "npz:../../etc/passwd",
    "python:os.system",
    "1/1",
    "2/32",
    "0/0",
    "99/1",
    "1/1/1/1",
    "nan",
    "../../outside",
    "/etc/passwd",
    "C:\\con",
    "trials",
    "report",
    "a\x00b",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egnp.exe",
    "\u200b",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)",
    "<script>alert(1)</script>",
    "\\input{/etc/passwd}",
    "| a | b |\n|---|",
    "$(touch outside)",
    "%s%n{0}{x}",
    "é",
    "Ünïcödé 日本語 🙂",
    "x" * 300,
    "y" * 20_000,
    "strategy.factor.until",
    "a.b.c",
    "kind",
)
NUMBERS = (
    0,
    -1,
    1,
    2,
    7,
    255,
    -0.0,
    0.5,
    1e-320,
    1e308,
    2**31,
    2**32,
    2**63,
    2**64,
    -(2**63),
    10**30,
    10**400,
    math.nan,
    math.inf,
    -math.inf,
)
TREES: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    [1, "a"],
    {"": {}},
    {"kind": "x"},
    {"kind": {}},
    [{}],
)
RAW_TOML = (
    *("1979-05-27T07:32:00Z", "1979-05-27", "07:32:00", "0xffff", "0b1", "1_000", "1e999", "-1e999", "+inf"),
    *(
        "9" * 5000,
        "[" * 1000,
        "[" * 300 + "]" * 300,
        "{a={a={a={a={}}}}}",
        '"""a\nb"""',
        "'''x'''",
        "''",
        "nope",
        "1.",
    ),
    *(
        '"\\ud800"',
        '"\\U0010ffff"',
        '"\\q"',
        "[1, [2, {x = 3}]]",
        "0x_",
        "--1",
        "{",
        "]",
        "# nothing",
        "{a = 1, a = 2}",
    ),
)
RAW_JSON = (
    *(
        "9" * 5000,
        "1e999",
        "-1e999",
        "-0",
        "NaN",
        "Infinity",
        "1E400",
        "[" * 100_000,
        "[" * 900 + "]" * 900,
        "{",
    ),
    *(
        '{"a": 1, "a": 2}',
        '"\\ud800"',
        '"\\u0000"',
        "0x1",
        "'a'",
        "tru",
        "",
        "1 2",
        '"x',
        '{"kind": 1}',
        "123" * 30,
    ),
)


def deep(depth: int) -> Any:
    """Return lists or tables nested ``depth`` times."""
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 3 else {"a": value}
    return value


def values(words: Sequence[str], raw: Sequence[str]) -> st.SearchStrategy[Any]:
    """Return a strategy of values of any type that do not belong, often one of the real ``words``."""
    return st.one_of(
        st.sampled_from(TEXTS),
        st.sampled_from(NUMBERS),
        st.sampled_from(TREES).map(copy.deepcopy),
        st.sampled_from(words),
        st.sampled_from(raw).map(Raw),
        st.integers(-3, 70),
        st.floats(),
        st.text(max_size=12),
        st.integers(2, 60).map(deep),
        st.lists(st.sampled_from((*NUMBERS, *TEXTS)), max_size=4),
    )


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value in nested dicts and lists."""
    found: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            found.append((node, key))
            if isinstance(value, dict | list):
                pending.append(value)
    return found


OPERATIONS = (
    *("value", "value", "value", "value", "delete", "misspell", "rename", "twice", "wrap", "nest", "move"),
    *("add", "add", "cast", "repeat", "empty", "long_key"),
)


def mutate_tree(draw: Draw, tree: Any, words: Sequence[str], raw: Sequence[str], most: int = 3) -> Any:
    """Return a copy of ``tree`` changed in one to ``most`` places."""
    root = {"": copy.deepcopy(tree)}
    novel = values(words, raw)
    for _ in range(draw(st.integers(1, most))):
        # not the whole document, unless there is nothing else: that is what text mutations are for
        every = places(root)
        node, key = every[draw(st.integers(min(1, len(every) - 1), len(every) - 1))]
        operation = draw(st.sampled_from(OPERATIONS))
        value = node[key]
        named = isinstance(node, dict) and isinstance(key, str) and node is not root
        if operation == "delete" and node is not root:
            del node[key]
        elif operation in ("misspell", "rename", "long_key") and named:
            if operation == "misspell":
                at = draw(st.integers(0, max(len(key) - 1, 0)))
                new = key[:at] + key[at + 1 :] if draw(st.booleans()) else key[:at] + "e" + key[at:]
            else:
                new = draw(st.sampled_from(words if operation == "rename" else TEXTS))
            node[new] = node.pop(key)
        elif operation == "twice":
            if named:
                node[key + TWICE] = draw(novel) if draw(st.booleans()) else copy.deepcopy(value)
            elif isinstance(node, list):
                node.append(copy.deepcopy(value))
        elif operation == "wrap":
            node[key] = [value]
        elif operation == "nest":
            node[key] = {draw(st.sampled_from(words)): value}
        elif operation == "move":
            other, place = every[draw(st.integers(0, len(every) - 1))]
            node[key] = copy.deepcopy(other[place])
        elif operation == "add" and isinstance(value, dict):
            value[draw(st.sampled_from(words))] = draw(novel)
        elif operation == "cast":
            node[key] = _cast(value)
        elif operation == "repeat" and isinstance(value, list):
            node[key] = (value * 50)[: draw(st.sampled_from((2, 13, 200)))]
        elif operation == "empty":
            node[key] = type(value)() if isinstance(value, dict | list | str) else None
        else:
            node[key] = draw(novel)
        if not isinstance(root[""], dict | list):
            break
    return root[""]


def _cast(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return float(value) if abs(value) < 2**53 else str(value)
    return float("0" + value[:3]) if isinstance(value, str) and value[:3].isdigit() else str(value)


# --- writers ---


def to_toml(document: Any) -> str:
    """Return a document as TOML, a line a key; what TOML cannot say becomes text that is wrong TOML."""
    if not isinstance(document, dict):
        return _toml(document)
    return "\n".join(f"{_key(key)} = {_toml(value)}" for key, value in document.items()) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text.replace(TWICE, ""), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    plain = key.replace(TWICE, "")
    bare = plain.replace("_", "").replace("-", "")
    return plain if bare.isalnum() and bare.isascii() else _quoted(plain)


def _toml(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return "null" if value is None else f'"{value}"'


def to_json(value: Any) -> str:
    """Return a document as JSON, with NaN, raw fragments and repeated keys."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(to_json, value)) + "]"
    if isinstance(value, dict):
        items = (f"{json.dumps(key.replace(TWICE, ''))}: {to_json(item)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    return json.dumps(value)


# --- text and bytes ---

_INSERTED = (
    *(
        "\x00",
        "\x1b[31m",
        "\ufeff",
        "\u202e",
        "\r",
        "\n\n",
        '"',
        "'",
        "=",
        "[",
        "]",
        "{",
        "}",
        "[[x]]\n",
        "[x]\n",
    ),
    *(
        ",",
        "#",
        "\\",
        "🙂",
        "\t",
        "=" * 5000,
        "[" * 5000,
        "x" * 40_000,
        "a.b = 1\n",
        '"a" = {}\n',
        "\x0c",
        "\x85",
    ),
)


def mutate_text(draw: Draw, text: str) -> bytes:
    """Return ``text`` with a line, some characters or its encoding changed."""
    for _ in range(draw(st.integers(1, 3))):
        operation = draw(
            st.sampled_from(("cut", "insert", "insert", "drop_line", "twice_line", "swap_lines", "encode"))
        )
        lines = text.split("\n")
        at = draw(st.integers(0, len(lines) - 1))
        place = draw(st.integers(0, len(text)))
        if operation == "cut":
            text = text[:place]
        elif operation == "insert":
            text = text[:place] + draw(st.sampled_from(_INSERTED)) + text[place:]
        elif operation == "drop_line":
            text = "\n".join(lines[:at] + lines[at + 1 :])
        elif operation == "twice_line":
            text = "\n".join([*lines[: at + 1], *lines[at:]])
        elif operation == "swap_lines":
            other = draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
            text = "\n".join(lines)
        else:
            encoding = draw(st.sampled_from(("utf-16", "utf-8-sig", "utf-32", "latin-1", "cp037")))
            return text.encode(encoding, errors="replace")
    return text.encode("utf-8", errors="surrogatepass")


def mutate_bytes(draw: Draw, data: bytes) -> bytes:
    """Return ``data`` cut, flipped, overwritten, moved or lengthened in one to three places."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        operation = draw(
            st.sampled_from(("cut", "flip", "flip", "flip", "zero", "ones", "remove", "repeat", "append"))
        )
        size = len(changed)
        at = draw(st.integers(0, max(size - 1, 0)))
        if draw(st.booleans()):
            at = size - 1 - at % 2000 if size > 2000 else at  # the directory of an archive is at its end
        length = draw(st.sampled_from((1, 2, 4, 8, 64, 1024)))
        if operation == "cut":
            del changed[at:]
        elif operation == "flip" and size:
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif operation in ("zero", "ones"):
            changed[at : at + length] = bytes([255 * (operation == "ones")]) * len(changed[at : at + length])
        elif operation == "remove":
            del changed[at : at + length]
        elif operation == "repeat":
            changed[at:at] = changed[at : at + length]
        else:
            changed += draw(st.binary(max_size=32))
    return bytes(changed)
