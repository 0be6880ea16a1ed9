"""The configuration: one typed tree of every key, and the way from a YAML file to it.

    defaults of the schema + configs/<name>.yaml + a study's arm + key=value  ->  a checked ExperimentConfig

`schema` has the tree, in three files: each key with its type, its default, its bounds and a line that says what
it does. `keys` has the declarations that it is written in. `yaml_reader` keeps what was written, `layers` reads it
by the type of the key, with its place, and `load` puts files and overrides together. `values` and `checks` refuse
what is out of range or contradicts another; `origin` says where a value was written.

Nothing here builds a model, opens data or imports torch: a configuration is read before any of that. What a key
means for the computation stands where it is computed.

Begin with `schema`; to add a key, add it there: a number with both bounds.
"""

from mgsr.config.load import load_config

__all__ = ["load_config"]
