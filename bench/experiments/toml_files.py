"""Reading experiment and recipe files: text, TOML, recipes, and one list of everything that is wrong."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.errors import InputError, nearest, shown
from bench.experiments.config import FIELDS, RECIPE_FIELDS, check_field, field_error
from bench.experiments.options import CHOICES, as_table
from bench.experiments.overrides import AxisPath
from bench.text import clean

MAX_BYTES = 1_000_000  # of an experiment or recipe file
MAX_PROBLEMS = 40  # shown at once
RECIPES = Path(__file__).parents[1] / "recipes"
SETTABLE = (*FIELDS, "recipe")  # what an arm, [defaults] and --set can give
# The names of experiments, recipes and tables of published numbers; some mean devices on other systems.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
_RESERVED = {
    *"trials report con prn aux nul".split(),
    *(f"{p}{n}" for p in ("com", "lpt") for n in range(10)),
}


class Problems:
    """What is wrong with a file: collected, without repetition, and raised together."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[str, None] = {}  # an ordered set

    def line(self, text: str) -> None:
        """Add a whole line, which names the file itself."""
        self.lines[clean(text, 600)] = None

    def add(self, key: str, message: str, file: str | None = None) -> None:
        """Add ``file: key: message``; ``key`` may be empty."""
        self.line(f"{file or self.file}: {key}: {message}" if key else f"{file or self.file}: {message}")

    def report(self, error: InputError) -> None:
        """Add each line of ``error``, which names the file itself."""
        for line in str(error).splitlines():
            self.line(line)

    def extend(self, prefix: str, error: InputError | str) -> None:
        """Add each line of ``error``, which begins with its key, beneath ``prefix``."""
        for line in str(error).splitlines():
            self.line(f"{self.file}: {prefix}{line}")

    def stop(self) -> None:
        """Raise what was collected, if anything was."""
        if not self.lines:
            return
        lines = list(self.lines)
        if len(lines) > MAX_PROBLEMS:
            lines = [*lines[:MAX_PROBLEMS], f"{self.file}: and {len(lines) - MAX_PROBLEMS} more problems"]
        raise InputError("\n".join(lines))


def read_table(model: type[BaseModel], table: Mapping[str, Any], prefix: str, problems: Problems) -> Any:
    """Return ``table`` as ``model``; None after reporting what is wrong, its keys beneath ``prefix``."""
    try:
        return model.model_validate(dict(table))
    except ValidationError as error:
        problems.extend(prefix, field_error(error, model.model_fields))
        return None


def read_text(path: Path) -> str:
    """Return the text of an experiment or recipe file; raises ``InputError`` where there is none to read."""
    name = clean(path)
    try:
        if path.is_dir():
            raise InputError(f"{name}: is a directory, not a file")
        if not path.exists():
            raise InputError(f"{name}: there is no such file.{nearest(path.name, _siblings(path))}")
        if not path.is_file():
            raise InputError(f"{name}: is not a regular file")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{name}: larger than {MAX_BYTES:,} bytes, which no experiment file is")
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{name}: cannot be read ({clean(reason)})") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not text (byte {error.start} is not UTF-8)") from None
    text = text.removeprefix("\ufeff")  # the byte-order mark that some editors write
    if not text.strip():
        raise InputError(f"{name}: is empty")
    return text


