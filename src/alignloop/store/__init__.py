"""alignloop.store"""
