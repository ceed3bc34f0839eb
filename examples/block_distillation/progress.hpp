// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>

namespace distillation {

/// Seconds since construction.
class stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(clock::now() - start_).count(); }

 private:
  using clock = std::chrono::steady_clock;
  clock::time_point start_ = clock::now();
};

/// A bar on standard error with the share done and the time left, judged by the work done since the
/// start of this call. A terminal has one line that is rewritten five times a second; a log gets a
/// line every ten seconds.
class progress_bar {
 public:
  /// \param total  work of the whole run, in any unit
  /// \param done   what an earlier call has done of it
  progress_bar(double total, double done) : total_(total), done_(done), done_before_(done) {}
  progress_bar(const progress_bar&) = delete;
  progress_bar& operator=(const progress_bar&) = delete;
  ~progress_bar() {
    if (terminal_) std::fputs("\r\x1b[K", stderr);
  }

  void advance(double work, const std::string& what) {
    done_ += work;
    const double now = clock_.seconds();
    if (now - shown_ < (terminal_ ? 0.2 : 10)) return;
    shown_ = now;
    constexpr int width = 30;
    const double share = done_ / total_;
    const int filled = static_cast<int>(share * width);
    const double left = now * (total_ - done_) / (done_ - done_before_);
    std::fprintf(stderr, "%s[%.*s%.*s] %3.0f %%, %d:%02d left: %s%s", terminal_ ? "\r" : "", filled,
                 "##############################", width - filled, "..............................",
                 100 * share, static_cast<int>(left) / 60, static_cast<int>(left) % 60,
                 what.c_str(), terminal_ ? "\x1b[K" : "\n");
    std::fflush(stderr);
  }

 private:
  double total_;
  double done_;
  double done_before_;
  bool terminal_ = isatty(STDERR_FILENO) == 1;
  double shown_ = 0;  // seconds
  stopwatch clock_;
};

}  // namespace distillation
