"""alignloop.pipeline"""
