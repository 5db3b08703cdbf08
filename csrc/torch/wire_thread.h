// The thread that hands messages to the process group. Handing over is writing to a socket, under a
// lock that Gloo's own thread tries again and again for as long; a thread that encodes would spend
// a tenth of its time there, more where cores are few (docs/decisions.md).
#pragma once

#include <functional>
#include <thread>

#include "torch/queue.h"

namespace gct {

class WireThread {
 public:
  WireThread();
  ~WireThread();
  WireThread(const WireThread&) = delete;
  WireThread& operator=(const WireThread&) = delete;

  // Calls `task`, which must not throw, after all that were posted before.
  void post(std::function<void()> task) { tasks_.push(std::move(task)); }

  // Returns once all that was posted is done. Further calls do nothing.
  void close();

 private:
  Queue<std::function<void()>> tasks_;
  std::thread thread_;
};

// What `top -H` and profilers call the calling thread.
void name_thread(const char* name);

}  // namespace gct
