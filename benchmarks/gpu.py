#!/usr/bin/env python3
"""
All that is worth measuring on a GPU, in nine minutes on one: training steps, with and without AMP, stage 2,
inference, the parts of the mask branch and the box predictor, both backends, how often a step waits for the
GPU, and whether CPU and GPU find the same.

Images are noise, or the first ones of --images; objects and weights are made up. Each figure is a ratio of
medians to the first model of its table, the models timed in turn. Every part runs in a process of its own
and may fail, or be out of time, without the others; what there is is in the JSON after each part. On a CPU,
at a small size, it tests itself.
"""

import argparse
import functools
import json
import math
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from benchmark_tools import (
    detectron2_calls,
    detectron2_models,
    detects_everywhere,
    medians,
    peak_mib,
    same_detector,
    standing_still,
    tame,
    targets,
    torchvision_calls,
    torchvision_models,
    training_step,
)
from tabulate import tabulate
from torchvision.transforms.v2.functional import pil_to_tensor

from maskx_d2.data.files import write_json
from maskx_d2.data.images import read_image
from maskx_d2.inference.predict import find_images
from maskx_d2.runtime.configs import config_file

MASKX, STOCK = "maskx_R_50_FPN_1x.yaml", "mask_rcnn_R_50_FPN_1x.yaml"
WITHOUT_MLP = ["MODEL.ROI_MASK_HEAD.MLP_BRANCH.NUM_LAYERS", 0]
MODELS = {
    "Mask R-CNN": (STOCK, []),
    "class-agnostic": ("class_agnostic_R_50_FPN_1x.yaml", []),
    "Mask^X without MLP branch": (MASKX, WITHOUT_MLP),
    "Mask^X": (MASKX, []),
}
STAGE_2 = "maskx_stage_wise_R_50_FPN_1x.yaml"
MANY_CLASSES = "visual_genome/maskx_inference_R_50_FPN.yaml"
SMALL = [
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 50),
]
RUN_BATCH = 8  # images of a step of the training commands

Rows = list[dict]


# ---- Models and batches ----


def build(config: str, overrides: list, args: argparse.Namespace) -> torch.nn.Module:
    """Random weights, by which every image has as many detections as there may be."""
    from detectron2.modeling import build_model

    from maskx_d2.backends.detectron2.config import load_config

    settings = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", str(args.device), "DATASETS.CLASSES_WITH_MASKS", "all"]
    torch.manual_seed(0)
    model = build_model(load_config(str(config_file(config)), [*settings, *_size(args), *overrides]))
    tame(model)
    # The frozen detector of stage 2 wants to be given weights.
    model.load_state_dict(model.state_dict())
    detects_everywhere(model.roi_heads.box_predictor.cls_score.bias)
    return model


def _size(args: argparse.Namespace) -> list:
    return SMALL if args.small else []


def images_of(args: argparse.Namespace) -> list[torch.Tensor]:
    """(3, height, width) in [0, 1]."""
    if args.images is None:
        generator = torch.Generator().manual_seed(0)
        return list(torch.rand(args.batch, 3, args.height, args.width, generator=generator))
    paths = find_images([args.images])[: args.batch]
    if len(paths) < args.batch:
        raise ValueError(f"{args.images} has {len(paths)} images, expected {args.batch}")
    resized = (read_image(path).resize((args.width, args.height)) for path in paths)
    return [pil_to_tensor(image) / 255 for image in resized]


def objects_of(args: argparse.Namespace) -> list[dict]:
    return targets(args.batch, args.height, args.width, args.objects)


def moved(objects: list[dict], device: torch.device) -> list[dict]:
    return [{name: value.to(device) for name, value in of_image.items()} for of_image in objects]


def with_amp(losses: Callable, device: torch.device) -> Callable:
    """As Detectron2's AMPTrainer; a CPU has no float16."""
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16

    def in_low_precision() -> dict:
        with torch.autocast(device.type, dtype=dtype):
            return losses()

    return in_low_precision


