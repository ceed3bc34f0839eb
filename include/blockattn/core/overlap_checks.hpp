// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/error.hpp>
#include <blockattn/core/footprint.hpp>
#include <cstddef>
#include <initializer_list>
#include <span>

/// \file
/// The one rule of aliasing, for every verb on every backend: what is written shares no byte with
/// anything else that the call reads or writes. An output may be an input only where the
/// documentation of its function says so, and then the whole view: the same addresses and strides
/// (check_same_or_apart). Views are checked before (check_view), so that their extents fit.

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// An argument and the bytes that it covers.
struct named_memory {
  const char* name;
  footprint bytes;
};

template <class Place>
void check_apart(const Place& place, const named_memory& written, const named_memory& other) {
  const auto extent = [](const named_memory& memory) {
    return memory.bytes.end() - memory.bytes.begin;
  };
  require(!overlap(written.bytes, other.bytes), place, ": ", written.name, " and ", other.name,
          " overlap in memory: ", written.name, " covers ", extent(written), " bytes that begin ",
          written.bytes.begin - other.bytes.begin, " bytes from the begin of ", other.name,
          ", which covers ", extent(other));
}

/// Every output against every other output and every input.
template <class Place>
void check_apart(const Place& place,
                 std::initializer_list<named_memory> written,
                 std::initializer_list<named_memory> read) {
  for (auto output = written.begin(); output != written.end(); ++output) {
    for (auto other = output + 1; other != written.end(); ++other)
      check_apart(place, *output, *other);
    for (const named_memory& input : read) check_apart(place, *output, input);
  }
}

/// The visitor of visit_memory(arguments, visit) that refuses a workspace over a tensor of the call.
class workspace_check {
 public:
  workspace_check(const char* function, std::span<std::byte> workspace, index_t used) noexcept
      : function_(function),
        workspace_{"workspace", footprint_of(workspace.first(static_cast<std::size_t>(used)))} {}

  template <class View>
  void operator()(const char* name, const View& view) const {
    check_apart(function_, workspace_, {name, footprint_of(view)});
  }
  /// Ranges first: there may be thousands of pages.
  template <class T>
  void operator()(const char* name, const heads_view<T>& view) const {
    const index_range bytes = byte_range_of(view);
    if (bytes.end <= workspace_.bytes.begin || workspace_.bytes.end() <= bytes.begin) return;
    check_apart(function_, workspace_, {name, footprint_of(view)});
  }

 private:
  const char* function_;
  named_memory workspace_;
};

/// An output that may be this input: the same view, or apart from it.
template <class Place, class Out, class In>
void check_same_or_apart(
    const Place& place, const char* out_name, const Out& out, const char* name, const In& input) {
  if (same_view(out, input)) return;
  check_apart(place, {out_name, footprint_of(out)}, {name, footprint_of(input)});
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
