"""The complete configuration of one trial, and its identity.

``TrialConfig`` is what an experiment file expands to and what a trial's record keeps. Everything that can change a
number is a field here; names, titles and hardware are not. No torch is imported.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from bench import registry, schedules
from bench.errors import InputError, nearest
from bench.experiments import permission

SCHEMA = 1
NAMED = ("npz:", "imagefolder:")  # data sets of the user's own, KIND:NAME
# the fields that are a choice from the registry -> its group
CHOICES = {
    "dataset": "datasets",
    "network": "networks",
    "quantizer": "quantizers",
    "strategy": "strategies",
    "learning_rate": "learning_rates",
}


def shown(value: Any, length: int = 80) -> str:
    """Return ``repr(value)``, cut to ``length``: fit for a message whatever the value is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a table nested too deeply
        return "that value"
    return text if len(text) <= length else text[: length - 3] + "..."


def as_table(group: str, value: Any) -> Any:
    """Return a choice written in a short form as the table it stands for; anything else unchanged.

    A name is ``{kind = name}``, ``"npz:NAME"`` the kind ``npz`` with that name and so ``imagefolder:NAME``, a number a
    constant learning rate.
    """
    if group == "learning_rates" and isinstance(value, int | float) and not isinstance(value, bool):
        return {"kind": "constant", "initial": value}
    if isinstance(value, str):
        value = {"kind": value}
    if group == "datasets" and isinstance(value, dict) and str(value.get("kind")).startswith(NAMED):
        kind, _, name = value["kind"].partition(":")
        return {**value, "kind": kind, "name": name}
    return value


def complete(group: str, value: Any, where: str = "") -> dict[str, Any]:
    """Return ``{"kind": name, **every option}`` from a name or a table ``{kind = ..., options}``.

    Unknown options, wrong types, values out of range and options that do not go together raise ``InputError``, a line
    each; ``where`` is the key in the file.
    """
    where = where or registry.GROUPS[group][0].replace(" ", "_")
    value = as_table(group, value)
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise InputError(f'{where}: expected a name or a table {{ kind = "..." }}, not {shown(value)}')
    kind = value["kind"]
    if group == "networks" and (permission.is_own(kind) or kind == "python"):
        permission.split(kind, where)
    entry = registry.get(group, kind, where)
    problems, further = [], {}
    for option in value:
        if option == "kind" or option in entry.options:
            continue
        if entry.facts.get("open"):
            problems += _further(value[option], f"{where}.{option}", option)
            further[option] = value[option]
        else:
            known = f" Options: {', '.join(entry.options)}." if entry.options else " It has no options."
            hint = nearest(option, entry.options)
            problems.append(f"{where}.{option}: '{kind}' has no such option.{hint}{known}")
    result: dict[str, Any] = {"kind": kind}
    for option, spec in entry.options.items():
        if option in value:
            try:
                result[option] = _checked(value[option], spec, f"{where}.{option}")
            except InputError as error:
                problems.append(str(error))
        elif "default" in spec:
            result[option] = copy.deepcopy(spec["default"])
        else:
            problems.append(
                f"{where}.{option}: missing; '{kind}' needs it ({spec.get('help', spec['type'])})"
            )
    result |= further
    if not problems:
        problems += _combined(group, entry, result, where)
    if problems:
        raise InputError("\n".join(problems))
    return result


def _further(value: Any, where: str, option: str) -> list[str]:
    """Return what is wrong with an option that is handed on to code of the user's: a name, and a plain value."""
    if not permission.is_module(option) or "." in option or option == "num_classes":
        return [f"{where}: no function can be given an option of this name"]
    values = value if isinstance(value, list | tuple) else [value]
    for one in values:
        if not isinstance(one, str | int | float | bool) or (
            isinstance(one, float) and not math.isfinite(one)
        ):
            return [f"{where}: expected text, a number, true or false, or a list of them, not {shown(value)}"]
    return []


def _combined(group: str, entry: registry.Entry, choice: Mapping[str, Any], where: str) -> list[str]:
    """Return what is wrong with a choice's options taken together."""
    problems = []
    for option, spec in entry.options.items():
        if not applies(spec, choice) and choice[option] != spec.get("default"):
            needed = " and ".join(f"{name} = {_one_of(values)}" for name, values in spec["only_with"].items())
            problems.append(f"{where}.{option}: {shown(choice[option])} has a meaning only with {needed}")
    if group in ("factors", "learning_rates"):
        problems += [f"{where}.{option}: {text}" for option, text in schedules.problems(group, choice)]
    return problems


