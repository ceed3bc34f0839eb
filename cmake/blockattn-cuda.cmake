# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Makes `target` what .cu files link to for the headers in blockattn/cuda: `library` and C++20.
# Nothing is linked: CMake links the CUDA runtime of the consumer's choice to what nvcc compiles.
function(blockattn_describe_cuda target library)
  target_link_libraries(${target} INTERFACE ${library})
  target_compile_features(${target} INTERFACE cuda_std_20)
endfunction()
