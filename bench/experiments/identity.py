"""A trial's identity: a hash of its configuration without defaults, and of its data's checksum. No torch."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

from bench import registry
from bench.experiments.config import READ_BY, TrialConfig
from bench.experiments.options import CHOICES
from bench.experiments.start import identity_of


def _without_defaults(group: str, choice: dict[str, Any]) -> dict[str, Any]:
    """Return a choice with the options at their default left out.

    Added are its entry's revision where that is above 1, and the package that the entry comes from, if any.
    """
    entry = registry.get(group, choice["kind"])
    undeclared: dict[str, Any] | None = {} if entry.facts.get("open") else None
    kept: dict[str, Any] = {"kind": choice["kind"]}
    for option, value in choice.items():
        spec = None if option in ("kind", "package") else entry.options.get(option, undeclared)
        if spec is None or spec.get("hashed") is False or ("default" in spec and spec["default"] == value):
            continue
        if spec.get("type") == "factor" and value is not None:
            kept[option] = _without_defaults("factors", value)
        elif spec.get("type") == "factors":
            kept[option] = {layer: _without_defaults("factors", factor) for layer, factor in value.items()}
        elif spec.get("type") == "teacher" and value is not None:
            kept[option] = identity_document(TrialConfig.model_validate(value))
        else:
            kept[option] = value
    if entry.revision > 1:
        kept["revision"] = entry.revision
    if entry.package:
        kept["package"] = entry.package
    return kept


def identity_document(config: TrialConfig) -> dict[str, Any]:
    """Return what is hashed: no defaults, revisions above 1, a teacher by its own document.

    Fields that the optimizer does not read are left out.
    """
    document: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if READ_BY.get(name, config.optimizer) != config.optimizer:
            continue
        if name in CHOICES:
            value = _without_defaults(CHOICES[name], value)
        elif name == "start" and value is not None:
            value = identity_of(value)
        if not info.is_required() and value == info.default:
            continue
        document[name] = value
    return document


def identity(config: TrialConfig, data_checksum: str | None) -> str | None:
    """Return the trial's id, 16 hexadecimal digits; None where the data, and so its checksum, is absent."""
    if data_checksum is None:
        return None
    return digest(identity_document(config), data_checksum)


def digest(document: dict[str, Any], data_checksum: str) -> str:
    """Return the id of what ``identity_document`` returned, on data of this checksum."""
    whole = {"config": document, "data": data_checksum}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def raised_revisions(config: TrialConfig, id: str, data_checksum: str) -> str | None:
    """Return which revisions were raised since ``id`` was the configuration's trial; None where none was."""
    document = identity_document(config)
    revised = list(_revised(document))
    for numbers in itertools.islice(
        itertools.product(*(range(1, entry["revision"] + 1) for _, entry in revised)), 4096
    ):
        earlier = copy.deepcopy(document)
        for (_, entry), number in zip(_revised(earlier), numbers, strict=True):
            entry["revision"] = number
            if number == 1:
                del entry["revision"]
        if earlier != document and digest(earlier, data_checksum) == id:
            then_and_now = [(name, n, e["revision"]) for (name, e), n in zip(revised, numbers, strict=True)]
            raised = ", ".join(f"{name} from {n} to {now}" for name, n, now in then_and_now if n != now)
            return f"the revision was raised since: {raised}; its numbers have changed"
    return None


def _revised(document: dict[str, Any], where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (description, table) of every choice with a revision in the document of an identity."""
    for key, value in document.items():
        if isinstance(value, dict):
            if isinstance(value.get("revision"), int):
                yield f"{where}{key} '{value.get('kind', '?')}'", value
            yield from _revised(value, f"{where}{key}.")
