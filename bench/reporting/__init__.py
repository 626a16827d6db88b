"""Records -> tables, figures, verdicts and a page.

``trial_rows`` and ``records`` read; ``selection`` says which trials; ``grouping``, ``cells`` and ``pairing``
make the rows of tables in stages of values; ``statistics`` has the mathematics; ``claims`` the verdicts on
declared comparisons; ``targets`` the published numbers; ``tables``, ``detail_tables`` and ``figures`` show;
``formats`` and ``page`` are the file formats; ``write`` is the command. Nothing here is imported before it is
used, since pandas and matplotlib are slow.
"""
