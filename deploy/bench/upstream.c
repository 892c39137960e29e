/* A mock of a streaming LLM server, single-threaded on epoll, that costs little and stamps what it sends.
 *
 * usage: upstream PORT
 *
 * A body with "stream":true is answered by an event stream, any other request by one small JSON object.
 * The request chooses its stream by a word in its first bytes, which every proxy passes on:
 *   bench:n=200,interval_us=20000,delay_us=50000,lockstep=0,slot=0
 * With lockstep=1 event k+1 is sent when the load client has acknowledged event k (a datagram of uint32
 * slot numbers, see bench.h), so that no proxy can gather events and each one costs a read and a write.
 * One HTTP chunk and one write per event, about 250 bytes, as vLLM does.  The usage line at the end and the
 * finish reason are there, so that a proxy that scores has its normal work.
 */
#include "bench.h"
#include <signal.h>

#define KEPT_BODY 512
#define HEAD_MAX 16384

typedef struct connection {
  struct connection *next_dead;
  int fd;
  char head[HEAD_MAX];
  size_t head_size;
  int in_body, chunked;         /* request body: being read; its framing */
  uint64_t body_left;           /* bytes of the body (or of the chunk) still to come */
  char line[32];                /* a chunk's size line */
  int line_size, skip, trailer; /* bytes of CRLF to skip after a chunk; inside the trailer */
  char kept[KEPT_BODY + 1];     /* the first bytes of the body */
  size_t kept_size;
  int streaming, lockstep, blocked, dead;
  uint32_t slot, events, sent;
  uint64_t interval_ns, due_ns, id;
  int heap_at; /* place in the heap of timers, -1: none */
  char *pending;
  size_t pending_size, pending_at;
} connection;

static int epoll, timer;
static volatile sig_atomic_t stopping;
static uint64_t requests, streams, events_sent;
static connection *slots[MAX_SLOTS], *graveyard;

/* ---- a binary heap of connections by due time */
static connection **heap;
static int heap_size, heap_room;

static void place(int at, connection *c) {
  heap[at] = c;
  c->heap_at = at;
}

static void sift_up(int at) {
  connection *c = heap[at];
  while (at > 0 && heap[(at - 1) / 2]->due_ns > c->due_ns) {
    place(at, heap[(at - 1) / 2]);
    at = (at - 1) / 2;
  }
  place(at, c);
}

