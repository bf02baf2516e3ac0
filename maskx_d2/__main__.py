"""``python -m maskx_d2``: the ``maskx`` command."""

from maskx_d2.cli import main

main()
