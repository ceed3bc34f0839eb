// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <blockattn/cpu/micro_kernel.hpp>
#include <chrono>
#include <vector>

namespace blockattn_benchmark {

using namespace blockattn;

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

/// Runs independent fused multiply-adds from registers for about `seconds` on the calling thread
/// and returns flop/s: the fp32 ceiling of one core at this moment's clock. 20 chains cover the
/// latency of every core in question and leave the compiler registers for the operands; of 16
/// registers 12 are as many as fit.
inline double probe_fma_peak(double seconds) {
  using arch = cpu::default_arch;
  using v = cpu::detail::vector<float, arch>;
  constexpr int chains = cpu::detail::register_tile<arch>::has_32_registers ? 20 : 12;
  v sum[chains];
  for (v& s : sum) s = v(1.0F);
  const v a(0.999999F);
  const v b(1e-6F);
  constexpr long steps = 20000;
  double flops = 0;
  const double begin = seconds_now();
  double end = begin;
  while (end - begin < seconds) {
    for (long i = 0; i < steps; ++i) {
#pragma GCC unroll 20
      for (int c = 0; c < chains; ++c) sum[c] = cpu::detail::fmadd<float, arch>(sum[c], a, b);
    }
    flops += 2.0 * chains * static_cast<double>(steps * cpu::detail::lanes<float, arch>);
    end = seconds_now();
  }
  float total = 0;
  for (const v& s : sum) total += cpu::detail::reduce_add<float, arch>(s);
  volatile float keep = total;
  static_cast<void>(keep);
  return flops / (end - begin);
}

/// The sum of the peaks of all workers of an executor, probed at the same time: each waits for the
/// others to arrive, for 20 ms at most.
template <class Executor>
double probe_fma_peak(Executor& workers, double seconds) {
  const auto count = static_cast<index_t>(workers.concurrency());
  std::vector<double> peaks(static_cast<std::size_t>(count));
  std::atomic<index_t> arrived{0};
  workers.parallel_for(count, [&](index_t task, index_t /*worker*/) {
    ++arrived;
    const double give_up = seconds_now() + 0.02;
    while (arrived < count && seconds_now() < give_up) {
    }
    peaks[static_cast<std::size_t>(task)] = probe_fma_peak(seconds);
  });
  double total = 0;
  for (const double peak : peaks) total += peak;
  return total;
}

}  // namespace blockattn_benchmark
