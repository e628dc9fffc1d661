"""The CUDA side of the compiler: nvcc or NVRTC, generated kernels, checks of PTX and SASS."""
