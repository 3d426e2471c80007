"""sweeps/cli"""
