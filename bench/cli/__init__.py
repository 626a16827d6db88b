"""The ``bench`` command."""
