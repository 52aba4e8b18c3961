"""The miniature AutoVLA: a small driving world, its expert, the model that is trained there."""
