"""sweeps/report"""
