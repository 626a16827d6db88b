"""``bench speed``: what a training step costs."""
