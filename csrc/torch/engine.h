// The compressed collectives of one process group: a queue of jobs and the threads that carry them
// out.
//
// The front thread encodes slice after slice and starts shot 1; the back thread waits for it,
// decodes, adds and starts shot 2; the tail thread waits for that, puts results in place and ends
// jobs. So one slice is encoded while others are on the wire or being decoded, and the end of a job
// doesn't keep the next one's values waiting. A fourth one hands their messages over. The Python
// GIL is taken by nobody here except through a job's on_done.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "cpu/thread_pool.h"
#include "torch/agreement.h"
#include "torch/exchange_ring.h"
#include "torch/job.h"
#include "torch/link.h"
#include "torch/queue.h"
#include "torch/shots.h"
#include "torch/wire_thread.h"

namespace gct {

class Engine {
 public:
  // Names of two process groups of the same ranks that nobody else uses; empty in a world of one.
  // `threads` bounds the pool that encoding and decoding share. `check_hashes`, the same on all
  // ranks: compare results after every job.
  Engine(const std::string& first_group, const std::string& second_group, int threads,
         bool check_hashes);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Takes a job; all ranks submit the same jobs in the same order. Throws std::invalid_argument for
  // a job that can't be done. Whatever goes wrong later reaches spec.on_done, as it does for every
  // job after it.
  void submit(JobSpec spec);

  // Ends the threads; jobs that aren't done fail. Returns within about a second. Further calls do
  // nothing.
  void close();

  // A forked child has the engine's memory without its threads: it must neither use nor destroy it.
  bool in_forked_child() const;
  // Whether the caller is one of the engine's threads, which can neither close nor destroy it.
  bool on_own_thread() const;

  int rank() const { return first_.rank(); }
  int size() const { return first_.size(); }
  int threads() const { return pool_.size(); }
  const Counters& counters() const { return counters_; }
  int64_t wire_bytes() const { return first_.sent_bytes() + second_.sent_bytes(); }
  // All memory that outlives a job, without residuals, which the caller owns.
  int64_t scratch_bytes() const;

 private:
  void run_front();
  void run_back();
  void run_tail();
  void send_job(const std::shared_ptr<Job>& job);
  void send_slices(const std::shared_ptr<Job>& job);
  Flight make_flight(const std::shared_ptr<Job>& job, Range range) const;
  void receive(Flight& flight);
  void finish(Flight& flight);
  void end_job(Job& job);
  void fail(const Job& job, const char* doing, const std::exception& error);
  void close_rings();  // mutex_ is held
  std::string failure() const;

  const int64_t owner_pid_;  // threads don't survive a fork
  const bool check_hashes_;
  Counters counters_;
  ThreadPool pool_;
  WireThread wire_;
  Link first_, second_;
  Shots shots_;
  Agreement agreement_;  // front thread
  ExchangeRing first_ring_, second_ring_;
  Queue<std::shared_ptr<Job>> jobs_;
  Queue<Flight> sent_, reduced_;  // from front to back, and from back to tail

  mutable std::mutex mutex_;  // guards what follows
  std::string failure_;       // the first error; not empty: nothing works any more
  bool closed_ = false;

  std::thread front_thread_, back_thread_, tail_thread_;
};

}  // namespace gct
