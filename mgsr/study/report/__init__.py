"""A study's report: one screen for its question, everything else under a fold.

`words` says the verdict in a sentence, `tables` and `plots` show it, `why` has what may explain it, `content` puts
together what a page holds, and `write` fills the templates: README.md, report.html, and an index over all studies.

Never here: runs, models, or a figure that no recorded run holds. Begin with `content`.
"""
