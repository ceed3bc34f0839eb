# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# How tests, examples and benchmarks are compiled. Nothing of this reaches a consumer.

option(BLOCKATTN_NATIVE "Compile tests, examples and benchmarks for this machine's CPU" ON)
option(BLOCKATTN_WERROR "Treat warnings in tests, examples and benchmarks as errors" OFF)
set(BLOCKATTN_SANITIZERS "" CACHE STRING "Sanitizers for the tests: address,undefined or thread")

set(CMAKE_CXX_EXTENSIONS OFF)
find_package(Threads REQUIRED)
find_package(Eigen3 REQUIRED CONFIG)

if(BLOCKATTN_CUDA)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80)  # with code that the driver compiles for whatever is newer
  endif()
  enable_language(CUDA)
  set(CMAKE_CUDA_EXTENSIONS OFF)
endif()

# The strictest warnings that we know strangers to compile the headers with. Clang's -Wdouble-promotion also finds what
# is no arithmetic, `double d = f`: only for what has nothing but headers, see tests/structure.
add_library(blockattn_warnings INTERFACE)
target_compile_options(
  blockattn_warnings
  INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wold-style-cast
            $<$<CXX_COMPILER_ID:GNU>:-Wuseless-cast;-Wdouble-promotion>
            $<$<BOOL:${BLOCKATTN_WERROR}>:-Werror>)

add_library(blockattn_development INTERFACE)
target_link_libraries(blockattn_development INTERFACE blockattn::blockattn blockattn_warnings
                                                      Eigen3::Eigen Threads::Threads)
# Whoever compiles these for an old machine or a debugger knows that they are slow.
target_compile_definitions(blockattn_development INTERFACE BLOCKATTN_ACCEPT_SLOW_BUILD)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC bug 105593: its own AVX-512 intrinsics are reported wherever they are inlined.
  target_compile_options(blockattn_development INTERFACE -Wno-uninitialized
                                                         -Wno-maybe-uninitialized)
endif()

# For .cu files: what is left when nvcc's front end has rewritten static_cast and designated initialisers in C's way.
add_library(blockattn_cuda_warnings INTERFACE)
target_compile_options(
  blockattn_cuda_warnings
  INTERFACE -Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers,-Wconversion,-Wdouble-promotion,-Wshadow
            $<$<BOOL:${BLOCKATTN_WERROR}>:-Xcompiler=-Werror>)

include(CheckCXXCompilerFlag)
check_cxx_compiler_flag(-march=native BLOCKATTN_COMPILER_KNOWS_NATIVE)
set(native "")
if(BLOCKATTN_NATIVE AND BLOCKATTN_COMPILER_KNOWS_NATIVE)
  set(native -march=native)
endif()
# A target that has the property BLOCKATTN_ARCH is compiled for that -march instead.
set(arch $<TARGET_PROPERTY:BLOCKATTN_ARCH>)
target_compile_options(blockattn_development
                       INTERFACE $<IF:$<BOOL:${arch}>,-march=${arch},${native}>)

if(BLOCKATTN_SANITIZERS)
  # GCC warns that TSan does not model the fences inside Eigen's pool.
  target_compile_options(
    blockattn_development
    INTERFACE -fsanitize=${BLOCKATTN_SANITIZERS} -fno-sanitize-recover=all -fno-omit-frame-pointer
              $<$<CXX_COMPILER_ID:GNU>:-Wno-tsan>)
  target_link_options(blockattn_development INTERFACE -fsanitize=${BLOCKATTN_SANITIZERS})
endif()
