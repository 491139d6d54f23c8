"""Measuring the library: speeds of operations against their references and against other libraries.

A module of `MODULES` registers benchmarks (`registry.benchmark`), `timing` measures, `report` prints and writes.
"""

MODULES = (
    "pcdet_ext.benchmark.voxels",
    "pcdet_ext.benchmark.sequences",
    "pcdet_ext.benchmark.octrees",
    "pcdet_ext.benchmark.scans",
    "pcdet_ext.benchmark.boxes",
    "pcdet_ext.benchmark.sparse_conv",
    "pcdet_ext.benchmark.maps",
)
