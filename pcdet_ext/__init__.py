"""pcdet_ext: 3D object detection in LiDAR point clouds with sparse voxel sequence backbones."""
