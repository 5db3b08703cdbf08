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
static _Atomic long place = 500;

/* After `skip` messages with a part of `least` to `most` bytes the next one gets a flipped bit in that part, so many
 * thousandths behind its begin. */
void flip_message(long least, long most, long skip, long thousandths) {
  place = thousandths;
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
  long armed = least;
  if (!atomic_compare_exchange_strong(&least_bytes, &armed, 0)) return real(fd, parts, count); /* another thread's */
  const size_t at = (size_t)((double)(parts[part].iov_len - 1) * place / 1000);
  unsigned char* damaged = malloc(parts[part].iov_len);
  struct iovec* copy = malloc((size_t)count * sizeof *copy);
  memcpy(copy, parts, (size_t)count * sizeof *copy);
  memcpy(damaged, parts[part].iov_base, parts[part].iov_len);
  damaged[at] ^= 0x10;
  copy[part].iov_base = damaged;
  const ssize_t sent = real(fd, copy, count);
  if (sent > 0 && (size_t)sent > before + at) {
    ++flipped;
  } else { /* it comes once more */
    least_bytes = least;
  }
  free(copy);
  free(damaged);
  return sent;
}
