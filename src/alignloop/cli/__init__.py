"""alignloop.cli"""
