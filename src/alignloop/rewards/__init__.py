"""alignloop.rewards"""
