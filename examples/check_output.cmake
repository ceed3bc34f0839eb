# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Runs PROGRAM and compares what it prints with the comment after "// Output:" at the end of SOURCE.
file(READ ${SOURCE} text)
string(REGEX REPLACE ".*\n// Output:" "" expected "${text}")
string(REGEX REPLACE "\n// ?" "\n" expected "${expected}")
string(STRIP "${expected}" expected)

execute_process(COMMAND ${PROGRAM} OUTPUT_VARIABLE printed RESULT_VARIABLE status)
string(STRIP "${printed}" printed)
if(NOT status EQUAL 0 OR NOT printed STREQUAL expected)
  message(FATAL_ERROR "exit status ${status}, printed\n${printed}\nexpected\n${expected}")
endif()
