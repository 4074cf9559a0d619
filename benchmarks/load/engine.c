/* A fake engine that costs almost nothing, so that a proxy's cost is visible: one thread, epoll, HTTP/1.1 keep-alive.
 *
 *     engine PERIOD_US MODELS PORT...
 *
 * On each port, it acts as a vLLM server with the models "m", "m-1" to "m-<MODELS - 1>". A POST gets a completion
 * immediately or, if its body contains "stream":true, max_tokens events: the first immediately, then one per PERIOD_US,
 * each in its own chunk and write, with its time of creation (CLOCK_MONOTONIC, ns, between two @). GET /streams returns
 * the number of running streams. The engine trusts its input: it is for measuring proxies, not for testing them. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define IN_BYTES (2 << 20) /* the longest request */
#define OUT_BYTES 65536    /* unsent bytes after which a slow reader's stream is aborted */

typedef struct connection {
    int fd;
    char *in, *out;
    size_t in_length, out_length;
    long events_left; /* 0 if this is no stream */
    uint64_t due;
    struct connection *previous, *next; /* list of streams, ordered by the time of the next event */
} connection;

static int loop;
static uint64_t period;
static char *models; /* the reply to GET /v1/models */
static int streams;  /* number of running streams */
static connection *first_due, *last_due; /* all streams have the same period, so a served one moves to the end */

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void leave_line(connection *c) {
    *(c->previous ? &c->previous->next : &first_due) = c->next;
    *(c->next ? &c->next->previous : &last_due) = c->previous;
    c->previous = c->next = NULL;
    streams--;
}

static void join_line(connection *c) {
    c->previous = last_due;
    c->next = NULL;
    *(last_due ? &last_due->next : &first_due) = c;
    last_due = c;
    streams++;
}

static void drop(connection *c) {
    if (c->events_left) leave_line(c);
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

/* Writes unsent bytes and then `text`; returns 0 if the connection is gone. */
static int put(connection *c, const char *text, size_t length) {
    if (c->out_length + length > OUT_BYTES) return 0;
    memcpy(c->out + c->out_length, text, length);
    c->out_length += length;
    ssize_t sent = send(c->fd, c->out, c->out_length, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN) return 0;
        sent = 0;
    }
    c->out_length -= sent;
    memmove(c->out, c->out + sent, c->out_length);
    struct epoll_event wanted = {EPOLLIN | (c->out_length ? EPOLLOUT : 0), {.ptr = c}};
    if (c->out_length || !length) epoll_ctl(loop, EPOLL_CTL_MOD, c->fd, &wanted);
    return 1;
}

#define OK "200 OK"

static int put_reply(connection *c, const char *status, const char *type, const char *body) {
    static char reply[OUT_BYTES];
    int length = snprintf(reply, sizeof reply,
                          "HTTP/1.1 %s\r\ndate: Sun, 22 Nov 2026 06:00:00 GMT\r\nserver: uvicorn\r\n"
                          "content-length: %zu\r\ncontent-type: %s\r\n\r\n%s", status, strlen(body), type, body);
    return put(c, reply, length);
}

static int put_event(connection *c) {
    char event[512], chunk[600];
    int length = snprintf(event, sizeof event,
                          "data: {\"id\":\"chatcmpl-8f14e45fceea167a\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,"
                          "\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"@%llu@\"},\"logprobs\":null,"
                          "\"finish_reason\":%s}]}\n\n", (unsigned long long)now(), c->events_left > 1 ? "null" : "\"length\"");
    length = snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n%s", length, event,
                      --c->events_left ? "" : "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    return put(c, chunk, length);
}

/* Sends an event to a connection outside the list; the next event is due one period after this one was due. */
static int send_event(connection *c) {
    c->due += period;
    int is_alive = put_event(c);
    if (c->events_left) join_line(c);
    return is_alive;
}

static int answer_get(connection *c, const char *target) {
    if (!strncmp(target, "/v1/models", 10)) return put_reply(c, OK, "application/json", models);
    if (!strncmp(target, "/metrics", 8))
        return put_reply(c, OK, "text/plain", "vllm:num_requests_running{model_name=\"m\"} 0\n"
                                          "vllm:num_requests_waiting{model_name=\"m\"} 0\n");
    if (!strncmp(target, "/health", 7)) return put_reply(c, OK, "application/json", "");
    if (strncmp(target, "/streams", 8)) /* as a server does outside development mode */
        return put_reply(c, "404 Not Found", "application/json", "{\"detail\":\"Not Found\"}");
    char count[16];
    snprintf(count, sizeof count, "%d", streams);
    return put_reply(c, OK, "application/json", count);
}

