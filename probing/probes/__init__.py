"""Linear probes (section 3.1 of the paper) on recorded activations: what they learn, how they are fitted and scored.

Entrance: `fit.fit_site` (fits probes), `converged.fit_converged` (references without an optimiser's budget),
`transfer.transfer` (probes applied at other steps), `surface` (inputs of the surface controls) and `batched.predict`.
`config`, `controls`, `tasks` and `directions` import no heavy library: configuration, plan and report may use them.
"""
