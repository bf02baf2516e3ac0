"""What a command needs around its work."""
