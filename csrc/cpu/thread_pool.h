// A small pool of worker threads for loops over independent tasks. Standard library only.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace gct {

// Workers start at the first loop that needs them, so that a process which forks before it encodes
// anything (data loaders) has none to lose. After a fork the child runs its loops on the calling
// thread alone.
class ThreadPool {
 public:
  using Body = std::function<void(int64_t task, int worker)>;

  // `threads` counts the calling thread: 1 (or less) never starts another one.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Calls body(task, worker) once for each task in [0, tasks), which begin in rising order, and
  // returns when all are done. `worker` is in [0, size()) and no two tasks run at the same time
  // under one worker of this call; worker 0 is the calling thread. The first exception is rethrown
  // here after the tasks that had begun have ended; the rest is skipped. Where another thread's
  // loop occupies the pool, or a body calls this again, all tasks run on the calling thread: a
  // caller never waits for someone else's work.
  template <typename F>
  void parallel_for(int64_t tasks, const F& body) {
    run(tasks, std::cref(body));  // small: a Body of it takes no memory
  }

 private:
  void run(int64_t tasks, const Body& body);
  bool in_forked_child() const;
  void start_workers();
  void work(int worker);
  void run_tasks(const Body& body, int64_t tasks, int worker);
  void run_on_all(int64_t tasks, const Body& body);

  const int size_;
  std::atomic<int64_t> owner_pid_{0};  // process that started the workers; 0 = none started
  std::atomic<bool> occupied_{
      false};  // a loop has the workers (a mutex couldn't be tried twice by one thread)
  std::vector<std::thread> workers_;  // touched by the occupying loop and the destructor only

  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::condition_variable done_;
  const Body* body_ = nullptr;  // of the present loop while workers may join it
  int64_t tasks_ = 0;
  uint64_t loop_ = 0;  // number of loops handed out
  size_t busy_ = 0;    // workers in the present loop
  bool stop_ = false;
  std::exception_ptr error_;

  std::atomic<int64_t> next_{0};
};

// Workers of its loops: the calling thread alone where there is no pool.
inline int64_t worker_count(const ThreadPool* pool) { return pool != nullptr ? pool->size() : 1; }

// The pool's loop, or the same on the calling thread where there is no pool.
template <typename F>
void parallel_for(ThreadPool* pool, int64_t tasks, const F& body) {
  if (pool != nullptr) {
    pool->parallel_for(tasks, body);
  } else {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
  }
}

}  // namespace gct
