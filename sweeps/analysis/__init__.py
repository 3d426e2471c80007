"""sweeps/analysis"""
