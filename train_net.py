#!/usr/bin/env python3
"""Train or evaluate, with Detectron2's usual command line: see ``train_net.py --help``."""

from maskx_d2.runtime.exit_status import one_sentence
from maskx_d2.runtime.optional_packages import need_detectron2

if __name__ == "__main__":
    with one_sentence("train_net.py", show_traceback=False):
        need_detectron2("training on Detectron2")

    from maskx_d2.backends.detectron2.command_line import main

    main()
