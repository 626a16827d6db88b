"""Trials on processes, devices and machines."""
