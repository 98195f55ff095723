"""RLHF in its three classic steps: demonstrations, ranked replies, PPO."""

__version__ = "0.1.0"
