"""What the machine offers to a run: devices, processes, folders, and the code of others that may run."""
