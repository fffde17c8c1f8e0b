"""Training: the loop and its jitted step, state, checkpoints, metrics, sizes; and serving what was trained."""
