"""The network that ships, on integers: low-precision layers by AND and population count, on the CPU.

    network = integer_network(plain)        # a plain network, or what ``bench.load`` returns
    logits = network(images)
    print(layers_text(network))             # which layers run on integers, which stay float32, and why

``levels`` turns weights and activations into bit planes, ``popcount.c`` multiplies them, ``build`` compiles
it on first use, ``layers`` are the modules, ``convert`` puts them into a network.
"""
