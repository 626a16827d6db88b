"""Options that several schedules share; ``"until": "shared"`` refers to the literal."""

OPTIONS = {
    # of factors
    "until": {"type": "float", "default": None, "above": 0, "below": 1, "help": "fraction of all steps"},
    "until_epochs": {"type": "float", "default": None, "above": 0, "help": "the same in epochs"},
    "keep": {"default": False, "help": "an upper bound: the factor need not reach 0"},
    # of both
    "every_epochs": {"type": "float", "min": 1e-6, "help": "epochs between two steps down"},
    # of learning rates
    "initial": {"type": "float", "above": 0, "help": "the highest learning rate"},
    "final": {"default": 0.0, "min": 0, "help": "what it falls to"},
    "warmup_epochs": {
        "default": 0.0,
        "min": 0,
        "help": "linear rise to the first value over the first epochs",
    },
}
