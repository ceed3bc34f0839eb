# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Runs the command COMPILE. It must print one error, note or warning, which matches EXPECTED; without EXPECTED nothing.
execute_process(COMMAND ${COMPILE} RESULT_VARIABLE result OUTPUT_VARIABLE text ERROR_VARIABLE text)
string(REGEX MATCHALL "(error|warning|note): [^\n]*" messages "${text}")
list(LENGTH messages count)
if(EXPECTED STREQUAL "")
  set(expected_count 0)
else()
  set(expected_count 1)
endif()
if(NOT count EQUAL expected_count OR NOT messages MATCHES "${EXPECTED}" OR (count EQUAL 0 AND NOT result EQUAL 0))
  message(FATAL_ERROR "${expected_count} messages expected with: ${EXPECTED}\n${text}")
endif()
