#include "cpu/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <utility>

namespace gct {

ThreadPool::ThreadPool(int threads) : size_(std::max(1, threads)) {}

bool ThreadPool::in_forked_child() const {
  const int64_t owner = owner_pid_.load();
  return owner != 0 && owner != getpid();
}

ThreadPool::~ThreadPool() {
  if (in_forked_child()) {
    for (auto& worker : workers_) worker.detach();  // these threads don't exist here
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::start_workers() {
  owner_pid_.store(getpid());
  workers_.reserve(static_cast<size_t>(size_ - 1));
  try {
    for (int worker = 1; worker < size_; ++worker) {
      workers_.emplace_back([this, worker] { work(worker); });
    }
  } catch (const std::system_error&) {
    // The system gives no more threads: go on with those there are.
  }
}

void ThreadPool::run_tasks(const Body& body, int64_t tasks, int worker) {
  try {
    for (int64_t task; (task = next_.fetch_add(1)) < tasks;) body(task, worker);
  } catch (...) {
    next_.store(tasks);  // nobody starts another task
    std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::work(int worker) {
  uint64_t seen = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stop_ || loop_ != seen; });
    if (stop_) return;
    seen = loop_;
    if (body_ == nullptr) continue;  // too late: the others have done it all
    const Body& body = *body_;
    const int64_t tasks = tasks_;
    ++busy_;
    lock.unlock();
    run_tasks(body, tasks, worker);
    lock.lock();
    if (--busy_ == 0) done_.notify_one();
  }
}

void ThreadPool::run_on_all(int64_t tasks, const Body& body) {
  if (owner_pid_.load() == 0) start_workers();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    body_ = &body;
    tasks_ = tasks;
    next_.store(0);
    error_ = nullptr;
    ++loop_;
  }
  wake_.notify_all();
  run_tasks(body, tasks, 0);
  std::unique_lock<std::mutex> lock(mutex_);
  body_ = nullptr;
  done_.wait(lock, [&] { return busy_ == 0; });
}

void ThreadPool::run(int64_t tasks, const Body& body) {
  const bool alone = size_ == 1 || tasks <= 1 || in_forked_child();
  if (alone || occupied_.exchange(true)) {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
  run_on_all(tasks, body);
  const std::exception_ptr error = std::exchange(error_, nullptr);
  occupied_.store(false);
  if (error) std::rethrow_exception(error);
}

}  // namespace gct
