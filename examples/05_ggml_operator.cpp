// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// An operator as ggml has them: tensors with strides in bytes, an fp16 cache of keys and values,
// fp32 queries and output, and threads that all call the operator, each with its (ith, nth).

#include <algorithm>
#include <barrier>
#include <blockattn/blockattn.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <thread>
#include <vector>

namespace ba = blockattn;

/// What the operator reads of a ggml_tensor: ne[i] elements, nb[i] bytes from one to the next.
struct tensor {
  void* data;
  std::int64_t ne[3];
  std::size_t nb[3];
};

/// Tokens and heads are dimensions 1 and 2 of ggml's q, k and v, but 2 and 1 of its output.
template <class T>
ba::heads_view<T> view(const tensor& t, int tokens = 1, int heads = 2) {
  const auto stride = [&](int i) { return static_cast<ba::index_t>(t.nb[i] / sizeof(T)); };
  return {static_cast<T*>(t.data), t.ne[tokens], t.ne[heads], t.ne[0],
          stride(tokens),          stride(heads)};
}

struct attention_operator {
  tensor q, k, v, out;
  const ba::tile_plan& plan;  // who sees whom: one for all layers of a graph

  /// Checks the tensors and counts tasks, nothing more: every thread has its own.
  auto job() const {
    return ba::cpu::prepare_forward<float, ba::float16, ba::float16, float>(
        {view<float>(q), view<ba::float16>(k), view<ba::float16>(v), view<float>(out, 2, 1)}, plan);
  }

  /// Bytes of params->wdata, aligned to 64, for ggml_graph_plan.
  ba::index_t work_size(int nth) const { return ba::workspace_size(job(), nth); }

  /// What each thread runs; `barrier` stands for ggml_barrier.
  void compute(int ith, int nth, std::span<std::byte> wdata, std::barrier<>& barrier) const {
    const auto job = this->job();
    for (ba::index_t phase = 0; phase < job.phases(); ++phase) {
      for (ba::index_t task = ith; task < job.tasks(phase); task += nth)
        job.run(phase, task, ith, wdata);
      barrier.arrive_and_wait();
    }
  }
};

int main() {
  constexpr std::size_t dim = 64, heads = 4, kv_heads = 2, capacity = 512, keys = 300, queries = 20;
  std::vector<float> q(dim * heads * queries), out(q.size()), expected(q.size());
  std::vector<ba::float16> k(dim * kv_heads * capacity), v(k.size());
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = std::sin(float(i * i % 1009));
  for (std::size_t i = 0; i < k.size(); ++i) {
    ba::store_scalar(k[i], std::cos(float(i * i % 997)));
    ba::store_scalar(v[i], std::sin(float(i * i % 991)));
  }
  // Queries after ggml_permute(0, 2, 1, 3); the first `keys` cells of a cache of `capacity`.
  const tensor q_view{q.data(), {dim, queries, heads}, {4, 4 * dim * heads, 4 * dim}};
  const tensor k_view{k.data(), {dim, keys, kv_heads}, {2, 2 * dim * kv_heads, 2 * dim}};
  const tensor v_view{v.data(), {dim, keys, kv_heads}, {2, 2 * dim * kv_heads, 2 * dim}};
  const tensor out_view{out.data(), {dim, heads, queries}, {4, 4 * dim, 4 * dim * heads}};
  const auto mask = ba::causal_mask(queries, keys);  // the queries are the last of the keys' tokens
  const auto plan = ba::make_tile_plan(mask, ba::cpu::tile_shape_for<float>(dim));
  const attention_operator op{q_view, k_view, v_view, out_view, plan};

  constexpr int nth = 3;
  const ba::workspace_buffer wdata(op.work_size(nth));
  std::barrier barrier(nth);
  {
    std::vector<std::jthread> pool;
    for (int ith = 0; ith < nth; ++ith)
      pool.emplace_back([&, ith] { op.compute(ith, nth, wdata.bytes(), barrier); });
  }

  const auto exact = ba::token_major(expected.data(), queries, heads, dim);
  ba::reference::forward<float, ba::float16, ba::float16, float>(
      {view<float>(q_view), view<ba::float16>(k_view), view<ba::float16>(v_view), exact}, mask);
  float error = 0;
  for (std::size_t i = 0; i < out.size(); ++i)
    error = std::max(error, std::abs(out[i] - expected[i]));
  std::printf("largest error below 1e-5: %s\n", error < 1e-5F ? "yes" : "no");
}

// Output:
// largest error below 1e-5: yes
