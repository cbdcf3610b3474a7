"""Tables, pictures and pages of a run, made only from its files."""
