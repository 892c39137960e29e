/* A load client for the mock upstream or a proxy in front of it, single-threaded on epoll.
 *
 * usage: load PORT stream   [options]     event streams; checks loss, order and ends
 *        load PORT requests [options]     small non-streaming requests, back to back
 * options: --connections N  --events N  --interval-us N  --delay-us N  --spread-ms N  --seconds S
 *          --lockstep UPSTREAM_PORT   acknowledge each event (see upstream.c)
 *          --busy                     never sleep: the proxy's writes then wake nobody, which is the cleanest
 *                                     way to see its own cost
 *          --body-bytes N             pad the request body to at least this size
 * Prints one line of JSON.  Delays are microseconds from the upstream's stamp to this client's read.
 */
#include "bench.h"
#include <getopt.h>
#include <sched.h>

enum { WAITING, HEAD, BODY, ENDED };
enum { SIZE_LINE, DATA, DATA_END, TRAILER };

typedef struct connection {
  int fd, state;
  uint64_t start_ns, asked_ns;
  char head[8192];
  size_t head_size;
  int chunked, close_after, chunk_state;
  long long body_left; /* of a Content-Length body; -1: until EOF */
  uint64_t chunk_left;
  char size_line[32];
  int size_at;
  char *line; /* an event line that is not complete yet */
  size_t line_size, line_room;
  uint32_t next_seq;
  int done_seen;
  const char *to_send;
  size_t send_left;
} connection;

static struct {
  int requests, connections, busy, lockstep_port;
  uint32_t events;
  unsigned long interval_us, delay_us, spread_ms, body_bytes;
  double seconds;
} want = {.connections = 50, .events = 200, .interval_us = 20000, .delay_us = 50000, .spread_ms = 1000, .seconds = 30};

static struct {
  double *delays, *first;
  size_t delays_size, delays_room, first_size, first_room;
  uint64_t events, requests, streams, out_of_order, lost, bad_status, broken, unfinished, bytes;
  uint64_t first_ns, last_ns;
  char trouble[256];
} seen;

static int epoll, acks = -1, ended, port;
static uint64_t stop_ns;
static connection *all;
static char *request_text;
static size_t request_size, slot_at;

static void keep(double **values, size_t *size, size_t *room, double value) {
  if (*size == *room) *values = must(realloc(*values, sizeof **values * (*room = *room * 2 + 65536)));
  (*values)[(*size)++] = value;
}

/* ---- the requests */
static void make_request(void) {
  char body_head[512];
  if (want.requests)
    snprintf(body_head, sizeof body_head,
             "{\"model\":\"mock\",\"max_tokens\":16,\"messages\":[{\"role\":\"user\",\"content\":\"answer briefly ");
  else
    snprintf(body_head, sizeof body_head,
             "{\"model\":\"mock\",\"stream\":true,\"max_tokens\":%u,\"messages\":[{\"role\":\"user\",\"content\":"
             "\"bench:n=%u,interval_us=%lu,delay_us=%lu,lockstep=%d,slot=0000 ",
             want.events, want.events, want.interval_us, want.delay_us, want.lockstep_port ? 1 : 0);
  const char *body_tail = "\"}]}";
  size_t fixed = strlen(body_head) + strlen(body_tail), pad = want.body_bytes > fixed ? want.body_bytes - fixed : 0;
  request_text = must(malloc(1024 + fixed + pad));
  int head = sprintf(request_text,
                     "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
                     "accept: */*\r\nuser-agent: legato-bench\r\nauthorization: Bearer bench\r\ncontent-length: %zu\r\n\r\n%s",
                     port, fixed + pad, body_head);
  memset(request_text + head, 'a', pad);
  strcpy(request_text + (size_t)head + pad, body_tail);
  request_size = (size_t)head + pad + strlen(body_tail);
  char *slot = strstr(request_text, "slot=0000");
  slot_at = slot ? (size_t)(slot - request_text) + 5 : 0;
}

static void end_connection(connection *c, const char *why) {
  if (c->state == ENDED) return;
  if (why && !seen.trouble[0]) snprintf(seen.trouble, sizeof seen.trouble, "%s", why);
  c->state = ENDED;
  close(c->fd);
  ended++;
}

