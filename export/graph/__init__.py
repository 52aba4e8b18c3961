"""The model, described once over a small operation vocabulary and lowered by dialects."""