def scaled_step(losses: Callable, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    optimizer.zero_grad()
    scaler.scale(sum(losses().values())).backward()
    scaler.step(optimizer)
    scaler.update()


def rows_of(functions: Mapping[str, Callable], args: argparse.Namespace, **more) -> Rows:
    """Time and peak memory of each, and their ratios to the first."""
    times = medians(functions, args.repeats, device=args.device, warm_up=not args.small)
    memory = {}
    if args.device.type == "cuda":
        memory = {name: peak_mib(function, args.device) for name, function in functions.items()}
    first = next(iter(functions))
    return [
        {
            **more,
            "model": name,
            "ms": 1e3 * seconds,
            "ratio": seconds / times[first],
            "MiB": memory.get(name),
            "ratio of memory": memory[name] / max(memory[first], 1) if memory else None,
        }
        for name, seconds in times.items()
    ]


# ---- Parts ----


def training(args: argparse.Namespace) -> Rows:
    images, objects = images_of(args), objects_of(args)
    rows = []
    for amp in (False, True):
        steps = {}
        for name, (config, overrides) in MODELS.items():
            model = build(config, overrides, args).train()
            losses, _ = detectron2_calls(model, images, objects)
            optimizer = standing_still(model)
            if amp:
                scaler = torch.amp.GradScaler(args.device.type, enabled=args.device.type == "cuda")
                low = with_amp(losses, args.device)
                steps[name] = functools.partial(scaled_step, low, optimizer, scaler)
            else:
                steps[name] = functools.partial(training_step, losses, optimizer)
        rows += rows_of(steps, args, AMP=amp)
    return rows


def stage_2(args: argparse.Namespace) -> Rows:
    images, objects = images_of(args), objects_of(args)
    rows = []
    for title, overrides in (("with MLP branch", []), ("without", WITHOUT_MLP)):
        steps = {}
        for name, config in (("end to end", MASKX), ("stage 2", STAGE_2)):
            model = build(config, overrides, args).train()
            losses, _ = detectron2_calls(model, images, objects)
            steps[name] = functools.partial(training_step, losses, standing_still(model))
        rows += rows_of(steps, args, form=title)
    return rows


def inference(args: argparse.Namespace) -> Rows:
    """Beside the times parameters and, where they can be counted, operations of an image."""
    from detectron2.utils.analysis import FlopCountAnalysis, parameter_count

    image = images_of(args)[0]
    inputs = [{"image": 255 * image, "height": args.height, "width": args.width}]
    models = {
        **{f"{name}, K = 80": build(*config, args) for name, config in MODELS.items()},
        "Mask^X, K = 3001": build(MANY_CLASSES, [], args),
        "Mask^X, K = 3001, all boxes": build(
            MANY_CLASSES, ["MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION", False], args
        ),
        "Mask R-CNN, K = 3001": build(STOCK, ["MODEL.ROI_HEADS.NUM_CLASSES", 3001], args),
    }
    functions = {n: torch.no_grad()(functools.partial(m.eval(), inputs)) for n, m in models.items()}
    rows = rows_of(functions, args)
    for row in rows:
        model = models[row["model"]]
        row["detections"] = len(functions[row["model"]]()[0]["instances"])
        row["million parameters"] = parameter_count(model)[""] / 1e6
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            operations = FlopCountAnalysis(model, inputs)
            operations.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            row["GFLOP"] = operations.total() / 1e9
    return rows


def mask_predictor(args: argparse.Namespace) -> Rows:
    """100 RoIs: mask weights gathered by class, against the masks of all classes."""
    from mask_predictor import both_ways

    features = torch.randn(4 if args.small else 100, 256, 28, 28, device=args.device)
    rows = []
    for num_classes in (80, 3001):
        gathered, all_classes = both_ways(num_classes, features)
        rows += rows_of({"all classes": all_classes, "gathered": gathered}, args, K=num_classes)
    return rows


def mask_head(args: argparse.Namespace) -> Rows:
    """100 RoIs in inference and 128 in a training step, against Detectron2's head with 80 classes."""
    from mask_head import detected, infer, maskx_head, matched, stock_head, train

    device, rows = args.device, []
    heads = {"Detectron2, K = 80": (stock_head(80).to(device), 80)}
    forms = (("Mask^X without MLP branch", 0), ("Mask^X", 1))[: 1 if args.small else 2]
    for form, mlp_layers in forms:
        for num_classes in (80, 3001):
            head = maskx_head(num_classes, mlp_layers=mlp_layers, device=device)
            heads[f"{form}, K = {num_classes}"] = head, num_classes
    for title, run, instances_of, num_rois in (
        ("inference", infer, detected, 2 if args.small else 100),
        ("training", train, matched, 2 if args.small else 128),
    ):
        features = torch.randn(num_rois, 256, 14, 14, device=device)
        functions = {}
        for name, (head, num_classes) in heads.items():
            instances = instances_of(num_rois, num_classes, device)
            if title == "inference":
                functions[name] = functools.partial(run, head.eval(), features, instances)
            else:
                optimizer = standing_still(head)
                functions[name] = functools.partial(run, head, optimizer, features, instances)
        for head, _ in heads.values():
            head.train(title == "training")
        rows += rows_of(functions, args, mode=title)
    return rows


def box_predictor(args: argparse.Namespace) -> Rows:
    """1,000 proposals, of a picture with 60 classes."""
    from box_predictor import both_predictors, features_of_a_picture, proposals_of_a_picture

    torch.manual_seed(0)
    proposals = proposals_of_a_picture(1000, args.device)
    rows = []
    for num_classes in (80, 3001):
        stock, gathered = both_predictors(num_classes, args.device)
        features = features_of_a_picture(
            stock.cls_score.weight.detach().cpu(), 1000, num_present=60, background=0.5
        ).to(args.device)

        def detect(predictor, features=features):
            return predictor.inference(predictor(features), [proposals])

        predictors = {"Detectron2": stock, "gathered": gathered}
        functions = {n: torch.no_grad()(functools.partial(detect, p)) for n, p in predictors.items()}
        rows += rows_of(functions, args, K=num_classes)
    return rows


def backends(args: argparse.Namespace) -> Rows:
    images, objects = images_of(args), objects_of(args)
    small = {"depth": 18, "few_rois": True, "mlp_reduced_channels": 4} if args.small else {}
    on_device = [image.to(args.device) for image in images], moved(objects, args.device)
    models = {
        name: (model.to(args.device), torchvision_calls(model, *on_device))
        for name, model in same_detector(torchvision_models(args.height, args.width, **small)).items()
    }
    if find_spec("detectron2") is not None:
        for name, model in same_detector(detectron2_models(args.height, args.width, _size(args))).items():
            models[name] = model.to(args.device), detectron2_calls(model, images, objects)
    steps, inferences = {}, {}
    for name, (model, (losses, detections)) in models.items():
        tame(model)
        steps[name] = functools.partial(training_step, losses, standing_still(model))
        inferences[name] = torch.no_grad()(detections)
    rows = []
    for title, functions in (("training step", steps), ("inference", inferences)):
        for model, _ in models.values():
            model.train(title == "training step")
        rows += rows_of(functions, args, mode=title)
    return rows


def waits(args: argparse.Namespace) -> Rows:
    """How often a training step waits for the GPU, as torch tells."""
    if args.device.type != "cuda":
        raise ValueError("only a GPU is waited for")
    images, objects = images_of(args), objects_of(args)
    rows = []
    for name, (config, overrides) in MODELS.items():
        model = build(config, overrides, args).train()
        losses, _ = detectron2_calls(model, images, objects)
        step = functools.partial(training_step, losses, standing_still(model))
        step()
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            step()
            torch.cuda.set_sync_debug_mode("default")
        number = sum("synchroniz" in str(warning.message) for warning in caught)
        rows.append({"model": name, "waits": number})
    return rows


def runs(args: argparse.Namespace) -> Rows:
    """
    The real training commands of both backends, with AMP on a GPU, on generated images: a small model with
    group normalisation from scratch, then its evaluation.
    """
    from maskx_d2.backends.detectron2 import command_line as on_detectron2
    from maskx_d2.backends.torchvision import command_line as on_torchvision
    from maskx_d2.demo import shapes
    from maskx_d2.demo.on_detectron2 import registrations

    is_gpu, steps = args.device.type == "cuda", 2 if args.small else 40
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = shapes.generate(
            folder / "dataset", num_train=RUN_BATCH * steps, num_test=4 if args.small else 40, seed=0
        )
        split = dataset.split_file.resolve()
        for backend, main, words in (
            (
                "Detectron2",
                on_detectron2.main,
                [
                    *("--config-file", config_file("demo/maskx_end_to_end_R_18_FPN.yaml")),
                    *("DATASETS.MASKX_REGISTER", registrations(dataset)),
                    *("OUTPUT_DIR", folder / "Detectron2"),
                    *("DATASETS.CLASSES_WITH_MASKS", split, "MODEL.DEVICE", args.device.type),
                    *("SOLVER.MAX_ITER", steps, "SOLVER.WARMUP_ITERS", 5, "SOLVER.AMP.ENABLED", is_gpu),
                    *("SOLVER.IMS_PER_BATCH", RUN_BATCH, "SOLVER.REFERENCE_WORLD_SIZE", 0),
                ],
            ),
            (
                "torchvision",
                on_torchvision.main,
                [
                    *("fit", "--config", config_file("torchvision/small_resnet18_fpn.yaml")),
                    *("--data.train_json", dataset.train_json, "--data.train_images", dataset.train_images),
                    *("--data.val_json", dataset.test_json, "--data.val_images", dataset.test_images),
                    *("--data.classes_with_masks", split, "--data.batch_size", RUN_BATCH),
                    *("--trainer.default_root_dir", folder / "torchvision", "--trainer.max_steps", steps),
                    *("--trainer.accelerator", "gpu" if is_gpu else "cpu", "--trainer.devices", 1),
                    *("--trainer.precision", "16-mixed" if is_gpu else "32", "--model.warmup_steps", 5),
                    *("--trainer.log_every_n_steps", 1, "--model.box_score_thresh", 0.0),
                ],
            ),
        ):
            if is_gpu:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            main(list(map(str, words)))
            rows.append(
                {
                    "backend": backend,
                    "seconds, with evaluation": time.perf_counter() - start,
                    "MiB": torch.cuda.max_memory_allocated() / 2**20 if is_gpu else None,
                    **_outcome(folder / backend),
                }
            )
    return rows


def _outcome(run: Path) -> dict:
    """Losses and AP of a run; the losses must be finite."""
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    if not losses or not all(map(math.isfinite, losses)):
        raise ValueError(f"losses of {run.name} are {losses}, expected finite ones")
    ap = json.loads((run / "inference" / "ap_by_group.json").read_text())
    of_task = {f"{task} AP": ap[task]["all"]["AP"] for task in ("bbox", "segm")}
    return {"first loss": losses[0], "last loss": losses[-1], **of_task}


def predict(args: argparse.Namespace) -> Rows:
    """Images per second of ``maskx predict`` and of plain loops, see predict_speed.py."""
    import predict_speed

    numbers = (2,) if args.small else (16, 120)
    options = argparse.Namespace(
        depth=18 if args.small else 50,
        min_size=64 if args.small else 800,
        proposals=50 if args.small else 1000,
        objects=20,
        batch_size=1,
        device=str(args.device),
    )
    sizes = predict_speed.SIZES if not args.small else {"small": (96, 64)}
    with tempfile.TemporaryDirectory() as name:
        options.output = Path(name)
        return predict_speed.compared(sizes, numbers, options, apart=False)


def same_as_on_cpu(args: argparse.Namespace) -> Rows:
    """
    Masks of given boxes in full precision, and loss and gradients of the mask head on given RoIs in double
    precision. In full precision the gradient of the deconvolution differs by up to half a percent of its
    largest value, on a CPU from double precision too: rounding turns the sign of an activation that is
    nearly zero, one of three million, and ReLU passes its gradient or not.
    """
    import copy

    from detectron2.utils.events import EventStorage
    from mask_head import matched

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    cpu = argparse.Namespace(**{**vars(args), "device": torch.device("cpu")})
    inputs = [{"image": 255 * images_of(args)[0], "height": args.height, "width": args.width}]
    model = build(MASKX, [], cpu).eval()
    torch.nn.init.normal_(model.roi_heads.mask_head.predictor.transfer[-1].weight, std=0.05)
    with torch.no_grad():
        (found,) = model.inference(inputs, do_postprocess=False)
        found.remove("pred_masks")
        (expected,) = model.inference(inputs, [found], do_postprocess=False)
        there = copy.deepcopy(model).to(args.device)
        (moved_there,) = there.inference(inputs, [found.to(args.device)], do_postprocess=False)
    rows = [_difference("masks of given boxes", expected.pred_masks, moved_there.pred_masks, 1e-3)]

    torch.manual_seed(0)
    channels = model.roi_heads.mask_head.mask_fcn1.in_channels
    features = torch.randn(16, channels, 14, 14, dtype=torch.float64)
    rois, outcomes = matched(16, 80, torch.device("cpu")), []
    for part, device in ((model, torch.device("cpu")), (there, args.device)):
        head = part.double().roi_heads.mask_head.train()
        head.zero_grad()
        with EventStorage():
            loss = head(features.to(device), [r.to(device) for r in rois])["loss_mask"]
        loss.backward()
        outcomes.append((loss.detach(), head.predictor.transfer[0].weight.grad, head.deconv.weight.grad))
    names = ("mask loss", "gradient of T", "gradient of the deconvolution")
    for name, here, there_too in zip(names, *outcomes, strict=True):
        rows.append(_difference(name, here, there_too, 1e-9))
    return rows


def _difference(name: str, expected: torch.Tensor, found: torch.Tensor, limit: float) -> dict:
    """Largest difference, relative to the largest value."""
    difference = float((found.cpu() - expected).abs().max() / expected.abs().max())
    return {"quantity": name, "difference": difference, "same": difference < limit}


PARTS = {
    part.__name__: part
    for part in (
        training,
        inference,
        same_as_on_cpu,
        waits,
        stage_2,
        mask_head,
        mask_predictor,
        box_predictor,
        backends,
        runs,
        predict,
    )
}


# ---- Running them ----


def _in_process(name: str, args: argparse.Namespace, results) -> None:
    try:
        torch.set_num_threads(args.threads)
        results.send({"rows": PARTS[name](args)})
    except Exception as error:
        results.send(
            {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        )


def run_part(name: str, args: argparse.Namespace, seconds: float) -> dict:
    """In a process of its own, which an error of CUDA's spoils, and for so long at most."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    start = time.perf_counter()
    process = context.Process(target=_in_process, args=(name, args, sender))
    process.start()
    sender.close()
    try:
        outcome = receiver.recv() if receiver.poll(seconds) else {"failed": f"took over {seconds:.0f} s"}
    except EOFError:
        process.join()
        outcome = {"failed": f"its process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return {**outcome, "seconds": time.perf_counter() - start}


def as_table(rows: Rows) -> str:
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    return tabulate([[row[c] for c in columns] for row in rows], headers=columns, floatfmt=".4g")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/gpu.json"))
    parser.add_argument("--images", type=Path, help="folder of images to measure on; noise if not given")
    parser.add_argument("--batch", type=int, default=2, help="images in a step")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1333)
    parser.add_argument("--objects", type=int, default=8, help="in an image")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="models and images to try the program with")
    parser.add_argument("--minutes", type=float, default=9, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    # In the process that the others are forked off, CUDA must not be started.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(device))
    args = parser.parse_args()
    args.threads = torch.get_num_threads()
    if args.small:
        args.height, args.width, args.batch, args.objects, args.repeats = 64, 96, 1, 2, 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    found = {"setting": {key: str(value) for key, value in vars(args).items()}, "parts": {}}
    found["setting"]["torch"] = torch.__version__
    end = time.perf_counter() + 60 * args.minutes
    for name in args.parts:
        left = end - time.perf_counter()
        outcome = run_part(name, args, left) if left > 0 else {"failed": "no time was left", "seconds": 0.0}
        found["parts"][name] = outcome
        write_json(args.output, found)
        print(f"\n{name}, {outcome['seconds']:.0f} s")
        print(as_table(outcome["rows"]) if "rows" in outcome else f"  {outcome['failed']}", flush=True)
    failed = [name for name, outcome in found["parts"].items() if "failed" in outcome]
    print(f"\n{args.output}: {len(args.parts) - len(failed)} of {len(args.parts)} parts")
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
