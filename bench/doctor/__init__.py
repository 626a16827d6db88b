"""``bench doctor``: what this machine has (``machine``), and checks of promises (``checks``)."""
