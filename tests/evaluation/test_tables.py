from maskx_d2.evaluation.average_precision import METRICS
from maskx_d2.evaluation.tables import comparison_table, group_table


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


def test_comparison_has_a_row_for_each_run_and_a_dash_for_what_is_undefined():
    other = results(1.0)
    other["segm"]["B"]["AP"] = float("nan")
    head, first, second = cells(comparison_table({"one": results(0.0), "two": other}))
    assert head[1:4] == ["mask AP on A", "mask AP on B", "mask AP on all"]
    assert first == ["one", "0.0", "10.0", "20.0", "100.0", "110.0", "120.0"]
    assert second[:3] == ["two", "1.0", "-"]
