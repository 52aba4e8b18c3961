"""How well an engine plans, and how much another one's plans differ, over recorded scenes."""
