"""alignloop.rollout"""