def _siblings(path: Path) -> list[str]:
    try:
        return [found.name for found in path.parent.glob("*.toml")]
    except (OSError, ValueError):
        return []


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """Return the document; raises ``InputError`` with the place of the first mistake."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{clean(path)}: is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise InputError(f"{clean(path)}: is not TOML: {clean(error, 200)}") from None


def experiment_name(path: Path) -> str:
    """Return the file's stem, the experiment's name in folders and tables, where it is fit to be one."""
    name = path.stem
    if len(name) > 100:
        reason = f"is {len(name)} characters long; 100 at most"
    elif name.split(".")[0].lower() in _RESERVED:
        reason = "is reserved"
    elif not NAME.fullmatch(name) or name.endswith("."):
        reason = "can hold letters, digits and _ . + - only, and begins with a letter or digit"
    else:
        return name
    raise InputError(f"{clean(path, 300)}: the file's name names the experiment, and {shown(name)} {reason}")


def parse_override(text: str) -> tuple[AxisPath, Any]:
    """Return (path, value) of a ``--set`` text ``dotted.key=value``: the value is TOML, a bare word is text.

    A number may be written without the digit before or after its point, as TOML does not allow: ``.001``,
    ``1.``.
    """
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise InputError(f"--set {shown(text)}: expected dotted.key=value")
    value = value.strip()
    if "\n" in value:
        return path, value
    try:
        return path, _toml_value(value)
    except (ValueError, RecursionError) as error:
        if value[:1] in ("[", "{", '"', "'"):
            raise InputError(
                f"--set {shown(text)}: the value is not TOML: {clean(error, 200)}; write lists as [1, 2] "
                "and names in them in quotes"
            ) from None
        return path, value


def _toml_value(value: str) -> Any:
    """Return what a TOML value stands for; raises ``ValueError`` for what is none."""
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        if '"' in value or "'" in value:
            raise
        whole = re.sub(r"(?<![\w.])\.(?=\d)", "0.", value)
        whole = re.sub(r"(?<![\w.])(\d+)\.(?![\d.])", r"\1.0", whole)
        return tomllib.loads(f"value = {whole}")["value"]


def recipe_names(folder: Path | None = None) -> dict[str, Path]:
    """Return the recipes by name: those shipped, and those of ``recipes`` beside an experiment file."""
    found = {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}
    if folder is not None and (folder / "recipes").resolve() != RECIPES.resolve():
        for path in sorted((folder / "recipes").glob("*.toml")):
            if path.stem in found:
                raise InputError(
                    f"{clean(path)}: a recipe '{path.stem}' is shipped with the suite; name it otherwise"
                )
            found[path.stem] = path
    return found


def load_recipe(name: str, folder: Path | None = None, where: str = "recipe") -> dict[str, Any]:
    """Return the fields of a recipe. Raises ``InputError`` for an unknown name or a wrong recipe."""
    known = recipe_names(folder)
    if name not in known:
        raise InputError(
            f"{where}: no recipe is called {shown(name)}.{nearest(name, known)} Known: {', '.join(known)}."
        )
    path = known[name]
    problems = Problems(clean(path))
    fields = parse_toml(read_text(path), path)
    for text in ("title", "source"):
        if not isinstance(fields.pop(text, ""), str):
            problems.add(text, "expected text")
    check_fields(fields, RECIPE_FIELDS, "", problems)
    problems.stop()
    return fields


def check_fields(
    fields: dict[str, Any], known: Iterable[str], prefix: str, problems: Problems, lists: bool = False
) -> None:
    """Report unknown keys and impossible values of a table of fields, and remove them from it.

    Choices are looked at when the arm is resolved, since an axis may still give the option that is missing
    here.

    Args:
        fields: The table; bad keys are removed in place.
        known: The keys that there are.
        prefix: Put before a key in a message.
        problems: Where bad keys are added.
        lists: Whether ``bits`` may be a list of values.
    """
    for key, value in list(fields.items()):
        if key not in known:
            problems.add(f"{prefix}{key}", f"there is no such key.{nearest(key, known)}")
        elif key == "recipe":
            if isinstance(value, str):
                continue
            problems.add(f"{prefix}recipe", f"expected the name of a recipe, not {shown(value)}")
        elif key in CHOICES and known is not RECIPE_FIELDS:
            table = as_table(CHOICES[key], value)
            if isinstance(table, dict):
                continue
            problems.add(f"{prefix}{key}", f"expected a name or a table, not {shown(value)}")
        else:
            values = value if lists and key == "bits" and isinstance(value, list) and value else [value]
            try:
                for one in values:
                    check_field(key, one)
                continue
            except InputError as error:
                problems.extend(prefix, error)
        del fields[key]
