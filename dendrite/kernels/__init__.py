"""Triton kernels. Imported on CUDA only, or under the Triton interpreter in tests."""
