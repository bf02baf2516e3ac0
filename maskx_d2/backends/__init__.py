"""Adapters: each converts its backend's structures to tensors, calls the method, and converts back."""
