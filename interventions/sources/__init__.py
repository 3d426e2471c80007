"""interventions/sources"""
