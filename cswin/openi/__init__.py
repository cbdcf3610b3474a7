"""The workflow as a job of the OpenI platform: archives in, results and resume state out, the same train_url continues."""
