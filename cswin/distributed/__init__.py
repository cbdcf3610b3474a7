"""Devices and processes: what is decided for a device, ranks and their launcher, Slurm, signals and exit codes."""
