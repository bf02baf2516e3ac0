"""What a trained model of either backend can do."""
