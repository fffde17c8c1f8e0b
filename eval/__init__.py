"""Evaluation: benchmark problems answered by a model, graded, and counted."""
