"""A study's report: README.md, plots and one HTML page, from its recorded results alone.

`write_report.py` puts the parts together (`mgsr report`). `evidence.py` reads and checks the results that all
other modules are given. `answers.py` says in words what they show; `score_tables.py`, `cost_tables.py`,
`text_table.py` and `learned_bounds.py` make the tables, of the type in `table.py`; `plots.py` draws, `page.py` is
the HTML. `shared_runs.py` finds the runs that other studies report too.

A new column goes to the module of its table, a new table to `all_tables` in `score_tables.py`. No verdict is
computed here (`study/verdicts.py`), and no run folder is read. The same results give the same bytes.

Begin with `contents` in `write_report.py`, then `evidence.py`.
"""
