"""alignloop.evaluation"""
