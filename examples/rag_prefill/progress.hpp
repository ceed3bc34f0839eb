// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

namespace rag {

/// Milliseconds since construction.
class stopwatch {
 public:
  double milliseconds() const {
    return std::chrono::duration<double, std::milli>(clock::now() - start_).count();
  }

 private:
  using clock = std::chrono::steady_clock;
  clock::time_point start_ = clock::now();
};

/// Shows "label: 12 of 30" on standard error while a long step runs, and "label: 3.2 s" at its end.
/// A terminal has one line that is rewritten five times a second; a log gets a line every two
/// seconds.
class progress {
 public:
  progress(std::string label, std::int64_t total) : label_(std::move(label)), total_(total) {}
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;
  ~progress() {
    std::fprintf(stderr, "%s: %.1f s%s\n", label_.c_str(), clock_.milliseconds() / 1e3,
                 terminal_ ? clear_rest_of_line : "");
  }

  void advance() {
    ++done_;
    const double now = clock_.milliseconds();
    if (now - shown_ < (terminal_ ? 200 : 2000)) return;
    shown_ = now;
    std::fprintf(stderr, "%s: %lld of %lld%s", label_.c_str(), static_cast<long long>(done_),
                 static_cast<long long>(total_), terminal_ ? "\r" : "\n");
    std::fflush(stderr);
  }

 private:
  static constexpr const char* clear_rest_of_line = "\x1b[K";

  std::string label_;
  std::int64_t total_;
  std::int64_t done_ = 0;
  bool terminal_ = isatty(STDERR_FILENO) == 1;
  double shown_ = 0;  // milliseconds
  stopwatch clock_;
};

}  // namespace rag
