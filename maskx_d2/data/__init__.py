"""Datasets and class splits, without model code."""
