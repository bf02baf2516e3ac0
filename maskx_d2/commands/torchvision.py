"""``maskx torchvision``: train and evaluate without Detectron2."""

import argparse

from maskx_d2.runtime.optional_packages import TORCHVISION_TRAINING, need


def add_parser(commands: argparse._SubParsersAction) -> None:
    commands.add_parser(
        "torchvision",
        help="train and evaluate with torchvision and Lightning, without Detectron2",
        add_help=False,
    )


def run(args: argparse.Namespace) -> None:
    """All options, including ``--help``, are handled by Lightning's command line."""
    need("maskx torchvision", *TORCHVISION_TRAINING)
    from maskx_d2.backends.torchvision.command_line import main

    main(args.arguments)
