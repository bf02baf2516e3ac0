from maskx_d2.evaluation.average_precision import METRICS
from maskx_d2.evaluation.tables import gain_table, group_table, mean_and_deviation


def results(offset):
    return {
        task: {
            group: {m: offset + 100 * t + 10 * g + i for i, m in enumerate(METRICS)}
            for g, group in enumerate(("A", "B", "all"))
        }
        for t, task in enumerate(("segm", "bbox"))
    }


def cells(table):
    lines = table.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in [lines[0], *lines[2:]]]


def test_group_table_has_each_task_and_side():
    head, *rows = cells(group_table(results(0.25)))
    assert head == ["", "classes", *METRICS]
    assert rows[1] == ["mask", "B: boxes only", "10.2", "11.2", "12.2", "13.2", "14.2", "15.2"]
    assert rows[5][:3] == ["box", "all", "120.2"]
    assert len(rows) == 6


def test_thirds_of_the_classes_have_rows_where_they_are_known():
    boxes = results(0)["bbox"]
    table = group_table(
        {"bbox": {**boxes, "frequent": boxes["A"], "common": boxes["B"], "rare": boxes["A"]}}
    )
    assert [row[1] for row in cells(table)[4:]] == ["frequent third", "middle third", "rare third"]


def test_detector_without_masks_has_box_rows_only():
    boxes = {"bbox": results(0)["bbox"]}
    assert [row[0] for row in cells(group_table(boxes))[1:]] == ["box"] * 3


def test_gains_have_a_row_for_each_run_and_a_dash_for_what_is_undefined():
    undefined = results(1.0)
    undefined["segm"]["B"]["AP"] = float("nan")
    runs = {"one": results(0.0), "two": results(2.5), "three": undefined}
    head, *rows = cells(gain_table([runs]))
    assert head == ["", "mask AP on A", "mask AP on B", "mask AP on all", "gain on B over one"]
    assert rows[0] == ["one", "0.0", "10.0", "20.0", "-"]
    assert rows[1] == ["two", "2.5", "12.5", "22.5", "+2.5"]
    assert rows[2] == ["three", "1.0", "-", "21.0", "-"]


def test_of_several_seeds_gains_are_paired():
    """The runs vary by what they share; their difference does not."""
    seeds = [{"one": results(offset), "two": results(offset + 3)} for offset in (0, 2, 4)]
    _, one, two = cells(gain_table(seeds))
    assert one[1] == "2.0 ± 2.0" and two[2] == "15.0 ± 2.0" and two[4] == "+3.0 ± 0.0"
    mean, deviation = mean_and_deviation(seeds)
    assert mean["two"] == results(5)
    assert deviation["one"]["bbox"]["all"]["APl"] == 2
    seeds[1]["one"]["segm"]["A"]["AP"] = None
    mean, deviation = mean_and_deviation(seeds)
    assert mean["one"]["segm"]["A"]["AP"] is None and deviation["one"]["segm"]["A"]["AP"] is None
