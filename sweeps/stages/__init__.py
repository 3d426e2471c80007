"""sweeps/stages"""
