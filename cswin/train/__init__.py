"""Training: schedule, optimizer, step, state and the loop. It does not depend on Snakemake."""
