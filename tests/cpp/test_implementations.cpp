// Which implementation is chosen at first use: the fastest that this machine has, or the one that
// GCT_FORCE_IMPL names. The choice is made once a process, so each case has a process of its own.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "codec.h"

namespace gct {
namespace {

enum Outcome { kAsWanted = 0, kAnother = 1, kRefused = 2, kLost = 3 };

// What a new process, with GCT_FORCE_IMPL or without it (nullptr), makes of its first use.
int first_use(const char* forced, const std::string& wanted) {
  const pid_t child = fork();
  if (child == 0) {
    if (forced != nullptr) setenv("GCT_FORCE_IMPL", forced, 1);
    if (forced == nullptr) unsetenv("GCT_FORCE_IMPL");
    try {
      _exit(implementation() == wanted ? kAsWanted : kAnother);
    } catch (const std::runtime_error& error) {
      const bool named = std::string(error.what()).find(wanted) != std::string::npos;
      _exit(named ? kRefused : kLost);
    }
  }
  int status = 0;
  const bool ended = child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status);
  return ended ? WEXITSTATUS(status) : kLost;
}

void test_fastest_first() {
  const std::vector<std::string> fastest_first = {"avx512", "avx2", "neon", "scalar"};
  std::ptrdiff_t before = -1;
  for (const std::string& name : implementations()) {
    const auto found = std::find(fastest_first.begin(), fastest_first.end(), name);
    CHECK_IN(name, found != fastest_first.end());
    CHECK_IN(name, found - fastest_first.begin() > before, before);
    before = found - fastest_first.begin();
  }
  CHECK(implementations().back() == "scalar");
}

void test_choice() {
  const std::string best = implementations().front();
  CHECK(first_use(nullptr, best) == kAsWanted);
  CHECK(first_use("", best) == kAsWanted);
  for (const std::string& name : implementations())
    CHECK_IN(name, first_use(name.c_str(), name) == kAsWanted);
  // The message says what could have been forced, and what was asked.
  for (const std::string& name : implementations())
    CHECK_IN(name, first_use("abacus", name) == kRefused);
  CHECK(first_use("abacus", "abacus") == kRefused);
}

void test_set_implementation() {
  for (const std::string& name : implementations()) {
    CHECK_IN(name, set_implementation(name));
    CHECK_IN(name, implementation() == name);
    CHECK_IN(name, !set_implementation("abacus"));
    CHECK_IN(name, implementation() == name);
  }
}

}  // namespace
}  // namespace gct

int main() {
  gct::test_fastest_first();
  gct::test_choice();  // before anything has chosen in this process
  gct::test_set_implementation();
  return gct::test::result();
}
