"""Sampling replies from a policy with a slot-based cache of keys and values."""

from tercet.rollout.engine import Rollout, generate

__all__ = ["Rollout", "generate"]
