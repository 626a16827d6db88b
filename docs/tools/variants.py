"""Write ``docs/variants.md``, what public libraries call DoReFa: ``python -m docs.tools.variants``."""

from __future__ import annotations

from pathlib import Path

from docs.tools.differences import differences
from docs.tools.markdown import table

PAGE = Path(__file__).parents[1] / "variants.md"
TITLE = "# Functions called DoReFa"
INTRODUCTION = """\
Public libraries define DoReFa-Net differently. Each function that differs from the original's text is a quantizer of
its own, named by its origin, so that a number obtained with a library can be compared with the function behind it.
`python -m docs.tools.variants` computes this page from the quantizers; a test keeps it current.
"""
# library, file, commit, what its function is here
READ = (
    ("the paper's text", "arXiv 1606.06160", "", "`dorefa`"),
    (
        "tensorpack",
        "examples/DoReFa-Net/dorefa.py",
        "03f1897",
        "`dorefa_released`; all-zero weights are NaN there",
    ),
    ("Distiller", "distiller/quantization/clipped_linear.py", "", "`dorefa` without gradient quantization"),
    ("pytorch_DoReFaNet", "utils/quant_dorefa.py", "402818b", "`dorefa_pytorch`"),
    ("BITorch", "bitorch/quantizations/dorefa.py", "d6c14d5", "`dorefa_bitorch`"),
    (
        "micronet",
        "compression/quantization/wqaq/dorefa/quantize.py",
        "096d991",
        "from 2 bits `dorefa` of inputs divided by 10, half up",
    ),
    (
        "NNI",
        ".../quantization/dorefa_quantizer.py",
        "2121dfb",
        "weights alone, the forward map of `dorefa_bitorch`",
    ),
    ("Larq", "larq/quantizers.py", "0276be7", "activations alone, those of `dorefa`"),
    (
        "EXP-Net's release",
        "see [fidelity](fidelity.md)",
        "",
        "`dorefa_released`, `dorefa_channelwise_released`",
    ),
)
WEIGHTS = {
    "quantizer": "quantizer",
    "bits": "bits",
    "levels": "levels",
    "zero": "of a zero",
    "scale": "statistic",
    "gradient": "gradient at 1.2, -0.8, 0",
}
ACTIVATIONS = {
    "quantizer": "quantizer",
    "bits": "bits",
    "activation_levels": "levels",
    "activation_threshold": "top from",
    "activation_values": "at -1/2, 0, 1/2, 1, 3/2",
    "activation_gradient": "gradient there",
}


def page() -> str:
    """Return the page's text."""
    rows = differences()
    read = table(["read", "file", "commit", "function here"], READ)
    weights = table(list(WEIGHTS.values()), [[row[key] for key in WEIGHTS] for row in rows])
    taken = [row for row in rows if row["activation_levels"] != "-"]
    activations = table(list(ACTIVATIONS.values()), [[row[key] for key in ACTIVATIONS] for row in taken])
    return (
        "\n\n".join(
            (
                TITLE,
                INTRODUCTION.strip(),
                "## What was read",
                read,
                "## Weights",
                "Of the weights -0.8, 0, 0.1, 0.2 in one output channel and 0.4, 1.2, -0.3, 0.6 in the "
                "other. The gradient "
                "is dL/dw\nfor dL/dq = 1 everywhere. `xnor` and `bnn` stand beside the variants for "
                "comparison.",
                weights,
                "## Activations",
                '"Top from": the largest input, to two digits, that does not reach the highest level. With '
                "an odd number "
                "of\nsteps 1/2 lies exactly between two levels, where rounding half to even and half up "
                "differ.",
                activations,
            )
        )
        + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
