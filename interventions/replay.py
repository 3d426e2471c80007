"""Replays a recipe, or makes one from a single prompt for play."""

from __future__ import annotations

from dataclasses import replace

from interventions.recipe import Recipe
from interventions.worker import EditTask, Intervener, Outcome


def replay(recipe: Recipe, intervener: Intervener) -> Outcome:
    """Makes the recipe's pictures again, in the same batches, hence to the same pixels on the same device.

    Raises ValueError where the recipe was made with another model than `intervener` has.
    """
    model = intervener.about.get("model", "")
    if recipe.model and model and recipe.model != model:
        raise ValueError(f"intervention file: made with model {recipe.model}, this is {model}; load that one")
    config = replace(intervener.config, guidance=recipe.guidance, rows=recipe.rows, seed=recipe.draw_seed)
    worker = replace(intervener, config=config)
    if recipe.sample is None:
        original = worker.fresh(recipe.prompt, recipe.seed)
    else:
        original = worker.original(recipe.sample)
    task = EditTask(recipe.draw_sample, 0, recipe.spec.task, recipe.spec, recipe.controls, "play")
    return worker.run(task, original, recipe.goals, stored=recipe.sample is not None)
