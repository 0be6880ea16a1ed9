"""The command line: `mgsr init`, `train`, `evaluate`, `export`, `ablate`, `report`, `doctor`, `plan`, `texts`,
`config` and `completion`.

`arguments` has the parser, `parsing` what it makes of a line of words, `help` what `--help` says, `main` one short
function per command, `console` the tables in the terminal. `answer` is what ends a command: an exit code, or one
line. `streams` makes output safe to write, `hints` says what somebody meant. `evaluate`, `revisions` and
`completion` do the work of `mgsr evaluate`, `mgsr texts` and `mgsr completion`; `ending` is what `mgsr train` says
when it is done.

Nothing here computes a loss, trains or writes a run: a command reads its words, calls one function of the folders
below, and prints what comes back. `answer` alone turns errors into one line and an exit code. What needs torch is
imported by the command that uses it, so that `mgsr --help` answers at once.

Begin with `main`.
"""
