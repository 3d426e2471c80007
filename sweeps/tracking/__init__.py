"""sweeps/tracking"""
