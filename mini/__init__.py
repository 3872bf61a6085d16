"""The mini world: a rendered benchmark in the layouts of the real ones, and the recipe of its small networks."""
