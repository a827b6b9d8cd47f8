/* Each operation in each style: a descriptor on the host's poller, and a dispatch that blocks; the third, calls that
 * block, is in the conformance cases. And callbacks that do not come back. Usage: styles ENDPOINT. */
#include <poll.h>
#include <setjmp.h>
#include "check.h"

typedef struct {
    valkyrie_queue *queue;
    bool polls;
    int callbacks;
    uint64_t number;
    valkyrie_completion last;
} loop;

static void keep(const valkyrie_completion *completion, void *user_data) {
    loop *here = (loop *)user_data;
    here->callbacks++;
    here->last = *completion;
}

/* Waits for one completion in the loop's style. */
static void wait_for_one(loop *here) {
    int before = here->callbacks;
    if (here->polls) {
        struct pollfd waiting = {valkyrie_queue_fd(here->queue), POLLIN, 0};
        CHECK(poll(&waiting, 1, 60000) == 1);
        CHECK(valkyrie_queue_dispatch(here->queue, 0) == 1);
        CHECK(poll(&waiting, 1, 0) == 0);
    } else {
        CHECK(valkyrie_queue_dispatch(here->queue, 60000) == 1);
    }
    CHECK(here->callbacks == before + 1);
    CHECK((here->last.code == 0) == (here->last.error == NULL));
}

static valkyrie_completion complete(loop *here, valkyrie_operation operation) {
    CHECK(valkyrie_operation_start(here->queue, &operation, &here->number, NULL, keep, here) == 0);
    wait_for_one(here);
    CHECK(here->last.operation == here->number && here->last.kind == operation.kind);
    return here->last;
}

static void every_operation(loop *here, const char *endpoint) {
    valkyrie_client_options options = VALKYRIE_CLIENT_OPTIONS_INIT;
    valkyrie_operation connect = VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_CONNECT);
    options.timeout_ms = 60000;
    connect.target = endpoint;
    connect.client_options = &options;
    valkyrie_client *client = complete(here, connect).client;
    CHECK(client != NULL);

    valkyrie_message *reply = complete(here, calling(client, "/echo", "hello")).message;
    CHECK(same(valkyrie_message_bytes(reply), "hello"));
    valkyrie_message_free(reply);
    valkyrie_error *error = complete(here, calling(client, "/no/such", "")).error;
    CHECK(here->last.code == VALKYRIE_CODE_UNIMPLEMENTED && valkyrie_error_code(error) == here->last.code);
    valkyrie_error_free(error);

    valkyrie_operation on_stream = VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_SEND);
    valkyrie_call *call = NULL;
    CHECK(valkyrie_client_open(client, "/echo", NULL, &call, NULL) == 0);
    on_stream.call = call;
    for (int i = 0; i < 100; i++) {
        char digits[16];
        on_stream.kind = VALKYRIE_OPERATION_SEND;
        snprintf(digits, sizeof digits, "%d", i);
        on_stream.message = text(digits);
        CHECK(complete(here, on_stream).code == 0);
    }
    on_stream.kind = VALKYRIE_OPERATION_HALF_CLOSE;
    CHECK(complete(here, on_stream).code == 0);
    on_stream.kind = VALKYRIE_OPERATION_RECV;
    uint32_t ready = 0;
    for (int i = 0; i < 100; i++) {
        char digits[16];
        valkyrie_message *message = NULL;
        snprintf(digits, sizeof digits, "%d", i);
        /* Both ways of receiving take from one line, and who is told of more in it need not wait for that. */
        if (ready > 0 || i % 3 == 0) {
            CHECK(valkyrie_call_recv(call, &message, NULL) == 0);
            ready -= ready > 0;
        } else {
            message = complete(here, on_stream).message;
            ready = here->last.ready;
            CHECK(ready <= 99u - (uint32_t)i);
        }
        CHECK(same(valkyrie_message_bytes(message), digits));
        valkyrie_message_free(message);
    }
    for (int i = 0; i < 2; i++) CHECK(complete(here, on_stream).code == 0 && here->last.message == NULL);
    CHECK(valkyrie_call_trailers(call) != NULL);
    CHECK(valkyrie_call_free(call) == 0);

    valkyrie_operation close = VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_CLOSE);
    close.client = client;
    CHECK(complete(here, close).code == 0);
    /* What cannot begin has no callback; what cannot end well has one. */
    valkyrie_operation late = calling(client, "/echo", "late");
    CHECK(valkyrie_operation_start(here->queue, &late, NULL, NULL, keep, here) == VALKYRIE_CODE_CANCELLED);
    CHECK(valkyrie_client_free(client) == 0);
    connect.target = "nonsense";
    CHECK(valkyrie_operation_start(here->queue, &connect, NULL, NULL, keep, here) != 0);
    connect.target = "unix:///nobody/listens/here";
    CHECK(complete(here, connect).code == VALKYRIE_CODE_UNAVAILABLE && here->last.client == NULL);
    valkyrie_error_free(here->last.error);
    CHECK(valkyrie_queue_dispatch(here->queue, 0) == 0);
}

