# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_directory ${CMAKE_INSTALL_DATADIR}/cmake/blockattn)

target_include_directories(blockattn INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
install(DIRECTORY include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.hpp"
                                                                        PATTERN "*.cuh")
install(TARGETS blockattn EXPORT blockattn-targets)
install(EXPORT blockattn-targets NAMESPACE blockattn:: DESTINATION ${package_directory})

# Below 1.0 a minor version may break.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/blockattn-config-version.cmake
                                 COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES cmake/blockattn-config.cmake cmake/blockattn-dependencies.cmake cmake/blockattn-cuda.cmake
              ${PROJECT_BINARY_DIR}/blockattn-config-version.cmake
        DESTINATION ${package_directory})

configure_file(cmake/blockattn.pc.in ${PROJECT_BINARY_DIR}/blockattn.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/blockattn.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