def applies(spec: Mapping[str, Any], choice: Mapping[str, Any]) -> bool:
    """Return whether an option has a meaning beside the others: its declaration's ``only_with`` holds."""
    return all(choice.get(name) in values for name, values in spec.get("only_with", {}).items())


def _one_of(values: Iterable[Any]) -> str:
    return " or ".join(repr(value) for value in values)


_TYPES: dict[str, tuple[Any, str]] = {
    "float": ((int, float), "a number"),
    "int": (int, "a whole number"),
    "bool": (bool, "true or false"),
    "str": (str, "text"),
}


def _checked(value: Any, spec: Mapping[str, Any], where: str) -> Any:
    """Check one option against its declaration and return it in its canonical type."""
    if value is None and spec.get("nullable"):
        return None
    if "choices" in spec:
        for choice in spec["choices"]:
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
        hint = nearest(str(value), map(str, spec["choices"])) if isinstance(value, str) else ""
        raise InputError(
            f"{where}: {shown(value)} is not one of {', '.join(map(repr, spec['choices']))}.{hint}"
        )
    kind = spec["type"]
    if kind == "factor":
        return complete("factors", value, where)
    if kind == "teacher":
        if not isinstance(value, dict):
            raise InputError(
                f"{where}: expected a table of the fields in which it differs, not {shown(value)}"
            )
        return value  # completed to a whole configuration when the experiment is expanded
    if kind in ("names", "floats"):
        item, words = ("str", "names") if kind == "names" else ("float", "numbers")
        if not isinstance(value, list | tuple) or not value:
            raise InputError(f"{where}: expected a list of {words}, not {shown(value)}")
        return [_scalar(v, item, spec, f"{where}[{i}]") for i, v in enumerate(value)]
    return _scalar(value, kind, spec, where)


def _scalar(value: Any, kind: str, spec: Mapping[str, Any], where: str) -> Any:
    types, words = _TYPES[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
        raise InputError(f"{where}: expected {words}, not {shown(value)}")
    if kind == "float":
        try:
            value = float(value) + 0.0  # -0.0 becomes 0.0
        except OverflowError:
            raise InputError(f"{where}: {shown(value)} is too large") from None
    return _in_range(value, spec, where) if kind in ("float", "int") else value


def _in_range(value: Any, spec: Mapping[str, Any], where: str) -> Any:
    bounds = {
        "min": (lambda b: value >= b, "at least"),
        "max": (lambda b: value <= b, "at most"),
        "above": (lambda b: value > b, "above"),
        "below": (lambda b: value < b, "below"),
    }
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}: {value!r} is not a finite number")
    for key, (holds, words) in bounds.items():
        if key in spec and not holds(spec[key]):
            raise InputError(f"{where}: {shown(value)} must be {words} {spec[key]}")
    return value


def parse_bits(value: Any, where: str = "bits") -> tuple[int, int, int]:
    """Return (weight, activation, gradient) bits from ``"W/A"`` or ``"W/A/G"``; raises ``InputError``."""
    parts = str(value).split("/") if isinstance(value, str) else []
    if len(parts) not in (2, 3) or not all(p.isascii() and p.isdigit() and len(p) <= 2 for p in parts):
        raise InputError(f'{where}: expected "W/A" or "W/A/G", for instance "1/2", not {shown(value)}')
    w, a, g = (*(int(p) for p in parts), 32)[:3]
    for name, bits in (("weight", w), ("activation", a), ("gradient", g)):
        if not (1 <= bits <= 8 or bits == 32):
            raise InputError(f"{where}: {bits} {name} bits in {value!r}; 1 to 8, or 32 for full precision")
    return w, a, g


def short_bits(bits: str) -> str:
    """Return canonical bits ``"W/A/G"`` as tables show them: without G where that is 32."""
    return bits.removesuffix("/32") if bits.count("/") == 2 else bits


def _choice(group: str) -> BeforeValidator:
    def validate(value: Any) -> dict[str, Any]:
        try:
            return complete(group, value)
        except InputError as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(validate)


def _canonical_bits(value: Any) -> str:
    try:
        return "/".join(map(str, parse_bits(value)))
    except InputError as error:
        raise ValueError(str(error)) from None


