"""The JSON Schema of experiment files, for editors, from the models and the registry.

The schema allows what single keys allow. What keys must be together (a baseline that exists, a factor that
ends) is checked by ``load_experiment`` alone. No torch.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from bench import registry
from bench.experiments.arms import ArmTable
from bench.experiments.claims import Claim
from bench.experiments.config import TrialConfig
from bench.experiments.file import FileTable, ProfileTable
from bench.experiments.options import CHOICES, takes_null
from bench.experiments.tuning_table import TuningTable

Schema = dict[str, Any]
_SCALARS = {"float": "number", "int": "integer", "bool": "boolean", "str": "string"}
_BOUNDS = {"min": "minimum", "max": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}
# Names that a choice can have beside those of the registry.
_OPEN_NAMES = {"datasets": r"^(npz|imagefolder):.+$", "networks": r"^python:.+\..+$"}


def json_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of an experiment file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An experiment of progressive-bench",
        "type": "object",
        "required": ["arms"],
        "additionalProperties": False,
        "properties": _properties(
            FileTable,
            defaults=_ref("fields"),
            grid=_ref("grid"),
            arms={"type": "array", "minItems": 1, "items": _ref("arm")},
            tuning=_ref("tuning"),
            claims={"type": "array", "items": _ref("claim")},
            profiles={"type": "object", "additionalProperties": _ref("profile")},
        ),
        "$defs": _definitions(),
    }


def _definitions() -> dict[str, Schema]:
    fields = field_schemas()
    bits = {"anyOf": [fields["bits"], {"type": "array", "minItems": 1, "items": fields["bits"]}]}
    own = {"published": {"type": "object"}, "grid": _ref("grid")}
    arm = {name: schema | own.get(name, {}) for name, schema in _properties(ArmTable).items()}
    profile = _properties(
        ProfileTable,
        grid=_ref("grid"),
        defaults=_ref("fields"),
        arms={"type": "object", "additionalProperties": _ref("fields")},
    )
    not_in_profiles = ("bits", "seed", "quantizer")
    return {
        "fields": _table(fields),
        "arm": _table(arm | fields | {"bits": bits}, required=["name"]),
        "profile": _table(profile | {k: v for k, v in fields.items() if k not in not_in_profiles}),
        "grid": {
            "type": "object",
            "propertyNames": {"pattern": rf"^({'|'.join(fields)})(\..+)?$"},
            "additionalProperties": {"type": ["array", "object"]},
        },
        "claim": _table(_properties(Claim), required=["arm", "over", "at"]),
        "tuning": _table(_properties(TuningTable) | {"space": {"type": "object"}}),
        **{group: _choice(group) for group in registry.GROUPS},
    }


def field_schemas() -> dict[str, Schema]:
    """Return the schema of each field of a trial, and of ``recipe``, by name."""
    fields = _properties(TrialConfig, **{name: _ref(group) for name, group in CHOICES.items()})
    fields["bits"]["pattern"] = r"^\d{1,2}/\d{1,2}(/\d{1,2})?$"
    return fields | {
        "recipe": {"type": "string", "description": "a shipped recipe, or one in recipes/ beside the file"}
    }


def _choice(group: str) -> Schema:
    """Return the schema of a choice: a name, a table of one kind, or a table of options without a kind."""
    known = registry.entries(group)
    names: list[Schema] = [{"enum": [name for name in known if name != "python"]}]
    if group in _OPEN_NAMES:
        names.append({"type": "string", "pattern": _OPEN_NAMES[group]})
    if group == "learning_rates":
        names.append({"type": "number", "exclusiveMinimum": 0})
    return {"anyOf": [*names, *(_kind(entry) for entry in known.values()), _partial(group)]}


def _kind(entry: registry.Entry) -> Schema:
    """Return the schema of a table of one kind. No option is required: an axis may still give it."""
    kind: Schema = {"const": entry.name}
    if entry.group in _OPEN_NAMES and (
        entry.name == "python" or f"{entry.name}|" in _OPEN_NAMES[entry.group]
    ):
        kind = {"anyOf": [kind, {"type": "string", "pattern": _OPEN_NAMES[entry.group]}]}
    options = {name: _option(spec) for name, spec in entry.options.items()}
    schema = _table({"kind": kind} | options, required=["kind"])
    return schema | {"description": entry.help, "additionalProperties": bool(entry.facts.get("open"))}


def _partial(group: str) -> Schema:
    """Return the schema of a table without ``kind``, with any option that the group knows."""
    options: dict[str, list[Schema]] = {}
    for entry in registry.entries(group).values():
        for name, spec in entry.options.items():
            options.setdefault(name, [])
            if (schema := _option(spec)) not in options[name]:
                options[name].append(schema)
    open_ended = any(entry.facts.get("open") for entry in registry.entries(group).values())
    merged = {name: found[0] if len(found) == 1 else {"anyOf": found} for name, found in options.items()}
    return _table({"kind": False} | merged) | {"additionalProperties": open_ended}


def _option(spec: Any) -> Schema:
    """Return the schema of one option from its declaration."""
    kind = spec["type"]
    if kind == "factor":
        schema = _ref("factors")
    elif kind == "factors":
        schema = {"type": "object", "additionalProperties": _ref("factors")}
    elif kind == "teacher":
        schema = _ref("fields")
    elif "choices" in spec:
        schema = {"enum": list(spec["choices"])}
    else:
        item = {"names": "str", "floats": "float"}.get(kind)
        schema = {"type": _SCALARS[item or kind]}
        schema |= {word: spec[bound] for bound, word in _BOUNDS.items() if bound in spec}
        if item:
            schema = {"type": "array", "minItems": 1, "items": schema}
    if takes_null(spec):
        schema = {"anyOf": [schema, {"type": "null"}]}
    described = {"description": spec["help"]} if "help" in spec else {}
    return schema | described | ({"default": spec["default"]} if "default" in spec else {})


def _properties(model: type[BaseModel], **replaced: Schema) -> dict[str, Schema]:
    """Return the schemas of a model's fields; of those ``replaced`` the model's description stays."""
    fields = model.model_fields
    described = {
        name: {"description": fields[name].description} | schema for name, schema in replaced.items()
    }
    return model.model_json_schema()["properties"] | described


def _table(properties: dict[str, Any], required: list[str] | None = None) -> Schema:
    table: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return table | ({"required": required} if required else {})


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}
