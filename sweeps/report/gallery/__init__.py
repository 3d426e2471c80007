"""Pictures that the report shows: which samples, and what probes and labellers predict for them.

Each module returns plain dataclasses of arrays; `report.context` collects them and `report.sections` lays them out.
"""
