"""Runs the workflow as a job of the OpenI platform. Results and state are copied to train_url, from which the next job continues."""
