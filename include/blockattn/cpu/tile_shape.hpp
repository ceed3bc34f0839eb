// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/plan/tile_plan.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI {

/// The tile shape that `forward` runs best with for tensors of T; any other shape is correct.
/// 64 x 256 (128 x 256 up to head_dim 64): scores of 64 KiB (128 KiB) and a key tile of 128 KiB
/// (64 KiB) in fp32 share an L2 of 1 MiB.
/// Measured on Zen 5: key tiles of 128 to 512 within 2 %, 64 loses 3 to 4 %; query tiles of 32 to
/// 128 within 2 %.
template <class T>
constexpr tile_shape tile_shape_for(index_t head_dim) noexcept {
  return {head_dim <= 64 ? 128 : 64, 256};
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI
