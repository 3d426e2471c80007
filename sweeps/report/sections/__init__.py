"""sweeps/report/sections"""
