"""The Python part of the Snakefile and its rules: settings, resources, hooks, and the output on the terminal."""