class Recipe(BaseModel):
    """How a network is trained: the flat fields that recipes and experiment files set."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )

    epochs: Annotated[int, Field(ge=1, le=1_000_000, description="passes over the training images")]
    batch_size: Annotated[
        int, Field(ge=1, le=1_000_000, description="images in a step, over all workers")
    ] = 128
    optimizer: Annotated[
        Literal["adam", "sgd"], Field(description="Adam (1412.6980) or SGD with momentum")
    ] = "adam"
    learning_rate: Annotated[
        dict[str, Any],
        _choice("learning_rates"),
        Field(description="a number or a schedule of the global step"),
    ] = {"kind": "constant", "initial": 1e-3}
    momentum: Annotated[float, Field(ge=0, lt=1, description="of SGD")] = 0.9
    nesterov: Annotated[bool, Field(description="of SGD")] = False
    beta1: Annotated[float, Field(ge=0, lt=1, description="of Adam")] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="of Adam")] = 0.999
    epsilon: Annotated[float, Field(gt=0, description="of Adam")] = 1e-8
    epsilon_mode: Annotated[
        Literal["pytorch", "tensorflow"],
        Field(description="Adam's epsilon after bias correction, or before it as TensorFlow adds it"),
    ] = "pytorch"
    weight_decay: Annotated[
        float, Field(ge=0, description="coupled: adds weight_decay * w to the gradient")
    ] = 0.0
    weight_decay_on: Annotated[
        Literal["all", "kernels", "linear", "classifier"],
        Field(
            description="every parameter; conv and linear kernels; linear kernels; the last linear's kernel"
        ),
    ] = "all"
    loss: Annotated[Literal["cross_entropy", "squared_hinge"], Field(description="of the logits")] = (
        "cross_entropy"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="of the cross entropy")] = 0.0
    initialization: Annotated[
        Literal["he_truncated_exact", "he_truncated_normal", "he_normal", "glorot_uniform"],
        Field(
            description="of kernels, by fan-in (He, gain 2) or fan-in and fan-out (Glorot); exact: after the truncation"
        ),
    ] = "he_truncated_normal"
    augmentation: Annotated[
        Literal["none", "svhn", "crop_flip", "random_resized_crop", "scale_jitter"],
        Field(description="of training images; see bench/datasets/augmentation.py, of photographs crops.py"),
    ] = "none"
    normalization: Annotated[
        Literal["divide_256", "divide_255", "standardize", "pixel_mean"],
        Field(
            description="of pixels; standardize: by the channels' mean and deviation; pixel_mean: less the mean image"
        ),
    ] = "divide_256"
    train_size: Annotated[
        int | None, Field(ge=1, description="train on this many images, chosen by the seed 0")
    ] = None
    holdout: Annotated[int, Field(ge=0, description="training images set aside to choose the epoch on")] = 0
    evaluate_every: Annotated[
        int,
        Field(
            ge=1, le=1_000_000, description="epochs from one evaluation to the next; the last is evaluated"
        ),
    ] = 1
    evaluate_test: Annotated[
        bool,
        Field(
            description="evaluate the test images; false: only held-out ones, so that tuning sees no test image"
        ),
    ] = True
    precision: Annotated[
        Literal["fp32", "bf16"], Field(description="of the training step; evaluation is fp32")
    ] = "fp32"
    eval_bn: Annotated[
        int,
        Field(ge=0, description="re-estimate batch norm over N training batches on a copy before evaluating"),
    ] = 0
    batch_norm_group: Annotated[
        int | None,
        Field(ge=2, description="images that batch-norm statistics are taken over; null: the whole batch"),
    ] = None
    micro_batches: Annotated[
        int,
        Field(
            ge=1, le=1_000_000, description="parts of a batch trained one after the other, gradients summed"
        ),
    ] = 1
    activation_checkpointing: Annotated[
        bool,
        Field(description="compute activations again in the backward pass: less memory, the same numbers"),
    ] = False


class TrialConfig(Recipe):
    """Everything that determines the numbers of one trial. ``dump()`` is what records keep."""

    dataset: Annotated[dict[str, Any], _choice("datasets"), Field(description="a source of images")]
    network: Annotated[dict[str, Any], _choice("networks"), Field(description="an architecture")]
    width: Annotated[float, Field(gt=0, le=16, description="multiplier on every channel count")] = 1.0
    quantizer: Annotated[dict[str, Any], _choice("quantizers")] = {"kind": "full_precision"}
    bits: Annotated[str, BeforeValidator(_canonical_bits), Field(description='"W/A" or "W/A/G"')] = "32/32/32"
    strategy: Annotated[dict[str, Any], _choice("strategies")] = {"kind": "plain"}
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _fields_fit_together(self) -> TrialConfig:
        found = []
        entry = registry.get("quantizers", self.quantizer["kind"])
        for name, bits in zip(("w_bits", "a_bits", "g_bits"), self.bit_widths, strict=True):
            allowed = entry.facts.get(name, [32])
            if bits not in allowed:
                found.append(
                    f"bits: {name[0].upper()} = {bits} in '{short_bits(self.bits)}', but quantizer '{entry.name}' "
                    f"takes {', '.join(map(str, allowed))} there"
                )
        found += _photographs_fit(self)
        if not self.evaluate_test and not self.holdout:
            found.append("evaluate_test: false needs holdout above 0: no image would be left to evaluate")
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            found.append("nesterov: needs momentum above 0")
        part, odd = divmod(self.batch_size, self.micro_batches)
        if odd:
            found.append(
                f"micro_batches: {self.micro_batches} parts of a batch of {self.batch_size} are not equal"
            )
        elif self.batch_norm_group is not None and part % self.batch_norm_group:
            whole = "a batch" if self.micro_batches == 1 else "a micro-batch"
            found.append(
                f"batch_norm_group: {whole} of {part} images is not a multiple of {self.batch_norm_group}"
            )
        if self.label_smoothing and self.loss != "cross_entropy":
            found.append(
                f"label_smoothing: has a meaning only with loss = 'cross_entropy', not '{self.loss}'"
            )
        if found:
            raise ValueError("\n".join(found))
        return self

    @property
    def bit_widths(self) -> tuple[int, int, int]:
        """(weight, activation, gradient) bits."""
        return parse_bits(self.bits)

    @property
    def input_size(self) -> int | None:
        """Height and width of the images that the network reads, in pixels; None where its own code alone knows."""
        fact = registry.get("networks", self.network["kind"]).facts["input_size"]
        return self.network.get("input_size", fact)

    def dump(self) -> dict[str, Any]:
        """Return the complete configuration as plain JSON values."""
        return self.model_dump(mode="json")


def _photographs_fit(config: TrialConfig) -> list[str]:
    """Return what is wrong with augmentation and normalization for the kind of images: of one size, or of many."""
    kind = config.dataset["kind"]
    photographs = registry.get("datasets", kind).facts.get("augmentations")
    allowed = photographs or ["none", "svhn", "crop_flip"]
    found = []
    if config.augmentation not in allowed:
        what = "photographs" if photographs else "images of one size"
        found.append(
            f"augmentation: '{config.augmentation}' is not for {what}, which '{kind}' has; they take {', '.join(allowed)}"
        )
    if config.normalization == "pixel_mean" and not photographs:
        found.append(f"normalization: 'pixel_mean' is for photographs, which '{kind}' has not")
    return found


FIELDS = TrialConfig.model_fields
RECIPE_FIELDS = Recipe.model_fields


@cache
def _adapter(field: str) -> TypeAdapter[Any]:
    info = FIELDS[field]
    config = ConfigDict(strict=True, allow_inf_nan=False)
    annotation: Any = info.annotation
    if info.metadata:
        annotation = Annotated[(annotation, *info.metadata)]
    return TypeAdapter(annotation, config=config)


def check_field(field: str, value: Any) -> Any:
    """Return the canonical value of one field on its own; raises ``InputError`` with lines that begin with the key."""
    try:
        return _adapter(field).validate_python(value)
    except ValidationError as error:
        raise InputError("\n".join(field_problems(error, prefix=field))) from None


def make_config(fields: Mapping[str, Any]) -> TrialConfig:
    """Return the validated configuration; raises ``InputError`` with a line a problem, each beginning with its key."""
    try:
        return TrialConfig.model_validate(dict(fields))
    except ValidationError as error:
        raise InputError("\n".join(field_problems(error))) from None


def field_problems(error: ValidationError, known: Iterable[str] = FIELDS, prefix: str = "") -> list[str]:
    """Return pydantic's findings in the words of this suite, a line each; ``known`` are the keys to suggest."""
    bounds = {
        "greater_than_equal": ("ge", "at least"),
        "greater_than": ("gt", "above"),
        "less_than_equal": ("le", "at most"),
        "less_than": ("lt", "below"),
    }
    expected = {
        "int_type": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "text",
        "list_type": "a list",
        "dict_type": "a table",
    }
    lines = []
    for found in error.errors(include_url=False):
        place = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in found["loc"]]
        key = (prefix + "".join(place)).removeprefix(".")
        kind, value, context = found["type"], found["input"], found.get("ctx", {})
        if kind == "value_error":  # our own text, which names the key
            lines += str(context["error"]).splitlines()
        elif kind == "missing":
            described = FIELDS[key].description if key in FIELDS else None
            lines.append(f"{key}: missing ({described or 'it is needed'})")
        elif kind == "extra_forbidden":
            lines.append(f"{key}: there is no such key.{nearest(key, known)}")
        elif kind in bounds:
            name, words = bounds[kind]
            lines.append(f"{key}: {shown(value)} must be {words} {context[name]}")
        elif kind in expected:
            lines.append(f"{key}: expected {expected[kind]}, not {shown(value)}")
        elif kind == "literal_error":
            hint = (
                nearest(value, re.findall(r"'([^']*)'", context["expected"]))
                if isinstance(value, str)
                else ""
            )
            lines.append(f"{key}: {shown(value)} is not one of {context['expected']}.{hint}")
        elif kind in ("string_too_short", "too_short"):
            lines.append(f"{key}: is empty")
        elif kind in ("string_too_long", "too_long"):
            lines.append(f"{key}: is too long ({context['max_length']} at most)")
        else:
            lines.append(f"{key}: {found['msg'].replace('Input should be', 'expected')}, not {shown(value)}")
    return lines


