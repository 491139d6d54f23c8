"""Names of what fuses earlier frames with the present one."""

from pcdet_ext.config import Registry

TEMPORAL = Registry("temporal fusion")
