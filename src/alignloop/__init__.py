"""alignloop closes the loop of reinforcement learning from human feedback. Importing it changes nothing."""

__version__ = "0.1.0"
