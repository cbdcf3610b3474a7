"""Training: schedule, optimizer, step, state and the loop; knows nothing of Snakemake."""
