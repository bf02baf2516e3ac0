"""The ``maskx`` command: one file per subcommand, with its options and the function it calls."""