static void push_request(connection *c) {
  ssize_t sent = send(c->fd, c->to_send, c->send_left, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent < 0 && errno != EAGAIN) {
    seen.broken++;
    end_connection(c, "could not send a request");
    return;
  }
  if (sent > 0) {
    c->to_send += sent;
    c->send_left -= (size_t)sent;
  }
  watch(epoll, EPOLL_CTL_MOD, c->fd, c->send_left ? EPOLLIN | EPOLLOUT : EPOLLIN, c);
}

static void ask(connection *c) {
  c->head_size = c->line_size = 0;
  c->next_seq = 0;
  c->done_seen = 0;
  c->state = HEAD;
  if (slot_at) write_digits(request_text + slot_at, (uint64_t)(c - all), 4);
  c->to_send = request_text;
  c->send_left = request_size;
  c->asked_ns = now_ns();
  push_request(c);
}

/* ---- the answers */
static void on_line(connection *c, const char *line, size_t size, uint64_t at_ns) {
  const char *mark = memmem(line, size, MARK, 2);
  if (!mark || line + size - mark < MARK_SIZE) {
    if (memmem(line, size, "[DONE]", 6)) c->done_seen = 1;
    return;
  }
  uint64_t sent_ns = read_digits(mark + 2, STAMP_DIGITS), seq = read_digits(mark + 3 + STAMP_DIGITS, SEQ_DIGITS);
  if (seq != c->next_seq) seen.out_of_order++;
  c->next_seq = (uint32_t)seq + 1;
  seen.events++;
  keep(&seen.delays, &seen.delays_size, &seen.delays_room, (double)(int64_t)(at_ns - sent_ns) / 1e3);
  if (seq == 0) keep(&seen.first, &seen.first_size, &seen.first_room, (double)(at_ns - c->asked_ns) / 1e3);
  if (!seen.first_ns) seen.first_ns = at_ns;
  seen.last_ns = at_ns;
  if (acks >= 0) {
    uint32_t slot = (uint32_t)(c - all);
    if (send(acks, &slot, sizeof slot, 0) < 0) perror("load: acknowledgement");
  }
}

static void keep_line(connection *c, const char *data, size_t size) {
  if (c->line_size + size > c->line_room)
    c->line = must(realloc(c->line, c->line_room = (c->line_size + size) * 2 + 512));
  memcpy(c->line + c->line_size, data, size);
  c->line_size += size;
}

static void on_body(connection *c, const char *data, size_t size, uint64_t at_ns) {
  seen.bytes += size;
  if (want.requests) return;
  const char *end = data + size, *newline;
  while (data < end && (newline = memchr(data, '\n', (size_t)(end - data)))) {
    if (c->line_size) {
      keep_line(c, data, (size_t)(newline - data));
      on_line(c, c->line, c->line_size, at_ns);
      c->line_size = 0;
    } else on_line(c, data, (size_t)(newline - data), at_ns);
    data = newline + 1;
  }
  if (data < end) keep_line(c, data, (size_t)(end - data));
}

static void on_complete(connection *c) {
  if (want.requests) {
    seen.requests++;
    keep(&seen.delays, &seen.delays_size, &seen.delays_room, (double)(now_ns() - c->asked_ns) / 1e3);
    if (c->close_after) end_connection(c, "the connection was not kept");
    else if (now_ns() < stop_ns) ask(c);
    else end_connection(c, NULL);
    return;
  }
  if (c->next_seq < want.events) seen.lost += want.events - c->next_seq;
  if (c->next_seq == want.events && c->done_seen) seen.streams++;
  end_connection(c, NULL);
}

static void on_broken(connection *c, const char *why) {
  seen.broken++;
  if (!want.requests && c->next_seq < want.events) seen.lost += want.events - c->next_seq;
  end_connection(c, why);
}

static void on_chunked(connection *c, const char *data, size_t size, uint64_t at_ns) {
  for (size_t i = 0; i < size && c->state == BODY;) {
    if (c->chunk_state == DATA) {
      size_t part = size - i < c->chunk_left ? size - i : (size_t)c->chunk_left;
      on_body(c, data + i, part, at_ns);
      i += part;
      if (!(c->chunk_left -= part)) c->chunk_state = DATA_END;
      continue;
    }
    char byte = data[i++];
    if (byte != '\n') {
      if (byte != '\r' && c->size_at < 31) c->size_line[c->size_at++] = byte;
      continue;
    }
    c->size_line[c->size_at] = 0;
    int empty = c->size_at == 0;
    c->size_at = 0;
    if (c->chunk_state == DATA_END) c->chunk_state = SIZE_LINE;
    else if (c->chunk_state == TRAILER) {
      if (empty) on_complete(c);
    } else c->chunk_state = (c->chunk_left = strtoull(c->size_line, NULL, 16)) ? DATA : TRAILER;
  }
}

