// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/merge_backward_arguments.hpp>
#include <blockattn/layout/block_layout.hpp>
#include <blockattn/rope/rope.hpp>
#include <span>

namespace blockattn_test {

using namespace blockattn;

/// The row-wise CUDA calls over host memory, which goes to the device and back as in cuda_backend;
/// views that begin at the same place share their memory there. Calls that are refused touch no
/// device when `on_device` is false: the arguments are passed on as they are, without a workspace.
struct cuda_rows {
  bool on_device = true;

  template <class P, class O>
  void merge(const merge_arguments<P, O>& arguments) const;
  template <class P, class O, class D>
  void merge_backward(const merge_backward_arguments<P, O, D>& arguments) const;

  template <class In, class Out>
  void rotate(const rope& rotation,
              const heads_view<In>& in,
              const heads_view<Out>& out,
              std::span<const double> positions) const;
  template <class In, class Out>
  void rotate_backward(const rope& rotation,
                       const heads_view<In>& d_out,
                       const heads_view<Out>& d_in,
                       std::span<const double> positions) const;
  template <class T>
  void rotate(const rope& rotation,
              const heads_view<T>& rows,
              std::span<const double> positions) const;
  template <class T>
  void rotate_backward(const rope& rotation,
                       const heads_view<T>& rows,
                       std::span<const double> positions) const;
  template <class T>
  void reposition(const rope& rotation, const heads_view<T>& rows, double delta) const;
  template <class T>
  void reposition(const rope& rotation,
                  const heads_view<T>& rows,
                  std::span<const double> deltas) const;

  template <class T>
  void scatter_rows(const block_layout& layout,
                    std::span<const T> source_rows,
                    std::span<const T> sink_rows,
                    std::span<T> out,
                    index_t columns) const;
  template <class T>
  void gather_rows(const block_layout& layout,
                   std::span<const T> rows,
                   std::span<T> out,
                   index_t columns) const;
  template <class DOut, class DSource, class DSinks>
  void scatter_rows_backward(const block_layout& layout,
                             std::span<const DOut> d_out,
                             std::span<DSource> d_source_rows,
                             std::span<DSinks> d_sink_rows,
                             index_t columns) const;
  template <class DOut, class DSource, class DSinks>
  void scatter_rows_backward_accumulate(const block_layout& layout,
                                        std::span<const DOut> d_out,
                                        std::span<DSource> d_source_rows,
                                        std::span<DSinks> d_sink_rows,
                                        index_t columns) const;
  template <class DOut, class DRows>
  void gather_rows_backward(const block_layout& layout,
                            std::span<const DOut> d_out,
                            std::span<DRows> d_rows,
                            index_t columns) const;
  template <class DOut, class DRows>
  void gather_rows_backward_accumulate(const block_layout& layout,
                                       std::span<const DOut> d_out,
                                       std::span<DRows> d_rows,
                                       index_t columns) const;
};

}  // namespace blockattn_test
