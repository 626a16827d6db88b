"""AlexNet and the residual networks of ImageNet a second time, as plain formulas over a dict of parameters.

Like ``network_oracles``: nothing of the package is imported, DoReFa-Net's quantizers at 1-bit weights, batch
statistics.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.networks.network_oracles import batch_norm, clip01, merged, weight_1bit


def windows_max(x, kernel, stride, before, outputs):
    """Max over each window clipped to the image, window i starting at pixel i * stride - before."""

    def spans(size):
        starts = [i * stride - before for i in range(outputs(size))]
        return [slice(max(a, 0), min(a + kernel, size)) for a in starts]

    rows = [
        torch.stack([x[:, :, r, c].amax((2, 3)) for c in spans(x.shape[3])], -1) for r in spans(x.shape[2])
    ]
    return torch.stack(rows, -2)


def pool_same(x):
    """3x3 of stride 2 as TensorFlow pads "SAME": an even size only below and right, an odd one all around."""
    return windows_max(x, 3, 2, 0 if x.shape[2] % 2 == 0 else 1, lambda n: (n + 1) // 2)


def pool_valid(x):
    return windows_max(x, 3, 2, 0, lambda n: (n - 3) // 2 + 1)


def grouped(x, rest, w, groups, padding):
    """A convolution group by group; group g reads its share of the main and of the extra channels."""
    outs = []
    for g in range(groups):
        parts = [t.chunk(groups, 1)[g] for t in (x, rest) if t is not None]
        outs.append(F.conv2d(torch.cat(parts, 1), w.chunk(groups, 0)[g], padding=padding))
    return torch.cat(outs, 1)


TENSORPACK = [(5, 2, pool_same), (3, 1, pool_same), (3, 2, None), (3, 2, pool_valid)]  # kernel, groups, pool
XNOR = [(5, 1, pool_valid), (3, 1, None), (3, 1, None), (3, 1, pool_valid)]


def alexnet(p, images, merge, f, *, form, act, quantized=("conv1", "conv2", "conv3", "conv4", "fc1", "fc2")):
    """``form``: "syq", "dorefa" or "xnor"; ``quantized``: the layers with binary weights."""
    xnor = form == "xnor"

    def low(name):
        w = p[name]
        return weight_1bit(w) if name.split(".")[0] in quantized else w

    y = F.conv2d(images, p["conv0.weight"], stride=4, padding=2 if xnor else 0)
    if xnor:
        y = pool_valid(torch.relu(batch_norm(y, p, "stem.0", 1e-5)))
        y = batch_norm(y, p, "stem.3", 1e-4)
    x, rest = act(y), None
    for i, (kernel, groups, pool) in enumerate(XNOR if xnor else TENSORPACK, start=1):

        def finish(y, name, pool=pool):
            if pool is None:
                return batch_norm(y, p, name, 1e-4)
            return batch_norm(pool(y), p, name, 1e-4) if xnor else pool(batch_norm(y, p, name, 1e-4))

        w = low(f"conv{i}.weight")
        if rest is not None:
            w = torch.cat([w, low(f"conv{i}.weight_extra")], 1)
        y = grouped(x, rest, w, groups, kernel // 2)
        if merge is not None:
            side = grouped(x, rest, p[f"conv{i}.branch.weight"], groups, kernel // 2)
            if merge == "preactivation":
                y = y + f * side
            else:
                side = f * finish(side, f"conv{i}.branch.norm")
        x = act(finish(y, f"bn{i}"))
        if merge == "concat":
            rest = side
        elif merge in ("sum", "difference"):
            x = merged(x, side, merge)
    x = x.flatten(1)
    w = low("fc1.weight")
    if rest is not None:
        x, w = torch.cat([x, rest.flatten(1)], 1), torch.cat([w, low("fc1.weight_extra")], 1)
    x = act(batch_norm(x @ w.t(), p, "bn_fc1", 1e-4))
    y = batch_norm(x @ low("fc2.weight").t(), p, "bn_fc2", 1e-3 if xnor else 1e-4)
    x = {"syq": act, "dorefa": clip01, "xnor": torch.relu}[form](y)
    return x @ p["linear.weight"].t() + p["linear.bias"]


def shortcut(x, p, name, channels, stride):
    """The projection where there is one, behind average pooling if it is second in its row; else zeros."""
    eps = 1e-5
    if f"{name}.0.weight" in p:
        return batch_norm(F.conv2d(x, p[f"{name}.0.weight"], stride=stride), p, f"{name}.1", eps)
    if f"{name}.1.weight" in p:
        pooled = x.unflatten(3, (-1, 2)).mean(4).unflatten(2, (-1, 2)).mean(3)
        return batch_norm(F.conv2d(pooled, p[f"{name}.1.weight"]), p, f"{name}.2", eps)
    x = x[:, :, ::stride, ::stride]
    return torch.cat([x, x.new_zeros(x.shape[0], channels - x.shape[1], *x.shape[2:])], 1)


def residual(p, images, merge, f, *, order, blocks, act):
    """``order`` is "pre", "post" or "real" (Bi-Real Net's); ``blocks`` are strides of convolutions."""
    separate = merge in ("sum", "difference", "concat")

    def convolved(u, beside, name, stride):
        """Main path and f times the branch, its norm included; ``beside``: what concat appends."""
        w = weight_1bit(p[f"{name}.weight"])
        if beside is not None:
            u = torch.cat([u, beside], 1)
            w = torch.cat([w, weight_1bit(p[f"{name}.weight_extra"])], 1)
        padding = w.shape[2] // 2
        y = F.conv2d(u, w, stride=stride, padding=padding)
        if merge is None:
            return y, None
        side = F.conv2d(u, p[f"{name}.branch.weight"], stride=stride, padding=padding)
        if merge == "preactivation":
            return y + f * side, None
        return y, f * batch_norm(side, p, f"{name}.branch.norm", 1e-5)

    z = F.conv2d(images, p["conv0.weight"], stride=2, padding=3)
    if order != "pre":
        z = batch_norm(z, p, "bn0", 1e-5)
    z = F.max_pool2d(z, 3, 2, 1)
    side = None  # of the convolution before
    for i, strides in enumerate(blocks):
        if order == "post":  # the shortcut carries what the block reads, bounded
            carried = clip01(z)
            if side is not None and merge != "concat":
                carried = merged(carried, side, merge)
        else:
            carried = z
        total = 1
        for j, stride in enumerate(strides, start=1):
            name, total = f"blocks.{i}.conv{j}", total * stride
            norm = f"blocks.{i}.bn{j}"
            u = act(batch_norm(z, p, norm, 1e-5) if order == "pre" else z)
            if order == "post" and side is not None and merge != "concat":
                u = merged(u, side, merge)
            z, side = convolved(u, side if merge == "concat" else None, name, stride)
            if order != "pre":
                z = batch_norm(z, p, norm, 1e-5)
            if order != "post" and separate and merge != "concat":
                z = merged(z, side, merge)
        z = z + shortcut(carried, p, f"blocks.{i}.shortcut", z.shape[1], total)
    if order == "pre":
        x = clip01(batch_norm(z, p, "bn_last", 1e-5))
    else:
        x = clip01(z) if order == "post" else z
    w = p["linear.weight"]
    if order == "post" and side is not None and merge != "concat":
        x = merged(x, side, merge)
    if merge == "concat":
        x, w = torch.cat([x, side], 1), torch.cat([w, p["linear.weight_extra"]], 1)
    return x.mean((2, 3)) @ w.t() + p["linear.bias"]
