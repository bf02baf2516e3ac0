#!/usr/bin/env python3
"""
Time and memory of the mask predictor: weights gathered by class, against the masks of all classes of
which one in K is picked, as in the original code.

Each line is a ratio of medians, the two forms timed in turn in this process. ``largest tensor`` is the
largest that an operation allocates.
"""

import argparse

import torch
from timing import medians
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from maskx_d2.method import FixedEmbeddings, TransferMaskPredictor, WeightTransfer


class LargestTensor(TorchDispatchMode):
    """Notes the size in bytes of the largest tensor that an operation allocates."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {storage.data_ptr() for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage.data_ptr() not in given:  # a view allocates nothing
                self.nbytes = max(self.nbytes, storage.nbytes())
        return out


def _storages(tree):
    return (x.untyped_storage() for x in tree_iter(tree) if isinstance(x, torch.Tensor))


def largest_mib(function) -> float:
    with LargestTensor() as largest:
        function()
    return largest.nbytes / 2**20


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rois", type=int, default=100)
    parser.add_argument("--classes", type=int, nargs="+", default=[80, 3001])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    features = torch.randn(args.rois, 256, 28, 28, device=device)
    print(f"{args.rois} RoIs of 256 x 28 x 28 on {device}, torch {torch.__version__}")
    for num_classes in args.classes:
        embeddings = FixedEmbeddings(torch.randn(num_classes, 5120))
        predictor = TransferMaskPredictor(embeddings, WeightTransfer(5120)).to(device).eval()
        classes = torch.randint(num_classes, (args.rois,), device=device)
        index = torch.arange(args.rois, device=device)

        def gathered(predictor=predictor, classes=classes):
            return predictor(features, classes, features)

        def all_classes(predictor=predictor, classes=classes, index=index):
            weights = predictor.transfer(predictor.class_embeddings())
            return torch.nn.functional.conv2d(features, weights[:, :, None, None])[index, classes]

        torch.testing.assert_close(gathered(), all_classes(), rtol=1e-3, atol=1e-2)
        functions = {"gathered": gathered, "all classes": all_classes}
        fast, slow = medians(functions, args.repeats, device=device).values()
        small, large = largest_mib(gathered), largest_mib(all_classes)
        print(
            f"K = {num_classes:5}: gathered {fast * 1e3:8.2f} ms, all classes {slow * 1e3:9.2f} ms, "
            f"ratio {slow / fast:6.1f}; largest tensor {small:6.1f} MiB, {large:7.1f} MiB, "
            f"ratio {large / small:6.1f}"
        )


if __name__ == "__main__":
    main()