/* The value of a JSON member, after any blanks; NULL if the body has no such member. */
static const char *value_of(const char *body, const char *name) {
    const char *at = strstr(body, name);
    return at ? at + strlen(name) + strspn(at + strlen(name), " ") : NULL;
}

static int answer_post(connection *c, const char *body) {
    const char *stream = value_of(body, "\"stream\":");
    if (!stream || *stream != 't')
        return put_reply(c, OK, "application/json",
                         "{\"id\":\"chatcmpl-8f14e45fceea167a\",\"object\":\"chat.completion\",\"created\":1790000000,\"model\":\"m\","
                         "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Between two mountains the "
                         "river had cut a valley so narrow that the sun reached its floor for one hour a day, and the people "
                         "who lived there had learned to do in that hour everything that needed light, and to talk in the "
                         "others.\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":211,"
                         "\"completion_tokens\":54,\"total_tokens\":265,\"prompt_tokens_details\":null}}");
    static const char head[] = "HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 06:00:00 GMT\r\nserver: uvicorn\r\n"
                               "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    if (!put(c, head, sizeof head - 1)) return 0;
    const char *wanted = value_of(body, "\"max_tokens\":");
    c->events_left = wanted ? atol(wanted) : 100;
    c->due = now();
    return send_event(c);
}

/* Answers the request in the buffer, once it is complete. */
static int serve(connection *c) {
    c->in[c->in_length] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return 1;
    const char *field = strcasestr(c->in, "\r\ncontent-length:");
    size_t body_length = field && field < end ? strtoul(field + 17, NULL, 10) : 0;
    if ((size_t)(c->in + c->in_length - end - 4) < body_length) return 1;
    int is_alive = strncmp(c->in, "POST", 4) ? answer_get(c, strchr(c->in, ' ') + 1) : answer_post(c, end + 4);
    c->in_length = 0; /* clients do not pipeline */
    return is_alive;
}

static int receive(connection *c) {
    ssize_t length = recv(c->fd, c->in + c->in_length, IN_BYTES - c->in_length, 0);
    if (length <= 0) return length < 0 && errno == EAGAIN;
    c->in_length += length;
    return serve(c);
}

static void accept_all(int listener) {
    int one = 1, fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connection *c = calloc(1, sizeof *c);
        *c = (connection){.fd = fd, .in = malloc(IN_BYTES + 1), .out = malloc(OUT_BYTES)};
        struct epoll_event wanted = {EPOLLIN, {.ptr = c}};
        epoll_ctl(loop, EPOLL_CTL_ADD, fd, &wanted);
    }
}

/* An epoll event's data is a connection pointer or a listener's descriptor; a descriptor is no valid pointer. */
static void listen_on(int port) {
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("engine: cannot listen");
        exit(1);
    }
    struct epoll_event wanted = {EPOLLIN, {.u64 = listener}};
    epoll_ctl(loop, EPOLL_CTL_ADD, listener, &wanted);
}

static void send_what_is_due(void) {
    uint64_t moment = now();
    while (first_due && first_due->due <= moment) {
        connection *c = first_due;
        leave_line(c);
        if (!send_event(c)) drop(c);
    }
}

static void name_models(int count) {
    size_t length = 0;
    models = malloc(64 * (count + 1));
    length += sprintf(models, "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"owned_by\":\"vllm\"}");
    for (int number = 1; number < count; number++)
        length += sprintf(models + length, ",{\"id\":\"m-%d\",\"object\":\"model\",\"owned_by\":\"vllm\"}", number);
    strcpy(models + length, "]}");
}

int main(int count, char **arguments) {
    if (count < 4) {
        fprintf(stderr, "usage: engine PERIOD_US MODELS PORT...\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    loop = epoll_create1(0);
    period = strtoull(arguments[1], NULL, 10) * 1000;
    name_models(atoi(arguments[2]));
    for (int i = 3; i < count; i++) listen_on(atoi(arguments[i]));
    for (;;) {
        uint64_t moment = now(), wait = first_due && first_due->due > moment ? first_due->due - moment : 0;
        struct timespec timeout = {wait / 1000000000, wait % 1000000000};
        struct epoll_event events[256];
        int ready = epoll_pwait2(loop, events, 256, first_due ? &timeout : NULL, NULL);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.u64 < 4096) {
                accept_all(events[i].data.u64);
                continue;
            }
            connection *c = events[i].data.ptr;
            int is_alive = !(events[i].events & EPOLLOUT) || put(c, "", 0);
            if (is_alive && events[i].events & ~EPOLLOUT) is_alive = receive(c);
            if (!is_alive) drop(c);
        }
        send_what_is_due();
    }
}
