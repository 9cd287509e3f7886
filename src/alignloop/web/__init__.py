"""alignloop.web"""
