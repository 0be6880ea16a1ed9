"""The configuration: one typed tree of every key, and the way from a YAML file to it.

    defaults of the schema + configs/<name>.yaml + a study's arm + key=value  ->  a checked ExperimentConfig

`schema` has the tree, each key with its type, its default and a line that says what it does. `keys` has the
declarations that it is written in. `load` reads files and overrides, and refuses whatever it does not know, with
the file and the line. `checks` refuses values that contradict one another.

Nothing here builds a model, opens data or imports torch: a configuration is read before any of that. What a key
means for the computation stands where it is computed.

Begin with `schema`; to add a key, add it there.
"""

from mgsr.config.load import load_config

__all__ = ["load_config"]
