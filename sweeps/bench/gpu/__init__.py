"""`scenesweep bench gpu`: every number of a card within a number of minutes, in one file.

`driver.run` is the entrance and imports no torch. It starts `worker`, which does the pieces of `pieces` in order of
importance, kills it if a piece outlasts its time, and starts it again with the next one. `record` is the file, which is
rewritten after every number. What is measured is in `sampling`, `fitting`, `editing` and `families`.
"""
