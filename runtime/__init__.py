"""On the vehicle: twelve camera frames in, a trajectory out. Pure Python over one engine."""
