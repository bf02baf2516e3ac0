"""``maskx detectron2``: the same as ``train_net.py``, for an installed package."""

import argparse

from maskx_d2.runtime.optional_packages import need_detectron2


def add_parser(commands: argparse._SubParsersAction) -> None:
    commands.add_parser(
        "detectron2", help="train and evaluate with Detectron2; the same as train_net.py", add_help=False
    )


def run(args: argparse.Namespace) -> None:
    """All options, including ``--help``, are handled by Detectron2's command line."""
    need_detectron2("maskx detectron2")
    from maskx_d2.backends.detectron2.command_line import main

    main(args.arguments, program="maskx detectron2")
