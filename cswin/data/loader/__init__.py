"""Batches from rows: order, random streams, workers."""
