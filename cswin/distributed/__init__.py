"""Devices and processes: configuration of a device, ranks and their launcher, Slurm, signals and exit codes."""
