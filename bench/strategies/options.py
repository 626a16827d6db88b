"""Options that several strategies share. The registry reads the literal; ``"bn_reestimate": "shared"``
refers to it.
"""

OPTIONS = {
    "bn_reestimate": {
        "type": "int",
        "default": 0,
        "min": 0,
        "max": 100000,
        "help": "re-estimate batch-norm statistics over N training batches when the factor reaches 0; 0: "
        "do not",
    },
}
