// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>
#include <span>

#include "support/fma_peak.hpp"

namespace blockattn_benchmark {

/// Reads every byte once, front to back, with all workers of an executor on a part each, and
/// returns bytes/s: what the memory level that holds the buffer delivers to them.
template <class Executor>
double probe_read_rate(Executor& workers, std::span<const std::byte> buffer) {
  using arch = cpu::default_arch;
  using v = cpu::detail::vector<float, arch>;
  constexpr index_t step = 4 * static_cast<index_t>(sizeof(v));
  const auto parts = static_cast<index_t>(workers.concurrency());
  const index_t part = static_cast<index_t>(buffer.size()) / parts / step * step;
  std::vector<float> keep(static_cast<std::size_t>(parts));
  const double begin = seconds_now();
  workers.parallel_for(parts, [&](index_t task, index_t /*worker*/) {
    const auto* data = reinterpret_cast<const float*>(buffer.data() + task * part);
    v sum[4] = {v(0.0F), v(0.0F), v(0.0F), v(0.0F)};
    for (index_t at = 0; at < part;
         at += step, data += step / static_cast<index_t>(sizeof(float))) {
      for (int u = 0; u < 4; ++u) {
        sum[u] = xsimd::max(sum[u], v::load_unaligned(data + u * cpu::detail::lanes<float, arch>));
      }
    }
    keep[static_cast<std::size_t>(task)] = cpu::detail::reduce_max<float, arch>(
        xsimd::max(xsimd::max(sum[0], sum[1]), xsimd::max(sum[2], sum[3])));
  });
  const double seconds = seconds_now() - begin;
  volatile float used = keep[0];
  static_cast<void>(used);
  return static_cast<double>(parts * part) / seconds;
}

}  // namespace blockattn_benchmark
