// One process group, as the collectives see it: bytes to and from every other rank.
#pragma once

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "core/common.h"
#include "torch/buffers.h"

namespace gct {

// Thrown by waits once the engine is being closed.
struct Closed : std::runtime_error {
  Closed() : std::runtime_error("gct's engine was closed while this was on its way") {}
};

// One message to every other rank and one from each: the two halves of a shot. Segments stand one
// after the other in rank order; a rank sends nothing to itself.
struct Exchange {
  ByteBuffer send, recv;
  std::vector<int64_t> send_bytes, recv_bytes;  // one a rank, 0 for this one
  int64_t own_bytes =
      0;  // where all ranks get the same segment: its size, it stands first in `send`
  c10::intrusive_ptr<c10d::Work> work;

  int64_t capacity_bytes() const { return send.capacity_bytes() + recv.capacity_bytes(); }
};

class Link {
 public:
  // The group that torch registered under this name (ProcessGroup.group_name), with a CPU backend.
  // An empty name is a world of one rank, which never exchanges anything.
  explicit Link(const std::string& group_name);

  int rank() const { return rank_; }
  int size() const { return size_; }

  // Starts exchange.work: exchange.send_bytes and recv_bytes are set, exchange.send is filled. All
  // ranks start the same exchanges of a link in the same order.
  void start(Exchange& exchange);

  // Returns when exchange.recv is filled; throws what the process group reports (a dead peer, its
  // timeout), or Closed.
  void wait(Exchange& exchange);

  // Fills exchange.recv_bytes from the others' send_bytes, for segments whose size the receiver
  // can't know. `thrice`: each size is sent three times, and what two of them say holds.
  void exchange_sizes(Exchange& exchange, bool thrice);

  // Bytes handed to the process group for other ranks, since the start.
  int64_t sent_bytes() const { return sent_bytes_.load(); }

  void close() { closed_.store(true); }

 private:
  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  c10::intrusive_ptr<c10d::Backend> backend_;
  int rank_ = 0;
  int size_ = 1;
  Exchange sizes_;
  std::atomic<int64_t> sent_bytes_{0};
  std::atomic<bool> closed_{false};
};

}  // namespace gct
