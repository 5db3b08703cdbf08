#include "torch/wire_thread.h"

#include <pthread.h>

namespace gct {

WireThread::WireThread()
    : thread_([this] {
        name_thread("gct wire");
        while (auto task = tasks_.pop()) (*task)();
      }) {}

WireThread::~WireThread() { close(); }

void WireThread::close() {
  tasks_.close();
  if (thread_.joinable()) thread_.join();
}

void name_thread(const char* name) {
#ifdef __linux__
  pthread_setname_np(pthread_self(), name);
#else
  (void)name;
#endif
}

}  // namespace gct
