"""Adapters: each turns its backend's structures into tensors, calls the method, and turns tensors back."""
