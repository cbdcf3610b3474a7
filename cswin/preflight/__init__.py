"""Checks of the devices before the first stage of a run: `cswin preflight`."""
