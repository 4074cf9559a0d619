/* Puts load on a proxy and measures its cost: one thread, epoll, HTTP/1.1 with keep-alive.
 *
 *     client PORT CONNECTIONS BODY_BYTES TOKENS MODELS WARM_UP_SECONDS SECONDS [PID...]
 *
 * Every connection sends its next request once its reply is complete. TOKENS 0: requests without streaming, all
 * connections at once. TOKENS above 0: streams of TOKENS events; the connections open evenly over half of the warm-up.
 * The requests name each of MODELS models in turn, as named by engine.c. After the warm-up, the client measures for
 * SECONDS and prints one JSON object: CPU time of the threads of each PID, total memory of all PIDs; "p50_us" is the
 * median duration of a request without streaming, or the median age of an event at its arrival (the engine writes the
 * time of creation into it between two @); "first_p50_us" is the median time from a request to its first event. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "measures.h"

typedef struct {
    size_t length;
    char *text;
} request;

typedef struct {
    int fd;
    const request *asked;
    size_t to_send;
    uint64_t began;
    char head[4096];
    size_t head_length;
    long body_left; /* -1 until the head is complete; then always 0 for a stream */
    uint64_t birth; /* creation time of an event, by the digits read so far */
    int in_birth, has_event;
    char tail[5]; /* last bytes read, to detect the end of a stream */
} connection;

static int loop, is_streaming;
static long failed, completed, events, reads;
static struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {0}};
static request *requests;
static int models, next_model;
static uint64_t from = UINT64_MAX, until = UINT64_MAX; /* the measured period */
static histogram latencies, firsts;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static int is_measured(uint64_t moment) { return moment >= from && moment < until; }

/* A body: messages, then the model's name, then blanks up to the length. */
static size_t make_body(char *body, size_t body_bytes, long tokens, const char *model) {
    size_t length = sprintf(body, "{\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"}");
    for (int turn = 0; length + 200 < body_bytes; turn++) {
        size_t words = (body_bytes - length - 160) < 1400 ? (body_bytes - length - 160) / 28 : 50;
        length += sprintf(body + length, ",{\"role\":\"%s\",\"content\":\"", turn % 2 ? "assistant" : "user");
        while (words-- > 0) length += sprintf(body + length, "and the \\\"river\\\" went on,\\n ");
        length += sprintf(body + length, "\"}");
        if (body_bytes - length < 400) break;
    }
    length += sprintf(body + length, "],\"model\":\"%s\",\"max_tokens\":%ld%s", model, tokens ? tokens : 100,
                      tokens ? ",\"stream\":true" : "");
    while (length + 1 < body_bytes) body[length++] = ' ';
    body[length++] = '}';
    return length;
}

/* The 13 header fields that the OpenAI library for Python sends. */
static request make_request(int port, size_t body_bytes, long tokens, int number) {
    char model[32], *body = malloc(body_bytes + 4096);
    snprintf(model, sizeof model, number ? "m-%d" : "m", number);
    size_t length = make_body(body, body_bytes, tokens, model);
    request made = {.text = malloc(length + 1024)};
    made.length = sprintf(made.text, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: gzip, deflate\r\n"
        "Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 3.0.0\r\n"
        "X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 3.0.0\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\n"
        "X-Stainless-Runtime: CPython\r\nAuthorization: Bearer sk-0123456789\r\nContent-Length: %zu\r\n\r\n", port, length);
    memcpy(made.text + made.length, body, length);
    made.length += length;
    free(body);
    return made;
}

static void send_some(connection *c) {
    ssize_t sent = send(c->fd, c->asked->text + c->asked->length - c->to_send, c->to_send, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) c->to_send -= sent;
}

static void send_rest(connection *c) {
    send_some(c);
    struct epoll_event wanted = {EPOLLIN | (c->to_send ? EPOLLOUT : 0), {.ptr = c}};
    epoll_ctl(loop, EPOLL_CTL_MOD, c->fd, &wanted);
}

static void begin(connection *c) {
    c->began = now();
    c->asked = &requests[next_model++ % models];
    c->to_send = c->asked->length;
    c->head_length = c->in_birth = c->has_event = 0;
    c->body_left = -1;
    memset(c->tail, 0, sizeof c->tail);
    send_some(c);
    if (c->to_send) send_rest(c);
}

static void open_connection(connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
        perror("client: cannot connect");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event wanted = {EPOLLIN, {.ptr = c}};
    epoll_ctl(loop, EPOLL_CTL_ADD, c->fd, &wanted);
    begin(c);
}

static void fail(connection *c) {
    failed++;
    close(c->fd);
    if (failed > 1000) {
        fprintf(stderr, "client: more than 1000 failures, the last reply began with: %.80s\n", c->head);
        exit(1);
    }
    open_connection(c);
}

static void take_event(connection *c, uint64_t moment) {
    if (!c->has_event && is_measured(moment)) count(&firsts, moment - c->began);
    c->has_event = 1;
    if (!is_measured(moment)) return;
    events++;
    count(&latencies, moment - c->birth);
}

static void read_events(connection *c, const char *bytes, size_t length, uint64_t moment) {
    for (const char *at = bytes, *end = bytes + length; at < end; at++) {
        if (c->in_birth && *at != '@') {
            c->birth = c->birth * 10 + (*at - '0');
            continue;
        }
        if (!c->in_birth && !(at = memchr(at, '@', end - at))) return;
        if (c->in_birth) take_event(c, moment);
        c->in_birth = !c->in_birth;
        c->birth = 0;
    }
}

