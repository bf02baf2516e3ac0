import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("visual_genome_end_to_end.py")


def test_from_raw_files_of_visual_genome_to_masks_of_3001_classes(coco_mini, tmp_path):
    output, coco = tmp_path / "output", tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (coco / split).symlink_to(coco_mini / split)
        content = json.loads((coco_mini / "annotations" / f"instances_{split}.json").read_text())
        if split == "val2017":  # to evaluate on few
            content["images"] = content["images"][:10]
            kept = {image["id"] for image in content["images"]}
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        (coco / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    smallest = ["--iterations", "3", "--side", "64", "--pictures", "2", "--min-score", "0.0004"]
    done = subprocess.run(
        [
            sys.executable,
            str(PROGRAM),
            *("--coco", str(coco), "--output", str(output), *smallest),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    train = json.loads((output / "datasets" / "visual_genome" / "vg3k_train.json").read_text())
    assert len(train["categories"]) == 3001
    assert sum(c["instance_count"] for c in train["categories"]) == len(train["annotations"]) > 1000
    # Stage 2 trains masks and nothing else, on COCO; the mixed run everything.
    for run, num_losses in (("stage_1", 4), ("mixed", 5)):
        lines = [json.loads(line) for line in (output / run / "metrics.json").read_text().splitlines()]
        assert sum(name.startswith("loss_") for name in lines[-1]) == num_losses, lines[-1]
    genome = json.loads((output / "inference" / "inference" / "ap_by_group.json").read_text())
    coco = json.loads(
        (output / "inference" / "inference" / "coco_2017_val_vg3k" / "ap_by_group.json").read_text()
    )
    # Visual Genome has boxes of all classes and no masks, COCO has masks of its own.
    assert set(genome) == {"bbox"}
    assert set(genome["bbox"]) == {"A", "B", "all", "frequent", "common", "rare"}
    assert set(coco) == {"bbox", "segm"} and set(coco["segm"]) == {"A", "B", "all"}
    assert all(genome["bbox"][group]["AP"] is not None for group in genome["bbox"])
    assert coco["segm"]["A"]["AP"] is not None
    found = json.loads((output / "pictures" / "coco_instances_results.json").read_text())
    assert max(detection["category_id"] for detection in found) > 80
    assert all("segmentation" in detection for detection in found)
    assert len(list((output / "pictures").glob("*.png"))) == 2
