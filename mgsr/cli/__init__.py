"""The command line: `mgsr train`, `evaluate`, `export`, `ablate`, `report`, `doctor`, `plan`, `texts`, `config`.

`arguments` has the parser, `help` what `--help` says, `main` one short function per command, `console` the tables
in the terminal. `evaluate` and `revisions` do the work of `mgsr evaluate` and `mgsr texts`.

Nothing here computes a loss, trains or writes a run: a command reads its words, calls one function of the folders
below, and prints what comes back. `main` alone turns errors into one line and an exit code. What needs torch is
imported by the command that uses it, so that `mgsr --help` answers at once.

Begin with `main`.
"""
