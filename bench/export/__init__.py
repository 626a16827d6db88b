"""The network that ships: a plain module, and files of it.

    plain = plain_network(network)          # an ordinary module: no branch, teacher, clock or latent weight
    write_file(path, plain, config, classes, packed=True)
    plain = read_file(path)                 # the same logits, bit for bit

``plain`` makes the module, ``files`` writes and reads it with its levels, ``foreign_formats`` writes ONNX and
QONNX, ``pt2`` programs of torch.export. ``seal`` tells a whole file from a damaged one, ``rounding`` another
program's rounding from a fault.
"""
