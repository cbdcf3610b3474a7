"""Tables and pictures of a run, from its files alone."""
