"""The ``bench`` command: ``main`` (entry and errors), ``parser``, and a module for each command or two."""

OK, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 3  # exit statuses
