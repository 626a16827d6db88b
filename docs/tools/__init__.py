"""What the repository needs beside the package: these modules are not in the wheel."""
