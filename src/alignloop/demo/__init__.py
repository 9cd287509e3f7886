"""alignloop.demo"""
