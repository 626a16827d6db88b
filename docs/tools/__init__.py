"""Tools for the repository beside the package; these modules are not in the wheel."""
