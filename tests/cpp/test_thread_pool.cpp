// The thread pool: every task once, exceptions, nesting, concurrent callers, forks.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/thread_pool.h"

namespace {

void runs_every_task_once() {
  for (const int threads : {0, 1, 2, 5}) {
    gct::ThreadPool pool(threads);
    CHECK(pool.size() == (threads < 1 ? 1 : threads), threads);
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(tasks));
      std::atomic<bool> worker_in_range{true};
      pool.parallel_for(tasks, [&](int64_t task, int worker) {
        seen[static_cast<size_t>(task)].fetch_add(1);
        if (worker < 0 || worker >= pool.size()) worker_in_range = false;
      });
      int64_t once = 0;
      for (const auto& count : seen) once += count.load() == 1;
      CHECK(once == tasks, once, tasks, threads);
      CHECK(worker_in_range.load(), tasks, threads);
    }
  }
}

void rethrows_and_goes_on() {
  gct::ThreadPool pool(3);
  for (int round = 0; round < 100; ++round) {
    bool caught = false;
    try {
      pool.parallel_for(20, [](int64_t task, int) {
        if (task == 7) throw std::runtime_error("task 7");
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    CHECK(caught, round);
  }
  std::atomic<int> done{0};
  pool.parallel_for(5, [&](int64_t, int) { done.fetch_add(1); });
  CHECK(done.load() == 5, done.load());
}

void nested_and_concurrent_loops_end() {
  gct::ThreadPool pool(3);
  std::atomic<int> done{0};
  const auto count = [&](int64_t, int) { done.fetch_add(1); };
  pool.parallel_for(8, [&](int64_t, int) { pool.parallel_for(3, count); });
  CHECK(done.load() == 24, done.load());

  const auto many = [&] {
    for (int round = 0; round < 500; ++round) pool.parallel_for(9, count);
  };
  std::thread first(many), second(many);
  first.join();
  second.join();
  CHECK(done.load() == 24 + 2 * 500 * 9, done.load());
}

void works_in_a_forked_child() {
  gct::ThreadPool pool(3);
  const auto nothing = [](int64_t, int) {};
  pool.parallel_for(9, nothing);  // its workers stay behind
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<int> done{0};
    pool.parallel_for(9, [&](int64_t, int) { done.fetch_add(1); });
    _exit(done.load() == 9 ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child, child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, status);
}

}  // namespace

int main() {
  runs_every_task_once();
  rethrows_and_goes_on();
  nested_and_concurrent_loops_end();
  works_in_a_forked_child();
  return gct::test::result();
}
