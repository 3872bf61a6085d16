"""The mini world: a seeded procedural benchmark of ten categories in the formats of the real benchmarks."""

from dataset.mini.categories import CATEGORIES, Category
from dataset.mini.render import SPLITS, Scene, SceneObject, instance_seed, render_scene

__all__ = ["CATEGORIES", "SPLITS", "Category", "Scene", "SceneObject", "instance_seed", "render_scene"]
