"""The mini world: a seeded procedural benchmark of ten categories in the formats of the real benchmarks."""

from mini.render.categories import CATEGORIES, SPECIES, Category
from mini.render.render import SPLITS, Scene, SceneObject, instance_seed, render_scene

__all__ = ["CATEGORIES", "SPECIES", "SPLITS", "Category", "Scene", "SceneObject", "instance_seed", "render_scene"]
