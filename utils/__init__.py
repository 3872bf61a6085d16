"""Geometry, localisation, PCK, statistics, noise, images, drawing, files of ours: imports nothing of ours."""
