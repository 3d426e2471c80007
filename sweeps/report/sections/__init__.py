"""Sections of the report: each function turns a `Context` into a `page.Section` of headings, text, tables and figures.

Sections hold words and numbers only; `report/templates` draws them. Only `report.build` and tests import this package.
"""
