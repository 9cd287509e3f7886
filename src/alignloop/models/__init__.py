"""alignloop.models"""
