"""alignloop.data"""
