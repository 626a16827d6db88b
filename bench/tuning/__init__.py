"""Hyper-parameters chosen on equal terms: pure functions of the experiment file and of the records."""
