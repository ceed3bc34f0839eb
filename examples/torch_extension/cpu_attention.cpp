// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/backward.hpp>
#include <blockattn/cpu/forward.hpp>
#include <blockattn/cpu/tile_shape.hpp>
#include <blockattn/plan/make_tile_plan.hpp>

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "attention_call.hpp"

namespace block_attention {

namespace {

/// Runs tasks on torch's intra-op threads, each of which takes the next task when it is done.
struct torch_executor {
  static ba::index_t concurrency() {
    return at::in_parallel_region() ? 1 : static_cast<ba::index_t>(at::get_num_threads());
  }
  template <class F>
  void parallel_for(ba::index_t count, const F& f) const {
    std::atomic<ba::index_t> next = 0;
    at::parallel_for(0, std::min(count, concurrency()), 1,
                     [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t worker = begin; worker < end; ++worker) {
                         for (ba::index_t task = next++; task < count; task = next++)
                           f(task, worker);
                       }
                     });
  }
};

/// The storage types of the CPU, and the only place that lists them: f(std::type_identity<T>()).
template <class F>
void with_cpu_type(ba::storage_format format, const F& f) {
  switch (format) {
    case ba::storage_format::fp64:
      return f(std::type_identity<double>());
    case ba::storage_format::fp32:
      return f(std::type_identity<float>());
    case ba::storage_format::bf16:
      return f(std::type_identity<ba::bfloat16>());
    case ba::storage_format::fp16:
      return f(std::type_identity<ba::float16>());
  }
}

/// The plan of both directions: backward needs its lists by key, forward likes the same tiles.
template <class T>
std::shared_ptr<const ba::tile_plan> plan_of(const block_mask& mask, ba::index_t head_dim) {
  const ba::tile_shape shape = ba::cpu::tile_shape_for<T>(head_dim);
  return mask.once<ba::tile_plan>({shape.queries, shape.keys}, [&] {
    return ba::make_tile_plan(mask.mask(), shape, {.transposed = true});
  });
}

template <class Job>
void run(const Job& job, const allocator& allocate) {
  torch_executor workers;
  const ba::index_t size = ba::cpu::workspace_size(job, workers.concurrency());
  const memory workspace = allocate(size);
  ba::cpu::run_job("block_attention", job, workers,
                   {workspace.get(), static_cast<std::size_t>(size)});
}

}  // namespace

void cpu_forward(const attention_call& call, const block_mask& mask, const allocator& allocate) {
  with_cpu_type(call.format, [&]<class T>(std::type_identity<T>) {
    const auto plan = plan_of<T>(mask, call.q.head_dim);
    run(ba::cpu::prepare_forward(forward_arguments_of<T>(call), *plan, call.options), allocate);
  });
}

void cpu_backward(const attention_call& call, const block_mask& mask, const allocator& allocate) {
  with_cpu_type(call.format, [&]<class T>(std::type_identity<T>) {
    const auto plan = plan_of<T>(mask, call.q.head_dim);
    run(ba::cpu::prepare_backward(backward_arguments_of<T>(call), *plan, call.options), allocate);
  });
}

}  // namespace block_attention
