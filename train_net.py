#!/usr/bin/env python3
"""Train or evaluate, with Detectron2's usual command line: see ``train_net.py --help``."""

from maskx_d2.hosts.detectron2.command_line import main

if __name__ == "__main__":
    main()
