"""Using a trained model of either backend."""