static void on_plain(connection *c, const char *data, size_t size, uint64_t at_ns) {
  on_body(c, data, size, at_ns);
  if (c->body_left < 0) return;
  c->body_left -= (long long)size;
  if (c->body_left <= 0) on_complete(c);
}

static size_t on_head(connection *c, const char *data, size_t size) { /* bytes taken */
  size_t room = sizeof c->head - 1 - c->head_size, taken = size < room ? size : room, before = c->head_size;
  memcpy(c->head + before, data, taken);
  c->head_size += taken;
  c->head[c->head_size] = 0;
  char *end = strstr(c->head, "\r\n\r\n"), *found;
  if (!end) {
    if (taken == room) on_broken(c, "a response head of more than 8 KiB");
    return taken;
  }
  end[2] = 0;
  int status = atoi(c->head + 9);
  if (status != 200) {
    char why[160];
    snprintf(why, sizeof why, "status %d", status);
    seen.bad_status++;
    end_connection(c, why);
    return taken;
  }
  c->chunked = (found = strcasestr(c->head, "\r\ntransfer-encoding:")) && strcasestr(found, "chunked");
  c->body_left = (found = strcasestr(c->head, "\r\ncontent-length:")) ? atoll(found + 17) : -1;
  c->close_after = (found = strcasestr(c->head, "\r\nconnection:")) && !strncasecmp(found + 13, " close", 6);
  c->chunk_state = SIZE_LINE;
  c->size_at = 0;
  c->state = BODY;
  if (!c->chunked && c->body_left == 0) on_complete(c);
  return (size_t)(end + 4 - c->head) - before;
}

static void on_readable(connection *c) {
  static char buffer[262144];
  ssize_t got = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
  uint64_t at_ns = now_ns();
  if (got < 0 && errno == EAGAIN) return;
  if (got < 0) on_broken(c, "connection reset");
  else if (got == 0 && c->state == BODY && !c->chunked && c->body_left < 0) on_complete(c);
  else if (got == 0) on_broken(c, "connection closed too early");
  else {
    size_t at = c->state == HEAD ? on_head(c, buffer, (size_t)got) : 0;
    if (c->state != BODY || at >= (size_t)got) return;
    if (c->chunked) on_chunked(c, buffer + at, (size_t)got - at, at_ns);
    else on_plain(c, buffer + at, (size_t)got - at, at_ns);
  }
}

/* ---- the loop */
static void connect_all(void) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  all = must(calloc((size_t)want.connections, sizeof *all));
  for (int i = 0; i < want.connections; i++) {
    connection *c = &all[i];
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (void *)&address, sizeof address)) {
      perror("load: cannot connect");
      exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    watch(epoll, EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
  }
}

static void connect_acks(void) {
  struct sockaddr_un address;
  socklen_t size = ack_address(&address, want.lockstep_port);
  acks = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (connect(acks, (void *)&address, size)) {
    perror("load: cannot reach the upstream's acknowledgement socket");
    exit(1);
  }
}

