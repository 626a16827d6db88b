"""The networks a second time: formulas over a dict of parameters, in the order of the papers' text.

Nothing here imports the package's layers. Batch norm uses batch statistics; quantizers are DoReFa-Net's at
1-bit weights and 2-bit activations, written with straight-through estimators, so autograd gives reference
gradients as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def weight_1bit(w):
    low = torch.where(w >= 0, 1.0, -1.0).to(w.dtype) * w.abs().mean()
    return w + (low - w).detach()


def clip01(x):
    return torch.clamp(x, 0, 1)


def activation_2bit(x):
    c = clip01(x)
    return c + (torch.round(3 * c) / 3 - c).detach()


def batch_norm(x, p, name, eps):
    axes = (0, 2, 3) if x.dim() == 4 else (0,)
    shape = (1, -1, 1, 1) if x.dim() == 4 else (1, -1)
    mean = x.mean(axes, keepdim=True)
    variance = ((x - mean) ** 2).mean(axes, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * p[f"{name}.weight"].view(shape) + p[f"{name}.bias"].view(
        shape
    )


def weights(p, name, merge):
    """Quantized main weights, beside them the extra ones where the layer before has a concat branch."""
    main = weight_1bit(p[f"{name}.weight"])
    if merge == "concat" and f"{name}.weight_extra" in p:
        return torch.cat([main, weight_1bit(p[f"{name}.weight_extra"])], 1)
    return main


def merged(main, side, merge):
    if merge == "sum":
        return main + side
    if merge == "difference":
        return main - side
    return torch.cat([main, side], 1)


def classify(x, p, merge):
    w = p["linear.weight"]
    if merge == "concat":
        w = torch.cat([w, p["linear.weight_extra"]], 1)
    return x @ w.t() + p["linear.bias"]


SVHN = [
    (1, False),
    (1, True),
    (0, False),
    (1, False),
    (0, False),
    (0, False),
]  # padding, max-pool of conv1 to conv6
VGG = [(1, True), (1, False), (1, True), (1, False), (1, True)]


def chain(
    p,
    images,
    merge,
    f,
    *,
    convs,
    eps,
    first_padding,
    first_pool,
    pool_first=False,
    hidden=0,
    act=activation_2bit,
    relu=False,
):
    """act(BN(LP x)) merged with f BN'(FP x) at every convolution; the merged tensor is not quantized again.

    ``f`` is a number, or a number a layer by name; ``relu``: max(BN'(FP x), 0) instead of BN'(FP x).
    """

    def pooled_norm(y, name, pool):
        if pool and pool_first:
            y = F.max_pool2d(y, 2)
        y = batch_norm(y, p, name, eps) if f"{name}.weight" in p else y
        return F.max_pool2d(y, 2) if pool and not pool_first else y

    y = F.conv2d(images, p["conv0.weight"], p.get("conv0.bias"), padding=first_padding)
    x = act(pooled_norm(y, "bn0", first_pool))
    for i, (padding, pool) in enumerate(convs, start=1):
        y = F.conv2d(x, weights(p, f"conv{i}", merge), padding=padding)
        if merge == "preactivation":
            own = f[f"conv{i}"] if isinstance(f, dict) else f
            y = y + own * F.conv2d(x, p[f"conv{i}.branch.weight"], padding=padding)
        last = i == len(convs) and not hidden
        out = (clip01 if last else act)(pooled_norm(y, f"bn{i}", pool))
        if merge in ("sum", "difference", "concat"):
            side = F.conv2d(x, p[f"conv{i}.branch.weight"], padding=padding)
            side = pooled_norm(side, f"conv{i}.branch.norm", pool)
            own = f[f"conv{i}"] if isinstance(f, dict) else f
            out = merged(out, own * (side.clamp_min(0.0) if relu else side), merge)
        x = out
    x = x.flatten(1)
    for i in range(1, hidden + 1):
        has_extra = merge == "concat" and i == 1
        w = weights(p, f"fc{i}", "concat" if has_extra else None)
        y = batch_norm(x @ w.t(), p, f"bn_fc{i}", eps)
        x = clip01(y) if i == hidden else act(y)
    return classify(x, p, None if hidden else merge)


def shortcut(x, p, name, new, stride, eps):
    if f"{name}.0.weight" in p:
        return batch_norm(F.conv2d(x, p[f"{name}.0.weight"], stride=stride), p, f"{name}.1", eps)
    x = x[:, :, ::stride, ::stride]
    zeros = torch.zeros(x.shape[0], new, *x.shape[2:], dtype=x.dtype)
    return torch.cat([x, zeros], 1)


def residual(p, images, merge, f, *, block, blocks, eps=1e-5, act=activation_2bit):
    """Both block orders; ``blocks`` lists the stride of each block."""

    def low(u, name, stride):
        y = F.conv2d(u, weights(p, name, merge), stride=stride, padding=1)
        return y + f * side_conv(u, name, stride) if merge == "preactivation" else y

    def side_conv(u, name, stride):
        return F.conv2d(u, p[f"{name}.branch.weight"], stride=stride, padding=1)

    def side(u, name, stride):
        return f * batch_norm(side_conv(u, name, stride), p, f"{name}.branch.norm", eps)

    separate = merge in ("sum", "difference", "concat")
    stream = F.conv2d(images, p["conv0.weight"], padding=1)
    if block == "pre":
        beside = None  # what concat appends to the next convolution's input
        for i, stride in enumerate(blocks):
            z = stream
            for j in (1, 2):
                name, s = f"blocks.{i}.conv{j}", stride if j == 1 else 1
                u = act(batch_norm(z, p, f"blocks.{i}.bn{j}", eps))
                if beside is not None:
                    u = torch.cat([u, beside], 1)
                z = low(u, name, s)
                if merge == "concat":
                    beside = side(u, name, s)
                elif separate:
                    z = merged(z, side(u, name, s), merge)
            stream = z + shortcut(
                stream, p, f"blocks.{i}.shortcut", z.shape[1] - stream.shape[1], stride, eps
            )
        x = clip01(batch_norm(stream, p, "bn_last", eps))
        if beside is not None:
            x = torch.cat([x, beside], 1)
        return classify(x.mean((2, 3)), p, merge)

    z = batch_norm(stream, p, "bn0", eps)
    read, carried = act(z), clip01(z)  # what a convolution reads, what the shortcut carries
    for i, stride in enumerate(blocks):
        u = read
        y = act(batch_norm(low(u, f"blocks.{i}.conv1", stride), p, f"blocks.{i}.bn1", eps))
        u2 = merged(y, side(u, f"blocks.{i}.conv1", stride), merge) if separate else y
        z = batch_norm(low(u2, f"blocks.{i}.conv2", 1), p, f"blocks.{i}.bn2", eps)
        z = z + shortcut(carried, p, f"blocks.{i}.shortcut", z.shape[1] - carried.shape[1], stride, eps)
        read, carried = act(z), clip01(z)
        out = carried
        if separate:
            rest = side(u2, f"blocks.{i}.conv2", 1)
            read, out = merged(read, rest, merge), merged(carried, rest, merge)
            carried = carried if merge == "concat" else out
    return classify(out.mean((2, 3)), p, merge)
