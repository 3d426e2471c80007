"""`scenesweep bench`: every speed is measured beside its baseline in the same run.

`suite` is the entrance (names of benches, bars, report) and imports nothing heavy; it loads the bench that is asked
for. `gpu` measures a card within a time limit. `paired` defines the rows that all benches return; `paper_loop` is the
slow baseline of `probes`.
"""
