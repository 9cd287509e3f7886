"""alignloop.algorithms"""
