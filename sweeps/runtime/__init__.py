"""sweeps/runtime"""
