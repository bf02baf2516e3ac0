"""Evaluation on A (classes with masks), on B (boxes only) and on all; tables and pictures."""