static void cancelled(loop *here, const valkyrie_client *client) {
    valkyrie_operation hang = calling(client, "/test/hang", "styles"), receive = VALKYRIE_OPERATION_INIT(0);
    int before = here->callbacks;
    CHECK(valkyrie_operation_start(here->queue, &hang, &here->number, NULL, keep, here) == 0);
    valkyrie_operation_cancel(here->number);
    valkyrie_operation_cancel(here->number);
    wait_for_one(here);
    CHECK(here->last.code == VALKYRIE_CODE_CANCELLED);
    valkyrie_error_free(here->last.error);
    /* A receive that was given up takes nothing: its message comes with the next. */
    CHECK(valkyrie_client_open(client, "/echo", NULL, (valkyrie_call **)&receive.call, NULL) == 0);
    receive.kind = VALKYRIE_OPERATION_RECV;
    CHECK(valkyrie_operation_start(here->queue, &receive, &here->number, NULL, keep, here) == 0);
    valkyrie_operation_cancel(here->number);
    wait_for_one(here);
    valkyrie_error_free(here->last.error);
    CHECK(valkyrie_call_send(receive.call, text("kept"), NULL) == 0);
    valkyrie_message *message = complete(here, receive).message;
    CHECK(same(valkyrie_message_bytes(message), "kept"));
    valkyrie_message_free(message);
    CHECK(valkyrie_call_free((valkyrie_call *)receive.call) == 0);
    CHECK(here->callbacks == before + 3);
}

/* Leaves the callback, and the dispatch with it, the first time; in C++ by an exception, in C by longjmp. */
static jmp_buf back;
static int run;

static void leave(const valkyrie_completion *completion, void *user_data) {
    valkyrie_message_free(completion->message);
    valkyrie_error_free(completion->error);
    if (++run % 3 == 1) {
#ifdef __cplusplus
        throw user_data;
#else
        longjmp(*(jmp_buf *)user_data, 1);
#endif
    }
}

static bool dispatch_is_left(valkyrie_queue *queue) {
#ifdef __cplusplus
    try {
        valkyrie_queue_dispatch(queue, 60000);
    } catch (void *thrown) {
        return thrown == &back;
    }
    return false;
#else
    if (setjmp(back)) return true;
    valkyrie_queue_dispatch(queue, 60000);
    return false;
#endif
}

static void callbacks_that_leave(const valkyrie_client *client) {
    valkyrie_queue *queue = NULL;
    CHECK(valkyrie_queue_new(&queue, NULL) == 0);
    valkyrie_operation call = calling(client, "/echo", "x");
    for (int i = 0; i < 9; i++) CHECK(valkyrie_operation_start(queue, &call, NULL, NULL, leave, &back) == 0);
    int left = 0;
    while (run < 9) {
        /* What is behind the callback that left makes the descriptor readable still. */
        struct pollfd waiting = {valkyrie_queue_fd(queue), POLLIN, 0};
        CHECK(poll(&waiting, 1, 60000) == 1);
        left += dispatch_is_left(queue);
    }
    CHECK(run == 9 && left == 3);
    CHECK(valkyrie_queue_free(queue) == 0);
}

/* Frees its queue: the others behind it hear of that. */
static void frees(const valkyrie_completion *completion, void *user_data) {
    loop *here = (loop *)user_data;
    here->callbacks++;
    valkyrie_message_free(completion->message);
    valkyrie_error_free(completion->error);
    if (here->callbacks == 1) CHECK(valkyrie_queue_free(here->queue) == 0);
}

static void a_queue_is_freed_in_its_callback(const valkyrie_client *client) {
    loop here = {NULL, false, 0, 0, {0, 0, 0, NULL, NULL, NULL, 0, 0, 0}};
    valkyrie_operation echo = calling(client, "/echo", "x"), hang = calling(client, "/test/hang", "styles");
    CHECK(valkyrie_queue_new(&here.queue, NULL) == 0);
    CHECK(valkyrie_operation_start(here.queue, &echo, NULL, NULL, frees, &here) == 0);
    for (int i = 0; i < 4; i++) CHECK(valkyrie_operation_start(here.queue, &hang, NULL, NULL, frees, &here) == 0);
    CHECK(valkyrie_queue_dispatch(here.queue, 60000) == 1);
    CHECK(here.callbacks == 5);
    CHECK(valkyrie_queue_free(here.queue) == VALKYRIE_CODE_INVALID_ARGUMENT);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    for (int polls = 0; polls < 2; polls++) {
        loop here = {NULL, polls != 0, 0, 0, {0, 0, 0, NULL, NULL, NULL, 0, 0, 0}};
        valkyrie_client *client = connect_to(argv[1]);
        CHECK(valkyrie_queue_new(&here.queue, NULL) == 0);
        every_operation(&here, argv[1]);
        cancelled(&here, client);
        CHECK(valkyrie_queue_free(here.queue) == 0);
        CHECK(valkyrie_client_free(client) == 0);
    }
    valkyrie_client *client = connect_to(argv[1]);
    callbacks_that_leave(client);
    a_queue_is_freed_in_its_callback(client);

    /* A stream outlives its client, with what had come. */
    valkyrie_call *call = NULL;
    valkyrie_message *message = NULL;
    CHECK(valkyrie_client_open(client, "/echo", NULL, &call, NULL) == 0);
    CHECK(valkyrie_call_send(call, text("x"), NULL) == 0 && valkyrie_call_half_close(call, NULL) == 0);
    CHECK(valkyrie_client_close(client, NULL) == 0 && valkyrie_client_free(client) == 0);
    while (valkyrie_call_recv(call, &message, NULL) == 0 && message != NULL) valkyrie_message_free(message);
    CHECK(valkyrie_call_free(call) == 0);
    CHECK(valkyrie_in_flight() == 0 && valkyrie_alive() == 0);
    valkyrie_shutdown();
    puts("ok");
    return 0;
}
