"""From an experiment file to validated, expanded trials."""