static void sift_down(int at) {
  connection *c = heap[at];
  for (int child; (child = 2 * at + 1) < heap_size; at = child) {
    if (child + 1 < heap_size && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
    if (heap[child]->due_ns >= c->due_ns) break;
    place(at, heap[child]);
  }
  place(at, c);
}

static void schedule(connection *c, uint64_t due_ns) {
  c->due_ns = due_ns;
  if (heap_size == heap_room) heap = must(realloc(heap, sizeof *heap * (size_t)(heap_room = heap_room * 2 + 1024)));
  place(heap_size, c);
  sift_up(heap_size++);
}

static void unschedule(connection *c) {
  int at = c->heap_at;
  if (at < 0) return;
  c->heap_at = -1;
  if (at == --heap_size) return;
  connection *moved = heap[heap_size];
  place(at, moved);
  sift_up(at);
  sift_down(moved->heap_at);
}

/* ---- writing */
static void end_stream(connection *c) {
  if (c->lockstep && slots[c->slot] == c) slots[c->slot] = NULL;
  c->streaming = c->lockstep = 0;
  unschedule(c);
}

static void close_connection(connection *c) {
  if (c->dead) return;
  end_stream(c);
  close(c->fd);
  c->dead = 1;
  c->next_dead = graveyard; /* freed after the batch of events, which may still name it */
  graveyard = c;
}

static void put(connection *c, const char *data, size_t size) {
  if (c->dead) return;
  ssize_t done = c->blocked ? 0 : send(c->fd, data, size, MSG_NOSIGNAL);
  if (done == (ssize_t)size) return;
  if (done < 0 && errno != EAGAIN) {
    close_connection(c);
    return;
  }
  if (done < 0) done = 0;
  size_t waiting = c->pending_size - c->pending_at, rest = size - (size_t)done;
  char *joined = must(malloc(waiting + rest));
  memcpy(joined, c->pending + c->pending_at, waiting);
  memcpy(joined + waiting, data + done, rest);
  free(c->pending);
  c->pending = joined;
  c->pending_at = 0;
  c->pending_size = waiting + rest;
  if (!c->blocked) watch(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLOUT, c);
  c->blocked = 1;
}

static void flush(connection *c) {
  ssize_t done = send(c->fd, c->pending + c->pending_at, c->pending_size - c->pending_at, MSG_NOSIGNAL);
  if (done < 0 && errno != EAGAIN) {
    close_connection(c);
    return;
  }
  if (done > 0) c->pending_at += (size_t)done;
  if (c->pending_at < c->pending_size) return;
  c->blocked = 0;
  watch(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
}

/* ---- the answers */
#define CHUNK_OPEN "{\"id\":\"chatcmpl-0000000000000000\",\"object\":\"chat.completion.chunk\",\"created\":1764000000,\"model\":\"mock\",\"choices\":["
static char event_text[512], tail_text[2048];
static size_t event_size, tail_size, id_at, stamp_at, seq_at;

static size_t append_chunk(char *to, size_t at, const char *body) {
  return at + (size_t)sprintf(to + at, "%zx\r\n%s\r\n", strlen(body), body);
}

static void prepare_texts(void) {
  event_size = append_chunk(event_text, 0,
                            "data: " CHUNK_OPEN
                            "{\"index\":0,\"delta\":{\"content\":\"" MARK
                            "0000000000000000000:0000000 \"},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}]}\n\n");
  stamp_at = (size_t)(strstr(event_text, MARK) - event_text) + 2;
  seq_at = stamp_at + STAMP_DIGITS + 1;
  id_at = (size_t)(strstr(event_text, "chatcmpl-") - event_text) + 9;
}

static void make_tail(connection *c) {
  char usage[512];
  snprintf(usage, sizeof usage,
           "data: " CHUNK_OPEN "],\"usage\":{\"prompt_tokens\":12,\"total_tokens\":%u,\"completion_tokens\":%u}}\n\n",
           c->events + 12, c->events);
  tail_size = append_chunk(tail_text, 0,
                           "data: " CHUNK_OPEN
                           "{\"index\":0,\"delta\":{\"content\":\"\"},\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}]}\n\n");
  tail_size = append_chunk(tail_text, tail_size, usage);
  tail_size = append_chunk(tail_text, tail_size, "data: [DONE]\n\n");
  tail_size += (size_t)sprintf(tail_text + tail_size, "0\r\n\r\n");
}

static void send_event(connection *c) {
  write_digits(event_text + id_at, c->id, 16);
  write_digits(event_text + seq_at, c->sent, SEQ_DIGITS);
  write_digits(event_text + stamp_at, now_ns(), STAMP_DIGITS);
  c->sent++;
  events_sent++;
  put(c, event_text, event_size);
}

static void finish_stream(connection *c) {
  make_tail(c);
  end_stream(c);
  put(c, tail_text, tail_size);
}

static void on_due(connection *c) {
  unschedule(c);
  send_event(c);
  if (c->dead || c->lockstep) return;
  if (c->sent == c->events) finish_stream(c);
  else schedule(c, c->due_ns + c->interval_ns);
}

static void on_ack(connection *c) {
  if (c->sent < c->events) send_event(c);
  else finish_stream(c);
}

static void answer_json(connection *c) {
  static const char body[] =
      "{\"id\":\"chatcmpl-0000000000000000\",\"object\":\"chat.completion\",\"created\":1764000000,\"model\":\"mock\","
      "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"hello there, this is a small answer\"},"
      "\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":12,\"total_tokens\":22,\"completion_tokens\":10}}";
  char text[1024];
  int size = snprintf(text, sizeof text,
                      "HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 00:00:00 GMT\r\nserver: mock\r\ncontent-length: %zu\r\n"
                      "content-type: application/json\r\n\r\n%s",
                      sizeof body - 1, body);
  put(c, text, (size_t)size);
}

static void answer(connection *c) {
  static const char head[] =
      "HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 00:00:00 GMT\r\nserver: mock\r\n"
      "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
  requests++;
  c->kept[c->kept_size] = 0;
  const char *wish = strstr(c->kept, "bench:");
  unsigned n = 0, lockstep = 0, slot = 0;
  unsigned long interval_us = 0, delay_us = 0;
  if (!wish || sscanf(wish, "bench:n=%u,interval_us=%lu,delay_us=%lu,lockstep=%u,slot=%u", &n, &interval_us, &delay_us,
                      &lockstep, &slot) != 5) {
    answer_json(c);
    return;
  }
  c->id = ++streams;
  c->streaming = 1;
  c->events = n;
  c->sent = 0;
  c->interval_ns = interval_us * 1000;
  c->lockstep = (int)lockstep;
  c->slot = slot % MAX_SLOTS;
  if (c->lockstep) slots[c->slot] = c;
  put(c, head, sizeof head - 1);
  if (!c->dead) schedule(c, now_ns() + delay_us * 1000);
}

/* ---- reading requests */
static void end_request(connection *c) {
  c->in_body = 0;
  answer(c);
}

static size_t on_head(connection *c, const char *data, size_t size) { /* bytes taken */
  size_t room = HEAD_MAX - 1 - c->head_size, taken = size < room ? size : room, before = c->head_size;
  memcpy(c->head + before, data, taken);
  c->head_size += taken;
  c->head[c->head_size] = 0;
  char *end = strstr(c->head, "\r\n\r\n");
  if (!end) {
    if (c->head_size >= HEAD_MAX - 1) close_connection(c);
    return taken;
  }
  size_t whole = (size_t)(end + 4 - c->head);
  end[2] = 0;
  const char *length = strcasestr(c->head, "\r\ncontent-length:"), *coding = strcasestr(c->head, "\r\ntransfer-encoding:");
  c->chunked = coding && strcasestr(coding, "chunked");
  c->body_left = length && !c->chunked ? strtoull(length + 17, NULL, 10) : 0;
  if (strcasestr(c->head, "\r\nexpect: 100")) put(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
  c->head_size = c->kept_size = 0;
  c->line_size = c->skip = c->trailer = 0;
  c->in_body = 1;
  if (!c->chunked && !c->body_left) end_request(c);
  return whole - before;
}

static size_t on_body_data(connection *c, const char *data, size_t size) {
  size_t taken = size < c->body_left ? size : (size_t)c->body_left;
  size_t keep = KEPT_BODY - c->kept_size < taken ? KEPT_BODY - c->kept_size : taken;
  memcpy(c->kept + c->kept_size, data, keep);
  c->kept_size += keep;
  c->body_left -= taken;
  return taken;
}

static void on_chunk_line(connection *c, char byte) {
  if (byte != '\n') {
    if (byte != '\r' && c->line_size < 31) c->line[c->line_size++] = byte;
    return;
  }
  c->line[c->line_size] = 0;
  int empty = c->line_size == 0;
  c->line_size = 0;
  if (c->trailer) {
    if (empty) end_request(c);
    return;
  }
  if (empty) return; /* the CRLF behind a chunk's data */
  c->body_left = strtoull(c->line, NULL, 16);
  c->trailer = c->body_left == 0;
}

static void on_bytes(connection *c, const char *data, size_t size) {
  while (size && !c->dead) {
    size_t taken = 1;
    if (!c->in_body) taken = on_head(c, data, size);
    else if (c->body_left) taken = on_body_data(c, data, size);
    else on_chunk_line(c, *data);
    data += taken;
    size -= taken;
    if (!c->dead && c->in_body && !c->chunked && !c->body_left) end_request(c);
  }
}

static void on_readable(connection *c) {
  static char buffer[262144];
  ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
  if (got > 0) on_bytes(c, buffer, (size_t)got);
  else if (got == 0 || errno != EAGAIN) close_connection(c);
}

/* ---- the loop */
static void accept_all(int listener) {
  int one = 1, fd;
  while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    connection *c = must(calloc(1, sizeof *c));
    c->fd = fd;
    c->heap_at = -1;
    watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, c);
  }
}

static void take_acks(int acks) {
  static uint32_t batch[1024];
  ssize_t got;
  while ((got = recv(acks, batch, sizeof batch, 0)) > 0)
    for (size_t i = 0; i < (size_t)got / sizeof *batch; i++) {
      connection *c = slots[batch[i] % MAX_SLOTS];
      if (c && !c->dead && c->streaming) on_ack(c);
    }
}

static void fire_timers(void) {
  uint64_t expirations, now = now_ns();
  if (read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN) perror("timerfd");
  while (heap_size && heap[0]->due_ns <= now) on_due(heap[0]);
}

static int listen_on(int port) {
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (void *)&address, sizeof address) || listen(fd, 8192)) {
    perror("upstream: cannot listen");
    exit(1);
  }
  return fd;
}

