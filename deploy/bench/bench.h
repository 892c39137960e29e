/* What the bench's two C programs share: the clock, and the stamp that each event carries. */
#ifndef LEGATO_BENCH_H
#define LEGATO_BENCH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* "@T" + send stamp (CLOCK_MONOTONIC, ns, 19 digits) + ":" + sequence number (7 digits) */
#define MARK "@T"
#define STAMP_DIGITS 19
#define SEQ_DIGITS 7
#define MARK_SIZE (2 + STAMP_DIGITS + 1 + SEQ_DIGITS)
#define MAX_SLOTS 8192

static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static inline void write_digits(char *at, uint64_t value, int width) {
  for (int i = width - 1; i >= 0; i--, value /= 10) at[i] = (char)('0' + value % 10);
}

static inline uint64_t read_digits(const char *at, int width) {
  uint64_t value = 0;
  for (int i = 0; i < width; i++) value = value * 10 + (uint64_t)(at[i] - '0');
  return value;
}

static inline void *must(void *memory) {
  if (!memory) {
    fprintf(stderr, "out of memory\n");
    exit(1);
  }
  return memory;
}

static inline void raise_file_limit(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

/* The abstract Unix datagram socket over which a lockstep client acknowledges events to the upstream. */
static inline socklen_t ack_address(struct sockaddr_un *address, int upstream_port) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  int length = sprintf(address->sun_path + 1, "legato-bench-%d", upstream_port);
  return (socklen_t)(sizeof(sa_family_t) + 1 + (size_t)length);
}

static inline int arm(int timer, uint64_t due_ns) { /* absolute; 0 disarms */
  struct itimerspec when = {.it_value = {(time_t)(due_ns / 1000000000ull), (long)(due_ns % 1000000000ull)}};
  return timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static inline void watch(int epoll, int op, int fd, uint32_t events, void *who) {
  struct epoll_event event = {.events = events, .data.ptr = who};
  if (epoll_ctl(epoll, op, fd, &event) < 0) {
    perror("epoll_ctl");
    exit(1);
  }
}

#endif
