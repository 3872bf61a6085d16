"""What drives the rest: from the config to objects, training, evaluation, reports, processes."""
