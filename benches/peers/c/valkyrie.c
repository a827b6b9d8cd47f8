// Valkyrie's C package: blocking calls, and callbacks from a completion queue for many in flight.
#include "harness.h"
#include <valkyrie.h>

static void *open_client(const char *host, int port) {
    char endpoint[128];
    valkyrie_client *client = NULL;
    snprintf(endpoint, sizeof endpoint, "tcp://%s:%d", host, port);
    valkyrie_client_connect(endpoint, NULL, &client, NULL);
    return client;
}

static int echo(void *client, const void *p, size_t n) {
    valkyrie_message *response = NULL;
    valkyrie_bytes message = {p, n};
    if (valkyrie_client_call(client, "/echo", message, NULL, &response, NULL) != 0) return -1;
    int differs = valkyrie_message_bytes(response).len != n;
    valkyrie_message_free(response);
    return differs;
}

struct load {
    valkyrie_client *client;
    valkyrie_queue *queue;
    valkyrie_bytes message;
    uint64_t end;
    struct rec *rec;
    int left, failed;
};
struct call {
    struct load *load;
    uint64_t began;
};

static void start(struct call *call);
static void done(const valkyrie_completion *completion, void *data) {
    struct call *call = data;
    uint64_t at = now_ns();
    if (completion->code != 0 || valkyrie_message_bytes(completion->message).len != call->load->message.len)
        call->load->failed = 1;
    valkyrie_message_free(completion->message);
    valkyrie_error_free(completion->error);
    rec_add(call->load->rec, at - call->began);
    if (at < call->load->end) start(call);
    else call->load->left--;
}
static void start(struct call *call) {
    struct load *load = call->load;
    valkyrie_operation operation = VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_CALL);
    operation.client = load->client;
    operation.target = "/echo";
    operation.message = load->message;
    call->began = now_ns();
    if (valkyrie_operation_start(load->queue, &operation, NULL, NULL, done, call) != 0) {
        load->failed = 1;
        load->left--;
    }
}

static int run_n(void *client, const void *p, size_t n, int in_flight, uint64_t end, struct rec *rec) {
    struct load load = {client, NULL, {p, n}, end, rec, in_flight, 0};
    struct call *calls = malloc(sizeof *calls * (size_t)in_flight);
    if (valkyrie_queue_new(&load.queue, NULL) != 0) return -1;
    for (int i = 0; i < in_flight; i++) {
        calls[i].load = &load;
        start(&calls[i]);
    }
    while (load.left > 0) valkyrie_queue_dispatch(load.queue, VALKYRIE_NO_TIMEOUT);
    valkyrie_queue_free(load.queue);
    free(calls);
    return load.failed ? -1 : 0;
}

static int stream(void *client, uint64_t count, uint32_t size) {
    uint8_t wanted[12];
    for (int i = 0; i < 8; i++) wanted[i] = (uint8_t)(count >> 8 * i);
    for (int i = 0; i < 4; i++) wanted[8 + i] = (uint8_t)(size >> 8 * i);
    valkyrie_bytes message = {wanted, sizeof wanted};
    valkyrie_call *call = NULL;
    valkyrie_message *got = NULL;
    if (valkyrie_client_open(client, "/stream", NULL, &call, NULL) != 0) return -1;
    int failed = valkyrie_call_send(call, message, NULL) != 0 || valkyrie_call_half_close(call, NULL) != 0;
    while (!failed && !(failed = valkyrie_call_recv(call, &got, NULL) != 0) && got != NULL) {
        failed = valkyrie_message_bytes(got).len != size;
        valkyrie_message_free(got);
        count--;
    }
    valkyrie_call_free(call);
    return failed || count != 0 ? -1 : 0;
}

static void close_client(void *client) { valkyrie_client_free(client); }

int main(int argc, char **argv) {
    struct impl impl = {open_client, echo, run_n, stream, close_client};
    return harness_main(argc, argv, &impl);
}
