// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/index.hpp>

namespace blockattn_test {

/// Calls of operator new in this program so far, by all threads. The operators are replaced in
/// cpu/allocation_count_test.cpp, so only that room's program has it.
blockattn::index_t allocation_count() noexcept;

}  // namespace blockattn_test
