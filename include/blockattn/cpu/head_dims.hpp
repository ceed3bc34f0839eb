// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/error.hpp>
#include <blockattn/core/index.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI {

/// Largest head dimension of q, k, v and o; all are multiples of 8.
inline constexpr index_t max_head_dim = 256;

namespace detail {

inline void check_head_dim(const char* function, const char* name, index_t head_dim) {
  blockattn::detail::require(head_dim % 8 == 0 && head_dim > 0 && head_dim <= max_head_dim,
                             function, ": ", name, ".head_dim is ", head_dim,
                             ", must be a multiple of 8 from 8 to ", max_head_dim);
}

}  // namespace detail
}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI
