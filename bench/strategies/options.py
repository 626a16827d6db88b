"""Options that several strategies share; ``"bn_reestimate": "shared"`` refers to the literal."""

OPTIONS = {
    "bn_reestimate": {
        "default": 0,
        "min": 0,
        "max": 100000,
        "help": "re-estimate batch-norm statistics over N training batches when the factor reaches 0; 0: "
        "do not",
    },
    "teacher": {
        "type": "teacher",
        "default": {},
        "cost": {"frozen": 0.3333},
        "help": "the fields in which the full-precision teacher differs from the arm's own network",
    },
}