/* Whether the last chunk has arrived: a line with a zero and an empty line, which no event contains. */
static int ends_stream(connection *c, const char *bytes, size_t length) {
    size_t fresh = length < sizeof c->tail ? length : sizeof c->tail;
    memmove(c->tail, c->tail + fresh, sizeof c->tail - fresh);
    memcpy(c->tail + sizeof c->tail - fresh, bytes + length - fresh, fresh);
    return !memcmp(c->tail, "0\r\n\r\n", sizeof c->tail);
}

static void finish(connection *c, uint64_t moment) {
    if (is_measured(moment)) completed++;
    begin(c);
}

/* Appends the bytes that belong to the head to `head`, NUL-terminated; returns their number, or -1. */
static ssize_t read_head(connection *c, const char *bytes, size_t length) {
    size_t before = c->head_length, room = sizeof c->head - 1 - before, taken = length < room ? length : room;
    memcpy(c->head + before, bytes, taken);
    c->head[c->head_length += taken] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) return c->head_length < sizeof c->head - 1 ? (ssize_t)taken : -1;
    const char *field = strcasestr(c->head, "\r\ncontent-length:");
    if (strncmp(c->head, "HTTP/1.1 200", 12) || (!is_streaming && !field)) return -1;
    c->body_left = is_streaming ? 0 : atol(field + 17);
    return end + 4 - c->head - before;
}

static void receive(connection *c) {
    static char bytes[65536];
    ssize_t length = recv(c->fd, bytes, sizeof bytes, MSG_DONTWAIT), taken = 0, bytes_left;
    if (length < 0 && errno == EAGAIN) return;
    uint64_t moment = now();
    if (length <= 0) return fail(c);
    if (c->body_left < 0 && (taken = read_head(c, bytes, length)) < 0) return fail(c);
    bytes_left = length - taken;
    if (is_streaming) {
        reads += is_measured(moment);
        read_events(c, bytes + taken, bytes_left, moment);
        if (ends_stream(c, bytes + taken, bytes_left)) finish(c, moment);
    } else if (c->body_left >= 0 && (c->body_left -= bytes_left) <= 0) {
        if (is_measured(moment)) count(&latencies, moment - c->began);
        finish(c, moment);
    }
}

/* Serves the connections until `moment`, and opens the first `wanted` connections evenly until `opened_by`. */
static void run_until(uint64_t moment, connection *connections, int wanted, int *opened, uint64_t began, uint64_t opened_by) {
    struct epoll_event ready[256];
    for (uint64_t time; (time = now()) < moment;) {
        while (*opened < wanted && time >= began + (opened_by - began) / wanted * *opened) open_connection(&connections[(*opened)++]);
        int count = epoll_wait(loop, ready, 256, *opened < wanted ? 1 : (int)((moment - time) / 1000000) + 1);
        for (int i = 0; i < count; i++) {
            connection *c = ready[i].data.ptr;
            if (ready[i].events & EPOLLOUT && c->to_send) send_rest(c);
            if (ready[i].events & ~EPOLLOUT) receive(c);
        }
    }
}

/* The kernel's counters. */
static void read_clocks(int pids, char **pid, uint64_t *cpu, int core, double *idle) {
    *idle = idle_of(core);
    for (int i = 0; i < pids; i++) cpu[i] = cpu_of(pid[i]);
}

static void print_report(double seconds, int opened, const connection *connections, double busy) {
    long answered = 0;
    for (int i = 0; i < opened; i++) answered += connections[i].has_event;
    printf("{\"seconds\": %.3f, \"connections\": %d, \"requests\": %ld, \"events\": %ld, \"reads\": %ld, \"failed\": %ld, "
           "\"streaming\": %ld, \"p50_us\": %.1f, \"p99_us\": %.1f, \"first_p50_us\": %.1f, \"first_p99_us\": %.1f, "
           "\"load_core_busy\": %.3f, ", seconds, opened, completed, events, reads, failed, answered,
           quantile(&latencies, .5), quantile(&latencies, .99), quantile(&firsts, .5), quantile(&firsts, .99), busy);
}

int main(int arguments, char **argument) {
    if (arguments < 8) {
        fprintf(stderr, "usage: client PORT CONNECTIONS BODY_BYTES TOKENS MODELS WARM_UP_SECONDS SECONDS [PID...]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int port = atoi(argument[1]), wanted = atoi(argument[2]), opened = 0, pids = arguments - 8, core = sched_getcpu();
    double warm_up = atof(argument[6]), seconds = atof(argument[7]), idle_before, idle;
    is_streaming = atol(argument[4]) > 0;
    models = atoi(argument[5]);
    requests = calloc(models, sizeof *requests);
    for (int i = 0; i < models; i++) requests[i] = make_request(port, atol(argument[3]), atol(argument[4]), i);
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    loop = epoll_create1(0);
    connection *connections = calloc(wanted, sizeof *connections);
    uint64_t before[pids + 1], after[pids + 1];

    uint64_t began = now(), warm = began + (uint64_t)(warm_up * 1e9);
    run_until(warm, connections, wanted, &opened, began, began + (is_streaming ? (warm - began) / 2 : 0));
    read_clocks(pids, argument + 8, before, core, &idle_before);
    from = now();
    until = from + (uint64_t)(seconds * 1e9);
    run_until(until, connections, wanted, &opened, began, began);
    read_clocks(pids, argument + 8, after, core, &idle);
    print_report(seconds, opened, connections, 1 - (idle - idle_before) / seconds);
    printf("\"cpu_us\": [");
    long memory = 0;
    for (int i = 0; i < pids; i++) {
        printf("%s%.1f", i ? ", " : "", (after[i] - before[i]) / 1e3);
        memory += memory_of(argument[8 + i]);
    }
    printf("], \"memory_bytes\": %ld}\n", memory);
}
