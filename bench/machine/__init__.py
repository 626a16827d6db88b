"""What the machine offers to a run: devices, processes, folders."""
