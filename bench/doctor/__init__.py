"""``bench doctor``: what this machine has (``machine``), and checks that what is promised holds on it
(``checks``).
"""