static void run(void) {
  static struct epoll_event ready[512];
  uint64_t start = now_ns(), armed = 0;
  uint64_t give_up = start + (uint64_t)(want.seconds * 1e9) + (want.requests ? 10000000000ull : 0);
  int started = 0, timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  watch(epoll, EPOLL_CTL_ADD, timer, EPOLLIN, NULL);
  stop_ns = start + (uint64_t)(want.seconds * 1e9);
  for (int i = 0; i < want.connections; i++)
    all[i].start_ns = start + (want.requests ? 0 : want.spread_ms * 1000000ull * (uint64_t)i / (uint64_t)want.connections);
  while (ended < want.connections && now_ns() < give_up) {
    while (started < want.connections && all[started].start_ns <= now_ns()) ask(&all[started++]);
    uint64_t wake = started < want.connections ? all[started].start_ns : give_up;
    if (wake != armed) arm(timer, armed = wake);
    int count = epoll_wait(epoll, ready, 512, want.busy ? 0 : -1);
    if (want.busy && count <= 0) sched_yield();
    for (int i = 0; i < count; i++) {
      connection *c = ready[i].data.ptr;
      if (!c) { armed = 0; arm(timer, 0); continue; }
      if (c->state != ENDED && ready[i].events & EPOLLOUT && c->send_left) push_request(c);
      if (c->state != ENDED && ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        if (c->state == WAITING) on_broken(c, "connection closed before the request");
        else on_readable(c);
      }
    }
  }
  for (int i = 0; i < want.connections; i++) seen.unfinished += all[i].state != ENDED;
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double percentile(const double *sorted, size_t size, double p) {
  return size ? sorted[(size_t)(p / 100 * (double)(size - 1) + 0.5)] : -1;
}

static void report(double elapsed_s) {
  qsort(seen.delays, seen.delays_size, sizeof *seen.delays, compare);
  qsort(seen.first, seen.first_size, sizeof *seen.first, compare);
  double span = want.requests ? want.seconds : (double)(seen.last_ns - seen.first_ns) / 1e9;
  if (span <= 0) span = elapsed_s;
  printf("{\"connections\":%d,\"elapsed_s\":%.4f,\"events\":%lu,\"requests\":%lu,\"streams\":%lu,\"per_s\":%.1f,"
         "\"bytes\":%lu,\"p50_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f,"
         "\"first_p50_us\":%.1f,\"first_p99_us\":%.1f,\"lost\":%lu,\"out_of_order\":%lu,\"bad_status\":%lu,"
         "\"broken\":%lu,\"unfinished\":%lu,\"trouble\":\"%s\"}\n",
         want.connections, elapsed_s, seen.events, seen.requests, seen.streams,
         (double)(want.requests ? seen.requests : seen.events) / span, seen.bytes,
         percentile(seen.delays, seen.delays_size, 50), percentile(seen.delays, seen.delays_size, 99),
         percentile(seen.delays, seen.delays_size, 99.9), percentile(seen.delays, seen.delays_size, 100),
         percentile(seen.first, seen.first_size, 50), percentile(seen.first, seen.first_size, 99), seen.lost,
         seen.out_of_order, seen.bad_status, seen.broken, seen.unfinished, seen.trouble);
}

static void parse(int argc, char **argv) {
  static const struct option options[] = {
      {"connections", 1, 0, 'c'}, {"events", 1, 0, 'e'},    {"interval-us", 1, 0, 'i'}, {"delay-us", 1, 0, 'd'},
      {"spread-ms", 1, 0, 's'},   {"seconds", 1, 0, 't'},   {"lockstep", 1, 0, 'l'},    {"busy", 0, 0, 'b'},
      {"body-bytes", 1, 0, 'y'},  {0, 0, 0, 0}};
  for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (option) {
      case 'c': want.connections = atoi(optarg); break;
      case 'e': want.events = (uint32_t)atol(optarg); break;
      case 'i': want.interval_us = strtoul(optarg, NULL, 10); break;
      case 'd': want.delay_us = strtoul(optarg, NULL, 10); break;
      case 's': want.spread_ms = strtoul(optarg, NULL, 10); break;
      case 't': want.seconds = atof(optarg); break;
      case 'l': want.lockstep_port = atoi(optarg); break;
      case 'b': want.busy = 1; break;
      case 'y': want.body_bytes = strtoul(optarg, NULL, 10); break;
      default: exit(2);
    }
  if (argc - optind != 2) {
    fprintf(stderr, "usage: load PORT stream|requests [options]; see the head of load.c\n");
    exit(2);
  }
  port = atoi(argv[optind]);
  want.requests = !strcmp(argv[optind + 1], "requests");
}

int main(int argc, char **argv) {
  parse(argc, argv);
  raise_file_limit();
  prctl(PR_SET_TIMERSLACK, 1);
  make_request();
  epoll = epoll_create1(EPOLL_CLOEXEC);
  if (want.lockstep_port) connect_acks();
  connect_all();
  uint64_t start = now_ns();
  run();
  report((double)(now_ns() - start) / 1e9);
  return 0;
}
