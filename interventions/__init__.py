"""Causal interventions: edit activations while an image is sampled, and score whether the scene changes (section 5).

Light modules, which import no torch and which planning and the report use: `config`, `controls`, `counterfactual`,
`plan`, `recipe`, `pictures`, `summary` and `sources.base`. The entrance for workers is `worker.Intervener`, fed by
`sources.stored`. The package imports `storage` and `probing`; `sweeps` imports it.
"""
