"""What a run will cost and need, computed before anything is written: the verb `plan` and the checks of `run`.

`table` prints the plan, `requirements` refuses interventions without planned probes, `cluster_costs` prices clusters at
`rates`, and `measured` holds the rates of cards.
"""
