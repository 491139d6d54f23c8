"""Operations on points, voxels and boxes: PyTorch references with native CPU and CUDA kernels behind them."""
