// What happens to one slice: the shots of a collective. The engine calls these steps from its three
// threads.
//
// All-reduce in two shots: every rank encodes each chunk for its owner (shot 1); the owner adds
// what it decodes to its own exact values, divides once, encodes the result and sends it round
// (shot 2); everybody, the owner too, decodes the owner's bytes. In one shot: every rank sends one
// segment of the whole slice to all, everybody decodes and adds all of them, its own too, in rank
// order (for a mean of 2, 4, 8, ... ranks the W-th part of each); of two ranks each may have its
// own values from its encoder and add the other's. Reduce-scatter is shot 1 of the first,
// all-gather the second without adding; either may be exact (job.exact).
//
// Every rank ends with the same bits: what it holds comes from the same bytes by the same
// operations in the same order, or in the other one where that makes no difference.
#pragma once

#include <memory>
#include <vector>

#include "torch/job.h"
#include "torch/link.h"
#include "torch/segments.h"

namespace gct {

// One slice on its way.
struct Flight {
  std::shared_ptr<Job> job;
  Range range;  // of the job's extent
  std::vector<Range>
      chunks;  // two shots and reduce-scatter: the input's elements that each rank reduces
  Exchange* first = nullptr;  // null: nothing crosses the wire
  Exchange* second = nullptr;
  bool last = false;  // of its job
};

class Shots {
 public:
  // Shot 1 crosses `first`, shot 2 `second`: their order among all ranks doesn't depend on how far
  // either has come.
  Shots(Link* first, Link* second, ThreadPool* pool, Counters* counters);

  // Front thread: encodes the slice. `compared`: all ranks are known to do the same job, and send()
  // must follow; what shot 1 receives is posted before, where its size is known, and the job's
  // tensor may be written to.
  void encode(Flight& flight, bool compared);
  // Front thread: starts shot 1 with what was encoded.
  void send(Flight& flight);
  // Back thread: waits for shot 1, reduces; in an all-reduce of two shots starts shot 2 with
  // flight.second.
  void receive(Flight& flight);
  // Tail thread: waits for shot 2 and puts the result in place.
  void finish(Flight& flight);

  // Compares the finished job's result on all ranks (GCT_DEBUG=hash); throws if they differ. Tail
  // thread, while the back thread waits for the job's end.
  void check_same(const Job& job);

  int64_t capacity_bytes() const;

 private:
  int rank() const { return first_->rank(); }
  int size() const { return first_->size(); }

  void set_first_sizes(Flight& flight);

  void encode_chunks(Flight& flight);
  void receive_chunk(Flight& flight);
  float* begin_sum(const Flight& flight, Range own);
  void set_second_sizes(Flight& flight);
  void send_result(Flight& flight, Range own, const float* mean);

  bool may_add_in_place(const Job& job) const;
  bool adds_shares(const Job& job) const;
  float share(const Job& job) const;
  void encode_whole(Flight& flight, bool compared);
  void add_whole(Flight& flight);
  void place_all(Flight& flight);

  void hand_over_exact(Flight& flight);
  void add_exact(Flight& flight);
  void place_exact(Flight& flight);

  void add_gradient(const Job& job, Range range);
  void keep_error(const Job& job, Range range, const uint8_t* wire, int64_t bytes, float factor,
                  SegmentCoder& coder);
  void send_to_all(Exchange& exchange) const;
  void start(const Job& job, Exchange& exchange, Link& link);
  void wait(Exchange& exchange, Link& link);
  void exchange_sizes(Exchange& exchange, Link& link);

  Link* first_;
  Link* second_;
  Counters* counters_;
  SegmentCoder front_, back_, tail_;  // one for each thread
  FloatBuffer sum_;                   // back thread
  FloatBuffer result_;                // tail thread
  Exchange hashes_;                   // tail thread
};

}  // namespace gct
