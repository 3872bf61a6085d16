"""One file for each kind of figure that script/figure.py draws.

Each has a docstring, the kind's help; `add_arguments(parser)`; and `build(args, columns)`, the figure that shows
{title: checked config}. A new kind is one file and one line here.
"""

from script.figures import correlation, dense, features, generate, matches, timestep

FIGURES = {
    "matches": matches,
    "correlation": correlation,
    "dense": dense,
    "generate": generate,
    "features": features,
    "timestep": timestep,
}
