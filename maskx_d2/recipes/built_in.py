"""The recipes that cross-validation compares."""

from dataclasses import replace

from maskx_d2.method import Recipe

BASELINE = "class_agnostic"
_BOXES = {"projection": 0.3, "pairwise": 0.3}
_REGULARISED = {"class_embedding": "cls", "embedding_dropout": 0.5}

RECIPES = {
    BASELINE: Recipe("class-agnostic", predictor="agnostic"),
    "maskx_as_in_the_paper": Recipe(
        "Mask^X as in the paper", class_embedding="cls+box", mlp_layers=1, mlp_reduced_channels=8
    ),
    "maskx": Recipe("Mask^X", **_REGULARISED),
    "class_agnostic_box_supervised": Recipe(
        "class-agnostic, box-supervised", predictor="agnostic", box_supervision=_BOXES
    ),
    "maskx_box_supervised": Recipe("Mask^X, box-supervised", **_REGULARISED, box_supervision=_BOXES),
}
"""By name, the simplest first."""

WITH_TEACHER = {
    f"{name}_with_teacher": replace(
        RECIPES[name], title=f"{RECIPES[name].title}, with teacher", teacher={"weight": 1.0}
    )
    for name in ("class_agnostic_box_supervised", "maskx_box_supervised")
}
"""Recipes that also learn from masks by a teacher."""
