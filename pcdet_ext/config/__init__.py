"""YAML configurations whose schema is the signature of the classes they build.

A component is a mapping with `name:` and the keyword arguments of its class. Files inherit with `_base_:` (a path or a
list of paths, relative to the file), a mapping is merged key by key, anything else replaces; `_replace_: true` in a
mapping drops what was inherited. Every error names the file and line, the key, and the nearest valid spelling.

Configurations come with the library, named without their ending ("kitti/demo"). `imports: [my_package.my_mixer]` at the
top level of a file names Python modules that are imported when it is loaded, so that the classes they register can be
used. That runs their code: only load configuration files that you trust. What a checkpoint stores runs nothing.
"""

from pcdet_ext.config.construction import construct, errors_name_overrides, setting
from pcdet_ext.config.modules import import_modules, require_modules
from pcdet_ext.config.nodes import ConfigError, Node, require_known_sections, section, suggest
from pcdet_ext.config.reading import find, from_plain, list_models, load, packaged, require_path
from pcdet_ext.config.registry import Registry

__all__ = [
    "ConfigError",
    "Node",
    "Registry",
    "construct",
    "errors_name_overrides",
    "find",
    "from_plain",
    "import_modules",
    "list_models",
    "load",
    "packaged",
    "require_known_sections",
    "require_modules",
    "require_path",
    "section",
    "setting",
    "suggest",
]
