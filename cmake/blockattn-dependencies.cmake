# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Gives `target` the headers that the library includes: xsimd (cpu/) and, where there is one, Eigen
# (core/eigen_executor.hpp). Only the include directories are taken. Both are header-only, and
# Debian 12's xsimd target asks the linker for a library xtl, which does not exist.
function(blockattn_add_dependencies target)
  foreach(dependency xsimd Eigen3::Eigen)
    if(TARGET ${dependency})
      get_target_property(directories ${dependency} INTERFACE_INCLUDE_DIRECTORIES)
      target_include_directories(${target} SYSTEM INTERFACE "$<BUILD_INTERFACE:${directories}>")
    endif()
  endforeach()
endfunction()
