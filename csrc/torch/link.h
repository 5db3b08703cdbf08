// One process group, as the collectives see it: bytes to and from every other rank.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "core/common.h"
#include "torch/buffers.h"
#include "torch/wire_thread.h"

namespace gct {

// Thrown by waits once the engine is being closed.
struct Closed : std::runtime_error {
  Closed() : std::runtime_error("gct's engine was closed while this was on its way") {}
};

// One message to every other rank and one from each: the two halves of a shot. Segments stand one
// after the other in rank order; a rank sends nothing to itself.
struct Exchange {
  ByteBuffer send, recv;
  // Where messages are, one a rank, if they don't stand one after the other in these. Else empty.
  std::vector<at::Tensor> send_from, recv_to;
  std::vector<int64_t> send_bytes, recv_bytes;  // one a rank, 0 for this one
  int64_t own_bytes =
      0;  // where all ranks get the same segment: its size, it stands first in `send`
  bool expected = false;   // the receiving half is on its way
  bool own_added = false;  // what this rank's segment decodes to is in the result already

  // Between the wire thread and the one that waits.
  int posting = 0;           // halves that the wire thread has not handed over yet
  std::exception_ptr error;  // why it couldn't
  std::vector<c10::intrusive_ptr<c10d::Work>> works;  // on their way

  at::Tensor to_send(int receiver, int64_t begin) const {
    const auto r = static_cast<size_t>(receiver);
    return send_from.empty() ? send.view(begin, send_bytes[r]) : send_from[r];
  }
  at::Tensor to_receive(int sender, int64_t begin) const {
    const auto s = static_cast<size_t>(sender);
    return recv_to.empty() ? recv.view(begin, recv_bytes[s]) : recv_to[s];
  }

  int64_t capacity_bytes() const { return send.capacity_bytes() + recv.capacity_bytes(); }
};

// Lets every peer of a Gloo group notice at once that this rank won't go on: what is on its way
// over the group's connections fails, here and elsewhere, and so does all that follows.
void hang_up(c10d::Backend& gloo);

class Link {
 public:
  // The groups that torch registered under these names (ProcessGroup.group_name), of Gloo, the same
  // ranks in each. An empty name is a world of one rank, which never exchanges anything. Messages
  // to higher ranks cross `upward`, those to lower ranks `downward`, and `tag` tells them from
  // another link's on the same groups. They are handed over by `wire`.
  Link(const std::string& upward, const std::string& downward, int tag, WireThread* wire);

  int rank() const { return rank_; }
  int size() const { return size_; }

  // Starts an exchange: exchange.send_bytes and recv_bytes are set, exchange.send is filled; none
  // of them may change before wait(). All ranks start the same exchanges of a link in the same
  // order.
  void start(Exchange& exchange);

  // The receiving half of start(), as soon as exchange.recv_bytes is set: a peer sends nothing
  // before it has heard that it is waited for, and that news is late behind a segment. What is
  // expected must be started.
  void expect(Exchange& exchange);

  // Returns when exchange.recv is filled; throws what the process group reports (a dead peer, its
  // timeout), or Closed.
  void wait(Exchange& exchange);

  // Fills exchange.recv_bytes from the others' send_bytes, for segments whose size the receiver
  // can't know. Each size is sent three times, and what two of them say holds: a wrong one would
  // have Gloo end the process.
  void exchange_sizes(Exchange& exchange);

  // Bytes handed to the process group for other ranks, since the start.
  int64_t sent_bytes() const { return sent_bytes_.load(); }

  // Ends this rank's waits, present and future ones.
  void close();

  // hang_up() for both groups.
  void hang_up();

 private:
  using Work = c10::intrusive_ptr<c10d::Work>;

  // On the wire thread.
  void post_receives(Exchange& exchange);
  void post_sends(Exchange& exchange);
  void keep(Exchange& exchange, Work work);

  void post(Exchange& exchange, void (Link::*half)(Exchange&));
  void wait_until_posted(Exchange& exchange);
  void forget(const Work& work);

  // What carries messages between two ranks.
  c10d::Backend& way(int sender, int receiver) { return sender < receiver ? *up_ : *down_; }

  c10::intrusive_ptr<c10d::ProcessGroup> up_group_, down_group_;
  c10::intrusive_ptr<c10d::Backend> up_, down_;
  const int tag_;
  WireThread* const wire_;
  int rank_ = 0;
  int size_ = 1;
  Exchange sizes_;
  std::atomic<int64_t> sent_bytes_{0};

  std::mutex mutex_;  // guards what follows, and `posting`, `error` and `works` of exchanges
  std::condition_variable posted_;
  bool closed_ = false;
  std::vector<Work> pending_;  // all that close() has to end
};

}  // namespace gct
