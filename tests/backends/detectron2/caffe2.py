"""A checkpoint as the paper's code on Caffe2 writes one, and what the original computes with it."""

import struct

import numpy as np

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def blobs(
    *,
    num_classes: int,
    depth: int = 50,
    width: int = 4,
    channels: int = 8,
    features: int = 12,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """
    Random ones, by the names and shapes of the original code (its ``lib/modeling``), where the sizes that
    it has are 64, 256 and 1024 for ``width``, ``channels`` and ``features``.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}

    def weights(name, *shape):
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        found[f"{name}_w"] = rng.normal(size=shape, scale=scale).astype(np.float32)

    def linear(name, *shape, outputs=None):
        weights(name, *shape)
        found[f"{name}_b"] = rng.normal(size=outputs or shape[0], scale=0.1).astype(np.float32)

    def convolution(name, inputs, outputs, side):
        weights(name, outputs, inputs, side, side)
        for kind in ("s", "b"):
            found[f"{name}_bn_{kind}"] = rng.normal(size=outputs).astype(np.float32)

    convolution("conv1", 3, width, 7)
    for kind in ("s", "b"):
        found[f"res_conv1_bn_{kind}"] = found.pop(f"conv1_bn_{kind}")
    inputs = width
    for stage, count in enumerate(BLOCKS[depth], start=2):
        inner, outputs = width * 2 ** (stage - 2), 4 * width * 2 ** (stage - 2)
        for block in range(count):
            name = f"res{stage}_{block}_branch"
            if block == 0:
                convolution(f"{name}1", inputs, outputs, 1)
            convolution(f"{name}2a", inputs, inner, 1)
            convolution(f"{name}2b", inner, inner, 3)
            convolution(f"{name}2c", inner, outputs, 1)
            inputs = outputs
        top = f"res{stage}_{count - 1}_sum"
        linear(f"fpn_inner_{top}{'' if stage == 5 else '_lateral'}", channels, outputs, 1, 1)
        linear(f"fpn_{top}", channels, channels, 3, 3)
    linear("conv_rpn_fpn2", channels, channels, 3, 3)
    linear("rpn_cls_logits_fpn2", 3, channels, 1, 1)
    linear("rpn_bbox_pred_fpn2", 12, channels, 1, 1)
    linear("fc6", features, channels * 49)
    linear("fc7", features, features)
    linear("cls_score", num_classes + 1, features)
    linear("bbox_pred", 4 * (num_classes + 1), features)
    for layer in range(1, 5):
        linear(f"_[mask]_fcn{layer}", channels, channels, 3, 3)
    linear("conv5_mask", channels, channels, 2, 2)
    linear("bbox2mask_mlp_l1", channels, 5 * features)
    linear("mask_fcn_logits_w_flat", channels, channels)
    linear("mask_mlp_logits_raw", 784, channels * 784)
    # What such files have besides.
    found["fc6_w_momentum"] = np.zeros_like(found["fc6_w"])
    linear("fc1000", 5, inputs)
    found["conv1_b"] = np.zeros(width, np.float32)
    return found


def cut_to_coco(found: dict[str, np.ndarray], kept: list[int]) -> dict[str, np.ndarray]:
    """As ``tools/vg3k_training/convert_vg3k_det_to_coco.py``; ``kept`` are rows, the background too."""
    found = dict(found)
    for name in ("cls_score_w", "cls_score_b", "bbox_pred_w", "bbox_pred_b"):
        blob = found[f"{name}_jcvbackup"] = found[name]
        rows = kept if name.startswith("cls") else [4 * row + i for row in kept for i in range(4)]
        found[name] = blob[rows]
    return found


# ---- Python 2's pickle ----


def pickle_of_python_2(found: dict[str, np.ndarray], settings: str) -> bytes:
    """``pickle.dumps({"blobs": found, "cfg": settings}, 2)`` as Python 2 does it: text is bytes."""
    parts = [b"\x80\x02", b"}", b"(", _string(b"blobs"), b"}", b"("]
    for name, blob in found.items():
        parts += [_string(name.encode()), _array(blob)]
    parts += [b"u", _string(b"cfg"), _string(settings.encode()), b"u", b"."]
    return b"".join(parts)


def _string(data: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(data)) + data


def _array(blob: np.ndarray) -> bytes:
    blob = np.ascontiguousarray(blob, dtype="<f4")
    shape = b"(" + b"".join(b"J" + struct.pack("<i", side) for side in blob.shape) + b"t"
    none, minus_one = b"N", b"J\xff\xff\xff\xff"
    dtype = b"cnumpy\ndtype\n(" + _string(b"f4") + b"K\x00K\x01tR"
    dtype += b"(K\x03" + _string(b"<") + none * 3 + minus_one * 2 + b"K\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + _string(b"b") + b"tR"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + _string(blob.tobytes()) + b"tb"


# ---- The original's forward, in float64 ----


def class_scores(found: dict[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """(N, F) outputs of fc7 -> (N, K + 1) probabilities, the background's first."""
    logits = features @ found["cls_score_w"].T.astype(float) + found["cls_score_b"]
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def box_deltas(found: dict[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """(N, F) -> (N, K + 1, 4), the background's first."""
    deltas = features @ found["bbox_pred_w"].T.astype(float) + found["bbox_pred_b"]
    return deltas.reshape(len(features), -1, 4)


def mask_logits(found: dict[str, np.ndarray], rois: np.ndarray) -> np.ndarray:
    """(N, C, 14, 14) RoI features -> (N, K + 1, 28, 28), as ``lib/modeling/mask_rcnn_heads.py``."""
    x = rois.astype(float)
    for layer in range(1, 5):
        x = np.maximum(_convolution(x, found[f"_[mask]_fcn{layer}_w"], found[f"_[mask]_fcn{layer}_b"]), 0)
    weights = found["conv5_mask_w"].astype(float)  # (in, out, 2, 2)
    n, _, h, w = x.shape
    up = np.einsum("nchw,coij->nohiwj", x, weights).reshape(n, weights.shape[1], 2 * h, 2 * w)
    up = np.maximum(up + found["conv5_mask_b"][:, None, None], 0)
    num_rows = len(found["cls_score_w"])
    boxes = found["bbox_pred_w"].reshape(num_rows, -1)
    embeddings = np.concatenate([found["cls_score_w"], boxes], axis=1).astype(float)
    hidden = embeddings @ found["bbox2mask_mlp_l1_w"].T + found["bbox2mask_mlp_l1_b"]
    hidden = np.where(hidden > 0, hidden, 0.1 * hidden)
    predicted = hidden @ found["mask_fcn_logits_w_flat_w"].T + found["mask_fcn_logits_w_flat_b"]
    fcn = np.einsum("nchw,kc->nkhw", up, predicted)
    mlp = up.reshape(n, -1) @ found["mask_mlp_logits_raw_w"].T.astype(float)
    mlp = mlp + found["mask_mlp_logits_raw_b"]
    return fcn + mlp.reshape(n, 1, 2 * h, 2 * w)


def _convolution(x: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3 x 3, padded by 1."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weights.astype(float)) + bias[:, None, None]
