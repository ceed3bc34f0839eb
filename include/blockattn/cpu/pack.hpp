// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/heads_view.hpp>
#include <blockattn/core/range.hpp>
#include <blockattn/cpu/convert.hpp>
#include <blockattn/cpu/micro_kernel.hpp>

/// \file
/// Copies of q, k and v in the order in which the micro-kernel reads them. Panel is what it
/// multiplies: float, double or bf16_pair (then all storage is bf16); a row of Panel holds
/// `steps_for(dim)` of them.
/// - Keys: panels of panel_width keys, each [steps of head_dim][panel_width] (K transposed).
/// - Values: panels of panel_width columns, each [steps of keys][panel_width].

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail {

/// Panel elements that cover `values` along the summed dimension.
template <class Panel, class Arch>
constexpr index_t steps_for(index_t values) noexcept {
  return ceil_divide(values, operand<Panel, Arch>::values_per_step);
}

/// Step t of a row of storage T along the summed dimension: one value, or two neighbours as they
/// lie.
template <class Panel, class Arch, class T>
inline Panel step_of_row(const T* row, index_t t) noexcept {
  if constexpr (operand<Panel, Arch>::values_per_step == 1) {
    return static_cast<Panel>(load_scalar(row[t]));
  } else {
    static_assert(format_of<T> == storage_format::bf16);
    Panel pair;
    std::memcpy(static_cast<void*>(&pair), row + 2 * t, sizeof pair);
    return pair;
  }
}

/// Keys into columns [columns.begin, columns.end) of one panel: out[t][columns.begin + j] = step t
/// of rows[j * stride].
template <class Panel, class Arch, class T>
inline void pack_key_columns(const T* rows,
                             index_t stride,
                             const index_range& columns,
                             index_t head_dim,
                             Panel* out) noexcept {
  using C = typename operand<Panel, Arch>::accumulator;
  constexpr index_t width = panel_width<C, Arch>;
  const index_t steps = steps_for<Panel, Arch>(head_dim);
  for (index_t j = 0; j < columns.size(); ++j) {
    Panel* const column = out + columns.begin + j;
    for (index_t t = 0; t < steps; ++t)
      column[t * width] = step_of_row<Panel, Arch>(rows + j * stride, t);
  }
}

/// One panel of up to panel_width keys. Columns from `keys` on become 0.
/// Measured on Zen 4, per 4096 keys of head_dim 128: 0.24 ms fp32, 1 % of a causal head's
/// attention.
template <class Panel, class Arch, class T>
inline void pack_key_panel(
    const T* rows, index_t stride, index_t keys, index_t head_dim, Panel* out) noexcept {
  constexpr index_t width = panel_width<typename operand<Panel, Arch>::accumulator, Arch>;
  if (keys < width) std::fill_n(out, steps_for<Panel, Arch>(head_dim) * width, Panel{});
  pack_key_columns<Panel, Arch>(rows, stride, index_range{0, keys}, head_dim, out);
}

/// The columns of one step of a value panel: out[c] = first[c], or the pair (first[c], second[c]);
/// 0 from `columns` on. A null row of a pair leaves its half as it is.
template <class Panel, class Arch, class T>
inline void pack_value_step(const T* first,
                            [[maybe_unused]] const T* second,
                            index_t columns,
                            Panel* out) noexcept {
  using C = typename operand<Panel, Arch>::accumulator;
  if constexpr (operand<Panel, Arch>::values_per_step == 1) {
    for (index_t c = 0; c < columns; ++c) out[c] = static_cast<Panel>(load_scalar(first[c]));
  } else if (first != nullptr && second != nullptr) {
    for (index_t c = 0; c < columns; ++c) out[c] = {{bits16(first[c])}, {bits16(second[c])}};
  } else {
    const T* const only = first != nullptr ? first : second;
    const auto half = first != nullptr ? &Panel::first : &Panel::second;
    for (index_t c = 0; c < columns; ++c) (out[c].*half).bits = bits16(only[c]);
  }
  std::fill(out + columns, out + panel_width<C, Arch>, Panel{});
}

/// Values [keys.begin, keys.end) of one head into panels of `panel_steps` steps: panel c holds
/// columns [c * panel_width, ...), key j sits at place j - origin of the summed dimension, origin a
/// multiple of a step. Columns beyond value_dim become 0; the other half of a step that has
/// only one of the keys is left as it is.
template <class Panel, class Arch, class T>
inline void pack_values(const heads_view<const T>& v,
                        index_t head,
                        const index_range& keys,
                        index_t origin,
                        index_t panel_steps,
                        Panel* out) noexcept {
  using C = typename operand<Panel, Arch>::accumulator;
  constexpr index_t width = panel_width<C, Arch>;
  constexpr index_t per_step = operand<Panel, Arch>::values_per_step;
  const auto row = [&](index_t key) { return keys.contains(key) ? v.row(key, head) : nullptr; };
  for (index_t j = keys.begin - (keys.begin - origin) % per_step; j < keys.end; j += per_step) {
    Panel* step = out + (j - origin) / per_step * width;
    for (index_t column = 0; column < v.head_dim; column += width, step += panel_steps * width) {
      const T* const first = row(j);
      const T* const second = per_step == 2 ? row(j + 1) : nullptr;
      pack_value_step<Panel, Arch>(first != nullptr ? first + column : first,
                                   second != nullptr ? second + column : second,
                                   std::min(width, v.head_dim - column), step);
    }
  }
}

/// One row of q as Panel, times `factor` (of pairs: 1, -1 or 0, exact).
template <class Panel, class Arch, class T>
inline void pack_row(const T* in, index_t count, long double factor, Panel* out) noexcept {
  if constexpr (operand<Panel, Arch>::values_per_step == 1) {
    load_row<Arch>(in, count, factor, out);
  } else {
    const std::uint16_t flip = factor < 0 ? 0x8000U : 0U;
    const std::uint16_t keep = factor == 0 ? 0U : 0xffffU;
    for (index_t t = 0; t < steps_for<Panel, Arch>(count); ++t) {
      out[t] = {{static_cast<std::uint16_t>((bits16(in[2 * t]) ^ flip) & keep)},
                {static_cast<std::uint16_t>((bits16(in[2 * t + 1]) ^ flip) & keep)}};
    }
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail
