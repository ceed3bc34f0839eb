# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Makes `target` what .cu files link to for the headers in blockattn/cuda: `library` and C++20.
# Nothing is linked: CMake links the CUDA runtime of the consumer's choice to what nvcc compiles.
function(blockattn_describe_cuda target library)
  target_link_libraries(${target} INTERFACE ${library})
  if(CMAKE_VERSION VERSION_LESS 3.26)  # which does not know that nvcc 12 and later know C++20
    target_compile_options(${target} INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
  else()
    target_compile_features(${target} INTERFACE cuda_std_20)
  endif()
endfunction()
