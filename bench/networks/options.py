"""Options that several networks share: those of transformed networks."""

OPTIONS = {
    "input_size": {"default": 224, "min": 8, "max": 1024, "help": "pixels, height and width"},
    "first": {
        "choices": ["full", "low"],
        "default": "full",
        "help": "precision of the first convolution (low: of its weights)",
    },
    "last": {"choices": ["full", "low"], "default": "full", "help": "precision of the last layer"},
    "depthwise": {
        "choices": ["full", "low"],
        "default": "full",
        "help": "precision of depthwise convolutions",
    },
    "projection": {
        "choices": ["full", "low"],
        "default": "full",
        "help": "precision of shortcuts' 1x1 convolutions",
    },
}
