"""sweeps/config"""
