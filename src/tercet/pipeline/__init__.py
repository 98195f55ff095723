"""A recipe's stages in order, each skipped when its configuration and inputs have not changed.

A recipe is one TOML file: `[run]` names the run, and one table a stage says what differs from the
defaults. Stages meet only on disk: each gets, unless the recipe says otherwise, the paths that the
ones before it wrote under `runs/NAME/`.
"""

from tercet.pipeline.loop import run_recipe, run_stage

__all__ = ["run_recipe", "run_stage"]
