"""Pictures of a run: one module each, and `style` for their common appearance."""
