"""Fine-tuning encoders: adversarially, so that they hold under tampering, and on human judgements.

A recipe and a folder of images go in, a folder that :meth:`robustsim.RobustSim.from_pretrained` reads comes out::

    train("fare-lite", "photographs", "my-metric", changes=["steps=2000"])
    metric = RobustSim.from_pretrained("my-metric")

Methods are data and pure functions (:mod:`robustsim.training.methods`, :mod:`robustsim.training.losses`), recipes are
YAML (:mod:`robustsim.training.recipe`), and a run that was stopped goes on to the same weights, bit for bit.
"""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.training.attention import complementary_attention, text_guided_attention
    from robustsim.training.classes import image_classes, load_classes, save_classes, text_classes
    from robustsim.training.interpolation import interpolate_encoders
    from robustsim.training.methods import METHODS, Classes, Method, Views
    from robustsim.training.recipe import FinetuneRecipe, TrainRecipe
    from robustsim.training.recipe_files import dump_recipe, list_recipes, load_recipe
    from robustsim.training.run import finetune, train
    from robustsim.training.signals import Stopped
    from robustsim.training.sources import Sample, Source, open_source

__all__ = [  # noqa: RUF022 - in plain order, as everywhere
    "Classes",
    "FinetuneRecipe",
    "METHODS",
    "Method",
    "Sample",
    "Source",
    "Stopped",
    "TrainRecipe",
    "Views",
    "complementary_attention",
    "dump_recipe",
    "finetune",
    "image_classes",
    "interpolate_encoders",
    "list_recipes",
    "load_classes",
    "load_recipe",
    "open_source",
    "save_classes",
    "text_classes",
    "text_guided_attention",
    "train",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Classes": "methods",
        "FinetuneRecipe": "recipe",
        "METHODS": "methods",
        "Method": "methods",
        "Sample": "sources",
        "Source": "sources",
        "Stopped": "signals",
        "TrainRecipe": "recipe",
        "Views": "methods",
        "complementary_attention": "attention",
        "dump_recipe": "recipe_files",
        "finetune": "run",
        "image_classes": "classes",
        "interpolate_encoders": "interpolation",
        "list_recipes": "recipe_files",
        "load_classes": "classes",
        "load_recipe": "recipe_files",
        "open_source": "sources",
        "save_classes": "classes",
        "text_classes": "classes",
        "text_guided_attention": "attention",
        "train": "run",
    },
)
