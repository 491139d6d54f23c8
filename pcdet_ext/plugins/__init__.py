"""This library inside other code bases: `pcdet_ext.plugins.openpcdet` and `pcdet_ext.plugins.mmdet3d`."""
