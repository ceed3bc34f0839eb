# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
include(CMakeFindDependencyMacro)
if(NOT TARGET xsimd)
  find_dependency(xsimd CONFIG)
endif()
if(NOT TARGET Eigen3::Eigen)
  find_package(Eigen3 QUIET CONFIG)
endif()

if(NOT TARGET blockattn::blockattn)
  include(${CMAKE_CURRENT_LIST_DIR}/blockattn-targets.cmake)
  include(${CMAKE_CURRENT_LIST_DIR}/blockattn-dependencies.cmake)
  blockattn_add_dependencies(blockattn::blockattn)
endif()
