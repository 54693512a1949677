"""Jobs that something happens to, under the launcher's own rules.

cells.py    what happens, when and to whom; which cells are chosen
victim.py   inside the processes of a job: the event at its moment, and what they note
hook/       has Python call victim.py at its start
job.py      a cell is run, as a user would
verdict.py  whether it ended as it should
report.py   docs/failures.md
"""
