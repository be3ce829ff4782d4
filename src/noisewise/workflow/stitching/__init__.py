"""Two checkpoints as one: sweep the point at which a small network hands over to a large one. Nothing is trained."""