def label(group: str, choice: Mapping[str, Any]) -> str:
    """Return a completed choice in one line: its name and the options that are not at their defaults."""
    entry = registry.find(group, choice["kind"])
    parts = []
    for option, value in choice.items():
        spec = entry.options.get(option, {}) if entry else {}
        if option == "kind" or ("default" in spec and spec["default"] == value) or spec.get("shown") is False:
            continue
        if spec.get("type") == "factor":
            text = label("factors", value)
        elif spec.get("type") == "teacher" and "network" in value:
            text = f"{value['network']['kind']} {value['width']:g}x"
        elif isinstance(value, float):
            text = f"{value:g}"
        else:
            text = value if isinstance(value, str) else json.dumps(value)
        parts.append(f"{option}={text}")
    return f"{choice['kind']}({', '.join(parts)})" if parts else choice["kind"]


def _without_defaults(group: str, choice: dict[str, Any]) -> dict[str, Any]:
    """Return a choice with the options at their default left out, and its entry's revision where it is above 1."""
    entry = registry.get(group, choice["kind"])
    kept: dict[str, Any] = {"kind": choice["kind"]}
    for option, given in choice.items():
        value, spec = (
            given,
            entry.options.get(option, {} if entry.facts.get("open") and option != "kind" else None),
        )
        if spec is None or spec.get("hashed") is False or ("default" in spec and spec["default"] == value):
            continue
        if spec.get("type") == "factor" and value is not None:
            value = _without_defaults("factors", value)
        elif spec.get("type") == "teacher" and value is not None:
            value = identity_document(TrialConfig.model_validate(value))
        kept[option] = value
    if entry.revision > 1:
        kept["revision"] = entry.revision
    return kept


def identity_document(config: TrialConfig) -> dict[str, Any]:
    """Return what is hashed: no defaults, revisions above 1, a teacher by its own document."""
    document: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if name in CHOICES:
            value = _without_defaults(CHOICES[name], value)
        if not info.is_required() and value == info.default:
            continue
        document[name] = value
    return document


def identity(config: TrialConfig, data_checksum: str | None) -> str | None:
    """Return the trial's id, 16 hexadecimal digits, or None where the data (and so its checksum) is absent."""
    if data_checksum is None:
        return None
    return digest(identity_document(config), data_checksum)


def digest(document: dict[str, Any], data_checksum: str) -> str:
    """Return the id of what ``identity_document`` returned, on data of this checksum."""
    whole = {"config": document, "data": data_checksum}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
