"""sweeps/bench"""
