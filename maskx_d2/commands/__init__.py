"""The ``maskx`` command: one file a subcommand, its options and what it calls."""
