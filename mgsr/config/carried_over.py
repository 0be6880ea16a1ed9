"""What a file says of its own model, and would be taken for another model that a command or an arm names."""

from __future__ import annotations

from mgsr.config.origin import Layer
from mgsr.config.yaml_reader import at
from mgsr.runtime.errors import ConfigError

_OF_A_MODEL = {
    "gguf_file": "''",
    "revision": "''",
    "trust_remote_code": "false",
    "keep_layers": "[]",
    "lora.target_modules": "[]",
}
"""Keys that hold for one model, and the value that holds for any."""


def refuse_carried_over(base: Layer, layer: Layer) -> None:
    """Refuse what `base` says of its model where another layer has named another model and left it standing.

    Args:
        base: of a file; layer: that file with everything on top of it.

    Raises:
        ConfigError: such a value, with its place and the word that takes it back.
    """
    for role in ("teacher", "student"):
        names = [f"{role}.source"]
        if role == "student" and f"{role}.source" in base and base[f"{role}.source"].value == "teacher":
            names.append("teacher.source")
        changed = [name for name in names if name in base and base[name].value != layer[name].value]
        if not changed:
            continue
        source = changed[0]
        for own, neutral in _OF_A_MODEL.items():
            name = f"{role}.{own}"
            said = base.get(name)
            if said is None or not said.value or layer[name] is not said:
                continue
            raise ConfigError(
                f"{at(said.place)}`{name}` is of {source}={base[source].value}, and {layer[source].place} names "
                f"another model, {layer[source].value}: set {name} for that one too ({name}={neutral}: none)"
            )
