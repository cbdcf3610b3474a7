"""What the Snakefile and its rules do in Python: settings, resources, hooks, and what a person sees of a run."""
