"""Sampling replies from a policy with a slot-based cache of keys and values."""

from tercet.rollout.engine import Engine, Rollout, generate

__all__ = ["Engine", "Rollout", "generate"]
