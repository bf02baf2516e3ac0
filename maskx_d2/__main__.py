"""``python -m maskx_d2``: the ``maskx`` command."""

from maskx_d2.commands.main import main

main()
