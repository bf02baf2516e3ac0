"""``maskx embeddings``: tables of fixed class embeddings."""

import argparse
from pathlib import Path

from maskx_d2.commands.options import add_input, add_output_file, at_least


def add_parser(commands: argparse._SubParsersAction) -> None:
    embeddings = commands.add_parser(
        "embeddings",
        help="write a table of fixed class embeddings",
        description="Write a .npy table for MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING_FILE.",
    )
    kinds = embeddings.add_subparsers(dest="kind", required=True, metavar="KIND")
    glove = kinds.add_parser("glove", help="GloVe vectors of the class names")
    add_input(
        glove, "--vectors", required=True, type=Path, metavar="FILE", help="text file of GloVe vectors"
    )
    random = kinds.add_parser("random", help="random vectors of the words in the class names")
    random.add_argument("--seed", type=int, default=0, metavar="N")
    random.add_argument("--dim", type=at_least(1), default=300, metavar="D")
    for kind in (glove, random):
        add_input(
            kind,
            "--classes",
            type=Path,
            metavar="FILE",
            help="annotation file in COCO format, or text file with one class name per line; default: "
            "COCO's 80 classes",
        )
        add_output_file(kind, metavar="FILE", help=".npy file")
        kind.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from maskx_d2.data import class_embeddings
    from maskx_d2.data.class_names import read_class_names

    names = read_class_names(args.classes)
    if args.kind == "glove":
        table = class_embeddings.glove_embeddings(args.vectors, names)
    else:
        table = class_embeddings.random_embeddings(names, dim=args.dim, seed=args.seed)
    class_embeddings.write_table(args.output, table)
    print(f"{args.output}: {table.shape[1]} numbers for each of {table.shape[0]} classes")