static int open_acks(int port) {
  struct sockaddr_un address;
  socklen_t size = ack_address(&address, port);
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (bind(fd, (void *)&address, size)) {
    perror("upstream: cannot bind the acknowledgement socket");
    exit(1);
  }
  return fd;
}

static void on_signal(int number) {
  (void)number;
  stopping = 1;
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: upstream PORT\n");
    return 2;
  }
  int port = atoi(argv[1]);
  raise_file_limit();
  prepare_texts();
  signal(SIGTERM, on_signal);
  signal(SIGINT, on_signal);
  int listener = listen_on(port), acks = open_acks(port);
  epoll = epoll_create1(EPOLL_CLOEXEC);
  timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
  watch(epoll, EPOLL_CTL_ADD, acks, EPOLLIN, &acks);
  watch(epoll, EPOLL_CTL_ADD, timer, EPOLLIN, &timer);
  static struct epoll_event ready[512];
  uint64_t armed = 0;
  while (!stopping) {
    uint64_t wanted = heap_size ? heap[0]->due_ns : 0;
    if (wanted != armed) arm(timer, armed = wanted);
    int count = epoll_wait(epoll, ready, 512, -1);
    for (int i = 0; i < count; i++) {
      void *who = ready[i].data.ptr;
      if (who == &listener) accept_all(listener);
      else if (who == &acks) take_acks(acks);
      else if (who == &timer) { fire_timers(); armed = 0; }
      else {
        connection *c = who;
        if (!c->dead && ready[i].events & EPOLLOUT) flush(c);
        if (!c->dead && ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(c);
      }
    }
    while (graveyard) {
      connection *c = graveyard;
      graveyard = c->next_dead;
      free(c->pending);
      free(c);
    }
  }
  fprintf(stderr, "upstream: %lu requests, %lu streams, %lu events\n", requests, streams, events_sent);
  return 0;
}
