"""Fine-tuning encoders: adversarially, so that they hold under tampering, and on human judgements.

A recipe and a folder of images go in, a folder that [`from_pretrained`][robustsim.RobustSim.from_pretrained] reads
comes out:

```python
train("fare-lite", "photographs", "my-metric", changes=["steps=2000"])
metric = RobustSim.from_pretrained("my-metric")
```

Methods are data and pure functions (`robustsim.training.methods`), recipes are YAML (`robustsim.training.recipes`), and
a run that was stopped goes on to the same weights, bit for bit.
"""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.encoders.attention import complementary_attention, text_guided_attention
    from robustsim.encoders.interpolation import interpolate_encoders
    from robustsim.training.loop.signals import Stopped
    from robustsim.training.methods.table import METHODS, Classes, Method, Views
    from robustsim.training.recipes.files import dump_recipe, list_recipes, load_recipe
    from robustsim.training.recipes.recipe import FinetuneRecipe, TrainRecipe
    from robustsim.training.run import finetune, train
    from robustsim.training.sources.base import Sample, Source
    from robustsim.training.sources.open import open_source
    from robustsim.training.tasks.classes import image_classes, load_classes, save_classes, text_classes

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
        "Classes": "methods.table",
        "FinetuneRecipe": "recipes.recipe",
        "METHODS": "methods.table",
        "Method": "methods.table",
        "Sample": "sources.base",
        "Source": "sources.base",
        "Stopped": "loop.signals",
        "TrainRecipe": "recipes.recipe",
        "Views": "methods.table",
        "complementary_attention": ".encoders.attention",
        "dump_recipe": "recipes.files",
        "finetune": "run",
        "image_classes": "tasks.classes",
        "interpolate_encoders": ".encoders.interpolation",
        "list_recipes": "recipes.files",
        "load_classes": "tasks.classes",
        "load_recipe": "recipes.files",
        "open_source": "sources.open",
        "save_classes": "tasks.classes",
        "text_classes": "tasks.classes",
        "text_guided_attention": ".encoders.attention",
        "train": "run",
    },
)
