"""The complete configuration of one trial.

``TrialConfig`` is what an experiment file expands to and what a trial's record keeps. Everything that can
change a number is a field here. Names, titles and hardware are not. No torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
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
from bench.experiments.options import complete
from bench.experiments.start import canonical

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


def _before(check: Callable[[Any], Any]) -> BeforeValidator:
    """Return a validator by a function that raises ``InputError``."""

    def validate(value: Any) -> Any:
        try:
            return check(value)
        except InputError as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(validate)


def _choice(group: str) -> BeforeValidator:
    return _before(lambda value: complete(group, value))


class Recipe(BaseModel):
    """How a network is trained: the flat fields that recipes and experiment files set."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )

    epochs: int = Field(ge=1, le=1_000_000, description="passes over the training images")
    batch_size: int = Field(128, ge=1, le=1_000_000, description="images in a step, over all workers")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="Adam (1412.6980) or SGD with momentum")
    learning_rate: Annotated[dict[str, Any], _choice("learning_rates")] = Field(
        {"kind": "constant", "initial": 1e-3}, description="a number or a schedule of the global step"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    nesterov: bool = Field(False, description="of SGD")
    beta1: float = Field(0.9, ge=0, lt=1, description="of Adam")
    beta2: float = Field(0.999, ge=0, lt=1, description="of Adam")
    epsilon: float = Field(1e-8, gt=0, description="of Adam")
    epsilon_mode: Literal["pytorch", "tensorflow"] = Field(
        "pytorch", description="Adam's epsilon after bias correction, or before it as TensorFlow adds it"
    )
    weight_decay: float = Field(0.0, ge=0, description="coupled: adds weight_decay * w to the gradient")
    weight_decay_on: Literal["all", "kernels", "linear", "classifier"] = Field(
        "all",
        description="every parameter; conv and linear kernels; linear kernels; the last linear's kernel",
    )
    loss: Literal["cross_entropy", "squared_hinge"] = Field("cross_entropy", description="of the logits")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the cross entropy")
    initialization: Literal["he_truncated_exact", "he_truncated_normal", "he_normal", "glorot_uniform"] = (
        Field(
            "he_truncated_normal",
            description="of kernels, by fan-in (He, gain 2) or fan-in and fan-out (Glorot); exact: after the "
            "truncation",
        )
    )
    augmentation: Literal[
        "none", "svhn", "crop_flip", "random_resized_crop", "scale_jitter", "scale_jitter_released"
    ] = Field(
        "none",
        description="of training images; bench/datasets/augmentation.py, for photographs "
        "photographs/crops.py",
    )
    resize: Literal["exact", "opencv"] = Field(
        "exact",
        description="to the input size: bilinear, rounded to nearest; opencv: its 8-bit arithmetic, as "
        "released",
    )
    normalization: Literal["divide_256", "divide_255", "standardize", "pixel_mean"] = Field(
        "divide_256",
        description="of pixels; standardize: by the channels' mean and deviation; pixel_mean: less the mean "
        "image",
    )
    train_size: int | None = Field(None, ge=1, description="train on this many images, chosen by the seed 0")
    holdout: int = Field(0, ge=0, description="training images set aside to choose the epoch on")
    evaluate_every: int = Field(
        1, ge=1, le=1_000_000, description="epochs from one evaluation to the next; the last is evaluated"
    )
    evaluate_test: bool = Field(
        True,
        description="evaluate the test images; false: only held-out ones, so that tuning sees no test image",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the training step; evaluation is fp32")
    eval_bn: int = Field(
        0,
        ge=0,
        le=100_000,
        description="re-estimate batch norm over N training batches on a copy before evaluating",
    )
    batch_norm_group: int | None = Field(
        None, ge=2, description="images that batch-norm statistics are taken over; null: the whole batch"
    )
    batch_norm_statistics: Literal["framework", "accurate"] = Field(
        "framework",
        description="of training on a CPU: PyTorch's float32 sums over the batch, or sums in two steps, "
        "nearer to exact",
    )
    micro_batches: int = Field(
        1, ge=1, le=1_000_000, description="parts of a batch trained one after the other, gradients summed"
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, the same numbers"
    )


class TrialConfig(Recipe):
    """Everything that determines the numbers of one trial. ``dump()`` is what records keep."""

    dataset: Annotated[dict[str, Any], _choice("datasets")] = Field(description="a source of images")
    network: Annotated[dict[str, Any], _choice("networks")] = Field(description="an architecture")
    width: float = Field(1.0, gt=0, le=16, description="multiplier on every channel count")
    quantizer: Annotated[dict[str, Any], _choice("quantizers")] = Field(
        {"kind": "full_precision"}, description="the maps to low precision"
    )
    bits: Annotated[str, _before(lambda value: "/".join(map(str, parse_bits(value))))] = Field(
        "32/32/32", description='"W/A" or "W/A/G"'
    )
    strategy: Annotated[dict[str, Any], _choice("strategies")] = Field(
        {"kind": "plain"}, description="how the low-precision network is trained"
    )
    start: Annotated[dict[str, str] | None, _before(canonical)] = Field(
        None, description="the weights that training begins with; null: those of the recipe's initialisation"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of all random numbers of the trial")

    @model_validator(mode="after")
    def _fields_fit_together(self) -> TrialConfig:
        found = []
        entry = registry.get("quantizers", self.quantizer["kind"])
        for name, bits in zip(("w_bits", "a_bits", "g_bits"), self.bit_widths, strict=True):
            allowed = entry.facts.get(name, [32])
            if bits not in allowed:
                found.append(
                    f"bits: {name[0].upper()} = {bits} in '{short_bits(self.bits)}', but quantizer "
                    f"'{entry.name}' takes {', '.join(map(str, allowed))} there"
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
        """Height and width, in pixels, of the network's images; None where its own code alone knows."""
        fact = registry.get("networks", self.network["kind"]).facts["input_size"]
        return self.network.get("input_size", fact)

    def dump(self) -> dict[str, Any]:
        """Return the complete configuration as plain JSON values."""
        return self.model_dump(mode="json")


def _photographs_fit(config: TrialConfig) -> list[str]:
    """Return what is wrong with augmentation and normalization for images of one size, or of many."""
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
# The fields that one optimizer alone reads, and which. Under the other one they train nothing.
READ_BY = {
    **dict.fromkeys(("momentum", "nesterov"), "sgd"),
    **dict.fromkeys(("beta1", "beta2", "epsilon", "epsilon_mode"), "adam"),
}
RECIPE_FIELDS = Recipe.model_fields


def only_with(field: str) -> str:
    """Return what a message says of a field of ``READ_BY`` beside another optimizer."""
    return f"has a meaning only with optimizer = '{READ_BY[field]}'"


@cache
def _adapter(field: str) -> TypeAdapter[Any]:
    info = FIELDS[field]
    config = ConfigDict(strict=True, allow_inf_nan=False)
    annotation: Any = info.annotation
    if info.metadata:
        annotation = Annotated[(annotation, *info.metadata)]
    return TypeAdapter(annotation, config=config)


def check_field(field: str, value: Any) -> Any:
    """Return the canonical value of one field. Raises ``InputError`` with lines that begin with the key."""
    try:
        return _adapter(field).validate_python(value)
    except ValidationError as error:
        raise field_error(error, prefix=field) from None


def make_config(fields: Mapping[str, Any]) -> TrialConfig:
    """Return the checked configuration. Raises ``InputError`` with a line a problem, its key first."""
    try:
        return TrialConfig.model_validate(dict(fields))
    except ValidationError as error:
        raise field_error(error) from None


def field_error(error: ValidationError, known: Iterable[str] = FIELDS, prefix: str = "") -> InputError:
    """Return pydantic's findings in the suite's words, a line each; ``known`` are the keys to suggest."""
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
            names = re.findall(r"'([^']*)'", context["expected"])
            hint = nearest(value, names) if isinstance(value, str) else ""
            lines.append(f"{key}: {shown(value)} is not one of {context['expected']}.{hint}")
        elif kind in ("string_too_short", "too_short"):
            lines.append(f"{key}: is empty")
        elif kind in ("string_too_long", "too_long"):
            lines.append(f"{key}: is too long ({context['max_length']} at most)")
        else:
            lines.append(f"{key}: {found['msg'].replace('Input should be', 'expected')}, not {shown(value)}")
    return InputError("\n".join(lines))
