"""The command line: `main.main` is the entry point, `verbs` declares a verb, `commands` and `jobs` hold all verbs.

`status`, `compare`, `play` and `recompute` produce what their verbs print. Nothing else imports this package.
"""
