/* Flips one bit of what this process sends, for tests: LD_PRELOAD this, then call flip_message(). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

static _Atomic long least_bytes = 0; /* 0: nothing is to be flipped */
static _Atomic long most_bytes = 0;
static _Atomic long skipped = 0;
static _Atomic long flipped = 0;

/* After `skip` messages with a part of `least` to `most` bytes the next one gets a flipped bit in the middle of that part. */
void flip_message(long least, long most, long skip) {
  skipped = skip;
  most_bytes = most;
  least_bytes = least;
}
long flipped_bits(void) { return flipped; }

typedef ssize_t (*Writev)(int, const struct iovec*, int);

ssize_t writev(int fd, const struct iovec* parts, int count) {
  Writev real = (Writev)dlsym(RTLD_NEXT, "writev");
  const long least = least_bytes;
  size_t before = 0;
  int part = 0;
  while (part < count && (least == 0 || (long)parts[part].iov_len < least || (long)parts[part].iov_len > most_bytes)) {
    before += parts[part++].iov_len;
  }
  if (part == count || skipped-- > 0) return real(fd, parts, count);
  const size_t middle = parts[part].iov_len / 2;
  unsigned char* damaged = malloc(parts[part].iov_len);
  struct iovec* copy = malloc((size_t)count * sizeof *copy);
  memcpy(copy, parts, (size_t)count * sizeof *copy);
  memcpy(damaged, parts[part].iov_base, parts[part].iov_len);
  damaged[middle] ^= 0x10;
  copy[part].iov_base = damaged;
  const ssize_t sent = real(fd, copy, count);
  if (sent > 0 && (size_t)sent > before + middle) { /* else it comes once more */
    least_bytes = 0;
    ++flipped;
  }
  free(copy);
  free(damaged);
  return sent;
}
