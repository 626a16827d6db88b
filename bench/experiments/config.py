"""The complete configuration of one trial.

``TrialConfig`` is what an experiment file expands to and what a trial's record keeps. Everything that can
change a number is a field here. Names, titles and hardware are not. No torch is imported.
"""

from __future__ import annotations

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

from bench import registry
from bench.errors import InputError, nearest, shown
from bench.experiments import start
from bench.experiments.options import complete

SCHEMA = 1


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


def _canonical_start(value: Any) -> dict[str, str] | None:
    try:
        return start.canonical(value)
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
            description="of kernels, by fan-in (He, gain 2) or fan-in and fan-out (Glorot); exact: after "
            "the truncation"
        ),
    ] = "he_truncated_normal"
    augmentation: Annotated[
        Literal["none", "svhn", "crop_flip", "random_resized_crop", "scale_jitter", "scale_jitter_released"],
        Field(
            description="of training images; bench/datasets/augmentation.py, for photographs "
            "photographs/crops.py"
        ),
    ] = "none"
    resize: Annotated[
        Literal["exact", "opencv"],
        Field(
            description="to the input size: bilinear, rounded to nearest; opencv: its 8-bit arithmetic, as "
            "released"
        ),
    ] = "exact"
    normalization: Annotated[
        Literal["divide_256", "divide_255", "standardize", "pixel_mean"],
        Field(
            description="of pixels; standardize: by the channels' mean and deviation; pixel_mean: less the "
            "mean image"
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
            description="evaluate the test images; false: only held-out ones, so that tuning sees no test "
            "image"
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
    batch_norm_statistics: Annotated[
        Literal["framework", "accurate"],
        Field(
            description="of training on a CPU: PyTorch's float32 sums over the batch, or sums in two "
            "steps, nearer to exact"
        ),
    ] = "framework"
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
    quantizer: Annotated[
        dict[str, Any], _choice("quantizers"), Field(description="the maps to low precision")
    ] = {"kind": "full_precision"}
    bits: Annotated[str, BeforeValidator(_canonical_bits), Field(description='"W/A" or "W/A/G"')] = "32/32/32"
    strategy: Annotated[
        dict[str, Any], _choice("strategies"), Field(description="how the low-precision network is trained")
    ] = {"kind": "plain"}
    start: Annotated[
        dict[str, str] | None,
        BeforeValidator(_canonical_start),
        Field(
            description="the weights that training begins with; null: those of the recipe's initialisation"
        ),
    ] = None
    seed: Annotated[int, Field(ge=0, lt=2**32, description="of all random numbers of the trial")] = 0

    @model_validator(mode="after")
    def _fields_fit_together(self) -> TrialConfig:
        found = []
        entry = registry.get("quantizers", self.quantizer["kind"])
        for name, bits in zip(("w_bits", "a_bits", "g_bits"), self.bit_widths, strict=True):
            allowed = entry.facts.get(name, [32])
            if bits not in allowed:
                found.append(
                    f"bits: {name[0].upper()} = {bits} in '{short_bits(self.bits)}', but quantizer "
                    f"'{entry.name}' "
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
        """Height and width of the images that the network reads, in pixels; None where its own code alone
        knows.
        """
        fact = registry.get("networks", self.network["kind"]).facts["input_size"]
        return self.network.get("input_size", fact)

    def dump(self) -> dict[str, Any]:
        """Return the complete configuration as plain JSON values."""
        return self.model_dump(mode="json")


def _photographs_fit(config: TrialConfig) -> list[str]:
    """Return what is wrong with augmentation and normalization for the kind of images: of one size, or of
    many.
    """
    kind = config.dataset["kind"]
    photographs = registry.get("datasets", kind).facts.get("augmentations")
    allowed = photographs or ["none", "svhn", "crop_flip"]
    found = []
    if config.augmentation not in allowed:
        what = "photographs" if photographs else "images of one size"
        found.append(
            f"augmentation: '{config.augmentation}' is not for {what}, which '{kind}' has; they take "
            f"{', '.join(allowed)}"
        )
    if config.resize != "exact" and config.augmentation not in ("none", "svhn"):
        found.append(f"resize: '{config.resize}' does not go with augmentation '{config.augmentation}'")
    if config.resize != "exact" and photographs:
        found.append(f"resize: '{config.resize}' is for images of one size, not for photographs")
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
    """Return the canonical value of one field on its own; raises ``InputError`` with lines that begin with
    the key.
    """
    try:
        return _adapter(field).validate_python(value)
    except ValidationError as error:
        raise InputError("\n".join(field_problems(error, prefix=field))) from None


def make_config(fields: Mapping[str, Any]) -> TrialConfig:
    """Return the validated configuration; raises ``InputError`` with a line a problem, each beginning with
    its key.
    """
    try:
        return TrialConfig.model_validate(dict(fields))
    except ValidationError as error:
        raise InputError("\n".join(field_problems(error))) from None


def field_problems(error: ValidationError, known: Iterable[str] = FIELDS, prefix: str = "") -> list[str]:
    """Return pydantic's findings in the words of this suite, a line each; ``known`` are the keys to
    suggest.
    """
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
