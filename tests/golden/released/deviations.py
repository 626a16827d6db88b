"""What the page on fidelity says beside the comparison: deviations that remain, tensorpack's scripts, rounding."""

from __future__ import annotations

COLUMNS = ("item", "released", "ours", "largest difference", "why")

INTRODUCTION = """## Deviations that remain

"Preset" says which `released` preset a deviation touches; "none" means that no `released` preset meets the case.

"""

REMAIN = [
    (
        "initial weights (both presets)",
        "normal of sqrt(1.3 * 2 / fan_in), cut at two deviations",
        "`he_truncated_exact`: cut so that sqrt(2 / fan_in) is left",
        "0.29 % of the deviation",
        "1.3 is a rounded 1 / 0.8796^2; other random numbers are drawn anyway",
    ),
    (
        "random numbers (both)",
        "TensorFlow's and NumPy's generators",
        "numbers by seed, name and step",
        "other draws of the same distributions",
        "every draw must be reproducible on any device, before and after a resume",
    ),
    (
        "order of images (both)",
        "a queue that shuffles files and a buffer",
        "a permutation of all images each epoch",
        "none in distribution",
        "an epoch sees each image once",
    ),
    (
        "resize of SVHN to 40 x 40 (SVHN)",
        "OpenCV's bilinear resize of bytes, with weights of 11 bits",
        "exact bilinear, rounded to nearest",
        "1 of 255 levels, on 13 % of the values; ours is the brighter one",
        "the same pixels on every device without OpenCV",
    ),
    (
        "branches at factor 0 (SVHN)",
        "still computed; their running statistics move on",
        "not computed; the statistics stay",
        "0.29 in running statistics that nothing reads",
        "nothing of a branch at factor 0 reaches an output or a gradient",
    ),
    (
        "removal (SVHN)",
        "the branch is never taken out of the graph",
        "taken out; the joint scale stays as a constant",
        "none in logits",
        "the network that ships has no branch",
    ),
    (
        "running variance of the batch norms behind fc1 and fc2 (AlexNet)",
        "over n",
        "over n - 1, as PyTorch computes",
        "64 / 63 at batch 64: 1.6 % of the variance, 0.8 % of the activations in evaluation; nothing in training",
        "PyTorch's kernels; the convolutions' batch norms divide by n - 1 on both sides",
    ),
    (
        "steps of an epoch (AlexNet)",
        "20,000 of 64 images",
        "20,018: every whole batch of the 1,281,167 images",
        "0.09 % of the steps",
        "an epoch sees each image at most once",
    ),
    (
        "order of colours (AlexNet)",
        "blue, green, red",
        "red, green, blue",
        "none: conv0 is trained from scratch",
        "the order of every other data set",
    ),
    (
        "gradient quantizer, a sample whose gradient is all zero (default call of SVHN)",
        "not a number",
        "0",
        "a lost run against a kept one",
        "a division of 0 by 0",
    ),
    (
        "ternary weights that equal the threshold in the last digit (none)",
        "+-1, without a scale",
        "0",
        "1, for a weight that random numbers do not hit",
        "the paper's inequality has no third case",
    ),
    (
        "a weight of exactly 0 in `dorefa`, `dorefa_channelwise`, `syq` (none)",
        "0",
        "+ scale",
        "one scale",
        "a binary weight has two levels; the `_released` variants give 0",
    ),
    (
        "gradient of SYQ's activation at exactly x = 0 in `syq` (none)",
        "0",
        "passed",
        "one gradient",
        "the window of every clip here is closed; `syq_released` gives 0",
    ),
]

TABLES: list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]] = []

ROUNDING = ""
