"""Pictures of a run: one module each, and one (`style`) for how they all look."""
