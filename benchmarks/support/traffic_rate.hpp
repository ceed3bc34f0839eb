// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <span>

#include "support/fma_peak.hpp"

namespace blockattn_benchmark {

/// How the probe stores: through the cache, or past it where the machine can.
enum class store_path { cached, streamed };

/// Reads two buffers of one length and writes a third (which may be the second), front to back,
/// with all workers of an executor on a part each. Returns bytes/s over the bytes read and written
/// once: what memory delivers for that mix when nothing is computed. Bytes are moved as they are.
template <class Executor>
double probe_traffic_rate(Executor& workers,
                          std::span<const std::byte> first,
                          std::span<const std::byte> second,
                          std::span<std::byte> out,
                          store_path path) {
  using v = cpu::detail::vector<float, cpu::default_arch>;
  constexpr auto step = static_cast<index_t>(sizeof(v));
  const auto parts = static_cast<index_t>(workers.concurrency());
  const auto size = static_cast<index_t>(std::min({first.size(), second.size(), out.size()}));
  const index_t part = size / parts / step * step;
  const double begin = seconds_now();
  workers.parallel_for(parts, [&](index_t task, index_t /*worker*/) {
    const auto* a = reinterpret_cast<const float*>(first.data() + task * part);
    const auto* b = reinterpret_cast<const float*>(second.data() + task * part);
    auto* to = reinterpret_cast<float*>(out.data() + task * part);
    constexpr index_t width = step / static_cast<index_t>(sizeof(float));
    for (index_t at = 0; at < part; at += step, a += width, b += width, to += width) {
      const v sum = xsimd::bitwise_and(v::load_unaligned(a), v::load_unaligned(b));
#if defined(__AVX512F__)
      if (path == store_path::streamed) {
        _mm512_stream_ps(to, sum);
        continue;
      }
#endif
      sum.store_unaligned(to);
    }
  });
  return static_cast<double>(3 * parts * part) / (seconds_now() - begin);
}

}  // namespace blockattn_benchmark
