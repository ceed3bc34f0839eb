# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Configures SOURCE as a plain user does, with xsimd and nothing else to find, and installs without building.
file(REMOVE_RECURSE ${BUILD})
set(missing "")
foreach(package Eigen3 Catch2 benchmark ICU OpenMP Threads Python3)
  list(APPEND missing -D CMAKE_DISABLE_FIND_PACKAGE_${package}=ON)
endforeach()
execute_process(COMMAND ${CMAKE_COMMAND} -S ${SOURCE} -B ${BUILD}/tree -D xsimd_DIR=${XSIMD}
                        -D CMAKE_CXX_COMPILER=${CXX} ${missing} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD}/tree --prefix ${BUILD}/prefix COMMAND_ERROR_IS_FATAL ANY)

if(NOT EXISTS ${BUILD}/prefix/include/blockattn/blockattn.hpp)
  message(FATAL_ERROR "the headers are not in ${BUILD}/prefix")
endif()
# CMake's own look at the compiler stays in CMakeFiles.
file(GLOB_RECURSE objects RELATIVE ${BUILD}/tree ${BUILD}/tree/*.o)
list(FILTER objects EXCLUDE REGEX "^CMakeFiles/")
if(objects OR EXISTS ${BUILD}/tree/tests OR EXISTS ${BUILD}/tree/examples OR EXISTS ${BUILD}/tree/benchmarks)
  message(FATAL_ERROR "tests, examples or benchmarks are configured or built in ${BUILD}/tree")
endif()
