"""Adapters: each turns its host's structures into tensors, calls the method, and turns tensors back."""
