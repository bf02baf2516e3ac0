#!/usr/bin/env python3
"""Visual Genome in COCO's layout. The same as `maskx prepare vg3k`."""

import sys

from maskx_d2.commands.main import main

main(["prepare", "vg3k", *sys.argv[1:]])
