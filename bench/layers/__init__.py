"""Low-precision layers and their branches."""
