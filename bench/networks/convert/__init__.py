"""Anybody's network as one of low-precision layers."""
