"""probing/dataset"""
