"""The frozen networks: diffusion, vision, text, and how they are loaded and run."""
