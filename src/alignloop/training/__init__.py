"""alignloop.training"""
