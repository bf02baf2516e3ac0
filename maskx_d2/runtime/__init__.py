"""Infrastructure of the commands: exit statuses, logs, locks, outputs, checkpoints, configs."""
