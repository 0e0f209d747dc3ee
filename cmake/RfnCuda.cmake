# Finds nvcc and chooses what it compiles for. -DCMAKE_CUDA_ARCHITECTURES=... chooses others.
# Binaries run on later GPUs of the same major number; PTX (of a number without -real) on all later GPUs, compiled by
# the driver at first use. CUDA 13 compiles for 7.5 and later only, and knows 10.0 and 12.0.
if(NOT DEFINED CACHE{CMAKE_CUDA_ARCHITECTURES})
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # while CMake finds out which compiler there is
  enable_language(CUDA)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13)
    set(CMAKE_CUDA_ARCHITECTURES 70-real 80-real 90)
  else()
    set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 90 100-real 120-real)
  endif()
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
