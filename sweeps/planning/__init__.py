"""sweeps/planning"""
