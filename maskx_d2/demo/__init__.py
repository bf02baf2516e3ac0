"""The demo, and the datasets that it generates."""
