"""Export of a checkpoint's network to other runtimes."""
